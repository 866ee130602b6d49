"""The Hugging Face Hub: the only room that talks to it.

names.py        ids, revisions and file names, checked
client.py       HTTP with time limits and patience; the token stays at home
listing.py      what a repository holds at one commit
snapshot.py     files into the Hugging Face cache, checked
transfer.py     the bytes of one file, continued where they ended
layout.py       the cache's directories
explain.py      the reasons of failures in plain words
"""

from llmcompress.hub.explain import explained
from llmcompress.hub.listing import HubFile, HubListing, listing
from llmcompress.hub.names import check_name, check_repo_id, check_revision
from llmcompress.hub.snapshot import HubSnapshot, download, fetch

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
