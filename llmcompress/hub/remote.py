"""A repository that is pushed to: what it holds before, and whether it holds what it should after."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from llmcompress.errors import HubError
from llmcompress.hub.client import HubClient, raise_for_status
from llmcompress.hub.layout import new_digest
from llmcompress.hub.listing import HubFile, tree


class Outgoing(NamedTuple):
    """One file that is to be in a repository."""

    content: Path | bytes
    size_bytes: int
    sha256: str


class Remote(NamedTuple):
    """A repository at the head of one branch."""

    repo_id: str
    revision: str
    commit: str | None
    """None: there is no such repository."""
    private: bool
    files: dict[str, HubFile]


def look(client: HubClient, repo_id: str, revision: str) -> Remote:
    """Find out what a branch holds now; nothing where the repository is absent.

    Raises huggingface_hub's errors, and HubError and SecurityError as ``tree``.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info, _ = client.json(f"{constants.ENDPOINT}/api/models/{repo_id}/revision/{quote(revision, safe='')}")
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return Remote(repo_id, revision, None, False, {})
    if not isinstance(info, dict) or not isinstance(info.get("sha"), str):
        raise HubError("the Hub's description has another form than it documents", where=repo_id)
    if str(info.get("id", repo_id)).lower() != repo_id.lower():
        raise HubError(
            f"the repository is called {info['id']!r} now", where=repo_id, hint="push to it under its new name"
        )
    files = {file.path: file for file in tree(client, repo_id, info["sha"])}
    return Remote(repo_id, revision, info["sha"], bool(info.get("private")), files)


def read_file(client: HubClient, remote: Remote, name: str) -> bytes:
    """The bytes of one file at the commit that was looked at.

    Raises huggingface_hub's errors, and HubError for bytes that are not what the Hub states.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(remote.repo_id, name, revision=remote.commit)
    response = client.get(url, headers=build_hf_headers())
    raise_for_status(response)
    content = response.content
    if not _is_same(Outgoing(content, len(content), hashlib.sha256(content).hexdigest()), remote.files[name]):
        raise HubError(
            "the Hub sent other bytes than it states", where=f"{remote.repo_id}: {name}", hint="run it again"
        )
    return content


def page(repo_id: str) -> str:
    """The address of a model."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo_id}"


def differing(files: Mapping[str, Outgoing], there: Mapping[str, HubFile]) -> list[str]:
    """Names of the files that a repository does not hold with these very bytes, sorted."""
    return sorted(name for name, file in files.items() if not _is_same(file, there.get(name)))


def _is_same(file: Outgoing, there: HubFile | None) -> bool:
    if there is None or there.size_bytes != file.size_bytes:
        return False
    if there.sha256:
        return there.sha256 == file.sha256
    digest = new_digest(there)
    digest.update(file.content if isinstance(file.content, bytes) else file.content.read_bytes())
    return bool(digest.hexdigest() == there.git_sha1)
