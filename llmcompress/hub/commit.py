"""One commit, or a pull request of one commit, with everything in it or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.errors import ArtifactError, HubError
from llmcompress.hub.client import HubClient
from llmcompress.hub.explain import explained
from llmcompress.hub.lending import lent
from llmcompress.hub.remote import Outgoing, Remote, differing, look

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

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
