"""The Hugging Face Hub: the only room that talks to it.

names.py        ids, revisions and file names, checked
client.py       HTTP with time limits and patience; the token stays at home
listing.py      what a repository holds at one commit
snapshot.py     files into the Hugging Face cache, checked
transfer.py     the bytes of one file, continued where they ended
layout.py       the cache's directories
account.py      who is logged in, and may they write
remote.py       a repository that is pushed to, before and after
commit.py       everything in one commit, or nothing
references.py   tags and collections
lending.py      huggingface_hub's own API over our client
explain.py      the reasons of failures in plain words
"""

from llmcompress.hub.account import Account, current_token, find_account, require_rights
from llmcompress.hub.client import HubClient, limit_s
from llmcompress.hub.download import HubSnapshot, download, fetch
from llmcompress.hub.failures import explained
from llmcompress.hub.listing import HubFile, HubListing, listing
from llmcompress.hub.upload import (
    Made,
    Outgoing,
    Remote,
    add_tags,
    add_to_collection,
    create_repo,
    differing,
    look,
    make_commit,
    open_pull_request,
    page,
    read_file,
    require_collection,
    tags_of,
)
from llmcompress.spec.hub_names import check_name, check_repo_id, check_revision

__all__ = [
    "Account",
    "HubClient",
    "HubFile",
    "HubListing",
    "HubSnapshot",
    "Made",
    "Outgoing",
    "Remote",
    "add_tags",
    "add_to_collection",
    "check_name",
    "check_repo_id",
    "check_revision",
    "create_repo",
    "current_token",
    "differing",
    "download",
    "explained",
    "fetch",
    "find_account",
    "limit_s",
    "listing",
    "look",
    "make_commit",
    "open_pull_request",
    "page",
    "read_file",
    "require_collection",
    "require_rights",
    "tags_of",
]
