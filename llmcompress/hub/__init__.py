"""The Hugging Face Hub: the only room that talks to it.

client.py      requests through huggingface_hub, with time limits; the token stays at home
patience.py    how long the Hub is waited for
failures.py    the reasons of failures in plain words
account.py     who is logged in, and may they write
listing.py     what a repository holds at one commit
cache.py       one repository in the Hugging Face cache
transfer.py    the bytes of one file, continued where they ended
download.py    files into the cache, checked
upload.py      what a repository holds now; everything in one commit, or nothing; tags and collections
"""

from llmcompress.hub.account import Account, current_token, find_account, require_rights
from llmcompress.hub.client import HubClient
from llmcompress.hub.download import HubSnapshot, download, fetch
from llmcompress.hub.failures import translated_errors
from llmcompress.hub.listing import HubFile, HubListing, listing
from llmcompress.hub.patience import limit_s
from llmcompress.hub.upload import (
    Commit,
    Outgoing,
    Remote,
    add_tags,
    add_to_collection,
    create_repo,
    differing,
    fetch_state,
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
    "Commit",
    "HubClient",
    "HubFile",
    "HubListing",
    "HubSnapshot",
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
    "fetch",
    "fetch_state",
    "find_account",
    "limit_s",
    "listing",
    "make_commit",
    "open_pull_request",
    "page",
    "read_file",
    "require_collection",
    "require_rights",
    "tags_of",
    "translated_errors",
]
