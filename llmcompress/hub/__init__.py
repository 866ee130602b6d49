"""The Hugging Face Hub: the only room that talks to it."""

from llmcompress.hub.download import HubSnapshot, download, fetch
from llmcompress.hub.explain import explained
from llmcompress.hub.listing import HubFile, HubListing, listing
from llmcompress.hub.names import check_name, check_repo_id, check_revision

__all__ = [
    "HubFile",
    "HubListing",
    "HubSnapshot",
    "check_name",
    "check_repo_id",
    "check_revision",
    "download",
    "explained",
    "fetch",
    "listing",
]
