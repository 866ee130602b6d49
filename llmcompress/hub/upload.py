"""One commit, or a pull request of one commit, with everything in it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from llmcompress.errors import ArtifactError, HubError
from llmcompress.hub.client import HubClient, lent, raise_for_status
from llmcompress.hub.download import new_digest
from llmcompress.hub.failures import explained
from llmcompress.hub.listing import HubFile, tree

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


def tags_of(client: HubClient, repo_id: str) -> dict[str, str]:
    """The tags of a repository, each with its commit. Raises HubError."""
    with explained(repo_id, "main", writing=True), lent(client) as api:
        return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}


def add_tags(client: HubClient, repo_id: str, commit: str, tags: Sequence[str]) -> None:
    """Name a commit. Raises HubError."""
    for tag in tags:
        with explained(repo_id, commit, writing=True), lent(client) as api:
            api.create_tag(repo_id, tag=tag, revision=commit)


def require_collection(client: HubClient, slug: str) -> None:
    """Refuse a collection that is not there, before anything is sent. Raises HubError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    with explained(slug, "main", writing=True):
        try:
            client.json(f"{constants.ENDPOINT}/api/collections/{slug}")
        except HfHubHTTPError as error:
            if error.response.status_code not in (400, 404):
                raise
            raise HubError(
                f"there is no collection {slug!r}, or it is not this account's to see",
                hint="the slug is the end of its address: huggingface.co/collections/NAMESPACE/TITLE-NUMBER",
            ) from None


def add_to_collection(client: HubClient, slug: str, repo_id: str) -> None:
    """Put a model on a collection's list, unless it is there already. Raises HubError."""
    with explained(repo_id, "main", writing=True), lent(client) as api:
        api.add_collection_item(slug, repo_id, item_type="model", exists_ok=True)


_CONFLICT = 412


class Made(NamedTuple):
    """A commit that is on the Hub."""

    commit: str
    pull_request: str | None
    """Its address."""
    revision: str
    """Where the commit is: the branch, or the pull request's."""


class _ConflictError(Exception):
    """The branch is no longer at the commit that was looked at."""


def create_repo(client: HubClient, repo_id: str, *, private: bool | None) -> None:
    """Make an empty model repository; one that is there already is left as it is.

    Raises:
        HubError: the Hub refuses, or cannot be reached.
    """
    with explained(repo_id, "main", writing=True), lent(client) as api:
        api.create_repo(repo_id, private=private, exist_ok=True)


def make_commit(
    client: HubClient,
    before: Remote,
    files: Mapping[str, Outgoing],
    delete: Collection[str],
    message: str,
    *,
    create_pr: bool = False,
) -> Made:
    """Send what differs, then make one commit on top of ``before``.

    Where somebody else committed meanwhile and touched none of these files, it is done once more on top of that.

    Raises:
        HubError: somebody else changed the same files, or the Hub refuses or cannot be reached: nothing was committed.
        ArtifactError: a file changed while it was sent.
    """
    with explained(before.repo_id, before.revision, writing=True):
        try:
            return _commit(client, before, files, delete, message, create_pr)
        except _ConflictError:
            now = look(client, before.repo_id, before.revision)
        if _holds(now, files, delete):
            # The commit was made, and its answer was lost.
            return Made(str(now.commit), None, now.revision)
        ours = {*files, *delete}
        changed = sorted(name for name in ours if before.files.get(name) != now.files.get(name))
        if changed:
            raise HubError(
                f"somebody else has changed it meanwhile: {', '.join(changed[:5])}; nothing was committed",
                where=before.repo_id,
                hint="look at what they did, and run it again to replace it",
            )
        try:
            return _commit(client, now, files, delete, message, create_pr)
        except _ConflictError:
            raise HubError(
                "others commit to it at the same time; nothing was committed",
                where=before.repo_id,
                hint="run it again when they are done: nothing is sent twice",
            ) from None


def open_pull_request(
    client: HubClient, before: Remote, author: str, files: Mapping[str, Outgoing], delete: Collection[str]
) -> Made | None:
    """An open pull request of the same author that holds just these files, so that a rerun makes no second one."""
    with explained(before.repo_id, before.revision, writing=True):
        with lent(client) as api:
            found = [
                discussion
                for discussion in api.get_repo_discussions(before.repo_id, author=author)
                if discussion.is_pull_request and discussion.status in ("open", "draft")
            ]
        for discussion in found:
            there = look(client, before.repo_id, f"refs/pr/{discussion.num}")
            if _holds(there, files, delete):
                return Made(str(there.commit), discussion.url, there.revision)
    return None


def _holds(remote: Remote, files: Mapping[str, Outgoing], delete: Collection[str]) -> bool:
    return not differing(files, remote.files) and not any(name in remote.files for name in delete)


def _commit(
    client: HubClient,
    on: Remote,
    files: Mapping[str, Outgoing],
    delete: Collection[str],
    message: str,
    create_pr: bool,
) -> Made:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    additions = [
        CommitOperationAdd(
            name, files[name].content if isinstance(files[name].content, bytes) else str(files[name].content)
        )
        for name in differing(files, on.files)
    ]
    removals = [CommitOperationDelete(name) for name in sorted(delete) if name in on.files]
    with lent(client) as api:
        _send(api, on, additions, files, create_pr)
        try:
            made = api.create_commit(
                on.repo_id,
                [*additions, *removals],
                commit_message=message,
                revision=on.revision,
                parent_commit=on.commit,
                create_pr=create_pr,
            )
        except HfHubHTTPError as error:
            if error.response.status_code == _CONFLICT:
                raise _ConflictError from error
            raise
    return Made(made.oid, made.pr_url, made.pr_revision or on.revision)


def _send(
    api: HfApi, on: Remote, additions: list[CommitOperationAdd], files: Mapping[str, Outgoing], create_pr: bool
) -> None:
    """Send the large files, which nobody sees until they are committed; refuse what changed since it was verified."""
    api.preupload_lfs_files(
        on.repo_id, additions, revision=on.revision, create_pr=create_pr, free_memory=False, num_threads=4
    )
    for addition in additions:
        if addition.upload_info.sha256.hex() != files[addition.path_in_repo].sha256:
            raise ArtifactError(
                "changed while it was sent; nothing was committed",
                where=str(Path(addition.path_in_repo)),
                hint="run it again when nothing else writes there",
            )
        if addition._should_ignore:
            raise HubError(
                f"the repository's .gitignore keeps {addition.path_in_repo} out; nothing was committed",
                where=on.repo_id,
                hint="remove that line from its .gitignore",
            )


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
