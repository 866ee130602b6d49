"""From an output directory to the Hub: what may leave, under which name, in one commit.

push.py        the steps, in order
gate.py        may it leave, by what was measured
contents.py    which files leave, and which do not
naming.py      the repository's name, where none is given
plan.py        what changes in the repository, and whether the place takes it
artifacts.py   the way back
"""

from llmcompress.publishing.contents import fetch_artifact
from llmcompress.publishing.push import push_to_hub

__all__ = ["fetch_artifact", "push_to_hub"]
