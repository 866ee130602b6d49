"""From an output directory to the Hub: what may leave, under which name, in one commit; and the way back."""

from llmcompress.publishing.fetch import fetch_artifact
from llmcompress.publishing.push import push_to_hub

__all__ = ["fetch_artifact", "push_to_hub"]
