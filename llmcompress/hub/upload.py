"""What a repository holds, and one commit, or a pull request of one commit, with everything in it or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import ArtifactError, HubError
from llmcompress.hub.cache import new_digest
from llmcompress.hub.client import HubClient
from llmcompress.hub.failures import translated_errors
from llmcompress.hub.listing import HubFile, tree

if TYPE_CHECKING:
    import httpx
    from huggingface_hub import CommitOperationAdd

_CONFLICT = 412


class Outgoing(NamedTuple):
    """One file that is to be in a repository."""

    content: Path | bytes
    size_bytes: int
    sha256: str

    @staticmethod
    def of_bytes(content: bytes) -> Outgoing:
        """A file whose bytes are in memory."""
        return Outgoing(content, len(content), hashlib.sha256(content).hexdigest())


class Remote(NamedTuple):
    """A repository at the head of one branch."""

    repo_id: str
    revision: str
    commit: str | None
    """None: there is no such repository."""
    private: bool
    files: dict[str, HubFile]


class Changes(NamedTuple):
    """What a push changes in a repository."""

    before: Remote
    files: dict[str, Outgoing]
    """All that the repository is to hold of this model."""
    differing: list[str]
    """Those that it does not have with these bytes."""
    delete: list[str]
    kept: list[str]
    """Files of others."""

    @property
    def any(self) -> bool:
        """Whether there is something to commit."""
        return bool(self.differing or self.delete)

    def missing_in(self, there: Remote) -> list[str]:
        """Files that a repository holds with other bytes or not at all, and those that it should not hold any more."""
        return differing(self.files, there.files) + [name for name in self.delete if name in there.files]


class Commit(NamedTuple):
    """A commit that is on the Hub."""

    sha: str
    pull_request: str | None
    """Its address."""
    revision: str
    """Where the commit is: the branch, or the pull request's."""


class _ConflictError(Exception):
    """The branch is no longer at the commit that was looked at."""


def page(repo_id: str) -> str:
    """The address of a model."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo_id}"


def fetch_state(client: HubClient, repo_id: str, revision: str) -> Remote:
    """Find out what a branch holds now; nothing where the repository is absent.

    Raises:
        HubError: no access, no such branch, the repository has another name now, or the Hub cannot be reached.
        SecurityError: as ``tree``.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    with translated_errors(repo_id, revision, writing=True):
        try:
            info = client.call(lambda api: api.model_info(repo_id, revision=revision))
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return Remote(repo_id, revision, None, False, {})
        if info.id.lower() != repo_id.lower():
            raise HubError(
                f"the repository is called {info.id!r} now", where=repo_id, hint="push to it under its new name"
            )
        files = {file.path: file for file in tree(client, repo_id, str(info.sha))}
    return Remote(repo_id, revision, info.sha, bool(info.private), files)


def read_file(client: HubClient, remote: Remote, name: str) -> bytes:
    """The bytes of one file at the commit that was looked at.

    Raises:
        HubError: they are not what the Hub states, or it cannot be reached.
    """
    from huggingface_hub import hf_hub_url

    with translated_errors(remote.repo_id, remote.revision, writing=True):
        content = client.read(hf_hub_url(remote.repo_id, name, revision=remote.commit))
    if not _is_same(Outgoing.of_bytes(content), remote.files[name]):
        raise HubError(
            "the Hub sent other bytes than it states", where=f"{remote.repo_id}: {name}", hint="run it again"
        )
    return content


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


def create_repo(client: HubClient, repo_id: str, *, private: bool | None) -> None:
    """Make an empty model repository; one that is there already is left as it is. Raises HubError."""
    with translated_errors(repo_id, "main", writing=True):
        client.call(lambda api: api.create_repo(repo_id, private=private, exist_ok=True))


def make_commit(client: HubClient, changes: Changes, message: str, *, create_pr: bool = False) -> Commit:
    """Send what differs, then make one commit on top of ``changes.before``.

    Where somebody else committed meanwhile and touched none of these files, it is done once more on top of that.

    Raises:
        HubError: somebody else changed the same files, or the Hub refuses or cannot be reached: nothing was committed.
        ArtifactError: a file changed while it was sent.
    """
    before = changes.before
    with translated_errors(before.repo_id, before.revision, writing=True):
        try:
            return _commit(client, changes, message, create_pr)
        except _ConflictError:
            now = fetch_state(client, before.repo_id, before.revision)
        if not changes.missing_in(now):
            # The commit was made, and its answer was lost.
            return Commit(str(now.commit), None, now.revision)
        ours = {*changes.files, *changes.delete}
        changed = sorted(name for name in ours if before.files.get(name) != now.files.get(name))
        if changed:
            raise HubError(
                f"somebody else has changed it meanwhile: {', '.join(changed[:5])}; nothing was committed",
                where=before.repo_id,
                hint="look at what they did, and run it again to replace it",
            )
        try:
            return _commit(client, changes._replace(before=now), message, create_pr)
        except _ConflictError:
            raise HubError(
                "others commit to it at the same time; nothing was committed",
                where=before.repo_id,
                hint="run it again when they are done: nothing is sent twice",
            ) from None


def open_pull_request(client: HubClient, changes: Changes, author: str) -> Commit | None:
    """An open pull request of the same author that holds just these files, so that a rerun makes no second one."""
    before = changes.before
    with translated_errors(before.repo_id, before.revision, writing=True):
        for discussion in client.call(lambda api: list(api.get_repo_discussions(before.repo_id, author=author))):
            if not discussion.is_pull_request or discussion.status not in ("open", "draft"):
                continue
            there = fetch_state(client, before.repo_id, f"refs/pr/{discussion.num}")
            if not changes.missing_in(there):
                return Commit(str(there.commit), discussion.url, there.revision)
    return None


def _commit(client: HubClient, changes: Changes, message: str, create_pr: bool) -> Commit:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    on = changes.before
    additions = []
    for name in differing(changes.files, on.files):
        content = changes.files[name].content
        additions.append(CommitOperationAdd(name, content if isinstance(content, bytes) else str(content)))
    removals = [CommitOperationDelete(name) for name in changes.delete if name in on.files]
    _send(client, changes, additions, create_pr)
    try:
        made = client.call(
            lambda api: api.create_commit(
                on.repo_id,
                [*additions, *removals],
                commit_message=message,
                revision=on.revision,
                parent_commit=on.commit,
                create_pr=create_pr,
            ),
            # A commit whose answer was lost would open a second pull request.
            repeatable=not create_pr,
        )
    except HfHubHTTPError as error:
        if error.response.status_code == _CONFLICT:
            raise _ConflictError from error
        raise
    return Commit(made.oid, made.pr_url, made.pr_revision or on.revision)


def _send(client: HubClient, changes: Changes, additions: Sequence[CommitOperationAdd], create_pr: bool) -> None:
    """Send the large files, which nobody sees until they are committed; refuse what changed since it was verified."""
    on = changes.before
    ignored: list[str] = []

    def note_ignored(response: httpx.Response) -> None:
        if "/preupload/" in response.url.path and response.is_success:
            response.read()
            ignored.extend(file["path"] for file in response.json()["files"] if file["shouldIgnore"])

    client.call(
        lambda api: api.preupload_lfs_files(
            on.repo_id, additions, revision=on.revision, create_pr=create_pr, free_memory=False, num_threads=4
        ),
        on_response=note_ignored,
    )
    for addition in additions:
        name = addition.path_in_repo
        if addition.upload_info.sha256.hex() != changes.files[name].sha256:
            raise ArtifactError(
                "changed while it was sent; nothing was committed",
                where=name,
                hint="run it again when nothing else writes there",
            )
        if name in ignored:
            raise HubError(
                f"the repository's .gitignore keeps {name} out; nothing was committed",
                where=on.repo_id,
                hint="remove that line from its .gitignore",
            )


def tags_of(client: HubClient, repo_id: str) -> dict[str, str]:
    """The tags of a repository, each with its commit. Raises HubError."""
    with translated_errors(repo_id, "main", writing=True):
        return {tag.name: tag.target_commit for tag in client.call(lambda api: api.list_repo_refs(repo_id)).tags}


def add_tags(client: HubClient, repo_id: str, commit: str, tags: Sequence[str]) -> None:
    """Name a commit. Raises HubError."""
    with translated_errors(repo_id, commit, writing=True):
        for tag in tags:
            client.call(lambda api, tag=tag: api.create_tag(repo_id, tag=tag, revision=commit))  # type: ignore[misc]


def require_collection(client: HubClient, slug: str) -> None:
    """Refuse a collection that is not there, before anything is sent. Raises HubError."""
    from huggingface_hub.errors import HfHubHTTPError

    with translated_errors(slug, "main", writing=True):
        try:
            client.call(lambda api: api.get_collection(slug))
        except HfHubHTTPError as error:
            if error.response.status_code not in (400, 404):
                raise
            raise HubError(
                f"there is no collection {slug!r}, or it is not this account's to see",
                hint="the slug is the end of its address: huggingface.co/collections/NAMESPACE/TITLE-NUMBER",
            ) from None


def add_to_collection(client: HubClient, slug: str, repo_id: str) -> None:
    """Put a model on a collection's list, unless it is there already. Raises HubError."""
    with translated_errors(repo_id, "main", writing=True):
        client.call(lambda api: api.add_collection_item(slug, repo_id, item_type="model", exists_ok=True))
