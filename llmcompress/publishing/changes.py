"""What a push changes in a repository, and whether the place takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmcompress import hub
from llmcompress.artifact import HUB_FILES, MANIFEST, REPORTS
from llmcompress.errors import HubError, UsageError
from llmcompress.report.push import PushedFile


class Plan(NamedTuple):
    """What a push changes."""

    before: hub.Remote
    files: dict[str, hub.Outgoing]
    differing: list[str]
    """Files that the repository does not have with these bytes."""
    delete: list[str]
    kept: list[str]


def planned(
    client: hub.HubClient, before: hub.Remote, files: Mapping[str, hub.Outgoing], *, delete_others: bool
) -> Plan:
    """Compare by hash; files of others stay unless they are to be deleted.

    What an earlier push left there and this model does not have is deleted: the repository would not verify with it.
    Raises huggingface_hub's errors.
    """
    differing = hub.differing(files, before.files)
    others = before.files.keys() - files.keys() - HUB_FILES
    delete = set(others) if delete_others else others & _earlier(client, before, differing)
    return Plan(before, dict(files), differing, sorted(delete), sorted(others - delete))


def _earlier(client: hub.HubClient, before: hub.Remote, differing: list[str]) -> set[str]:
    """Files of another artifact that was pushed there: those of its manifest, and its reports."""
    if MANIFEST not in before.files or MANIFEST not in differing:
        return set()
    try:
        manifest = json.loads(hub.read_file(client, before, MANIFEST))
        return {str(record["path"]) for record in manifest["files"]} | REPORTS
    except (ValueError, KeyError, TypeError):
        # A manifest that cannot be read claims no files.
        return set()


def pushed_files(plan: Plan) -> tuple[PushedFile, ...]:
    """Every file that the repository is to hold of this model, with what becomes of it."""
    differing = set(plan.differing)
    return tuple(
        PushedFile(
            path=path,
            size_bytes=file.size_bytes,
            state="unchanged" if path not in differing else "changed" if path in plan.before.files else "new",
        )
        for path, file in sorted(plan.files.items())
    )


def require_place(
    client: hub.HubClient,
    plan: Plan,
    *,
    private: bool | None,
    create_pr: bool,
    tags: Sequence[str],
    collection: str | None,
) -> None:
    """Refuse what the repository as it is rules out.

    Raises:
        HubError: no such repository or branch for what is asked, a tag of another commit, no such collection.
        UsageError: the repository is there and public where private was asked for, or the other way round.
    """
    before = plan.before
    if before.commit is None and create_pr:
        raise HubError(
            "there is no such repository to propose a change to", where=before.repo_id, hint="check its name"
        )
    if before.commit is None and before.revision != "main":
        raise HubError(
            f"there is no such repository, and a new one has no branch {before.revision!r}",
            where=before.repo_id,
            hint="push to main first",
        )
    if before.commit is not None and private is not None and before.private != private:
        raise UsageError(
            f"the repository is there and {'private' if before.private else 'public'}; a push does not change that",
            where=before.repo_id,
            hint="change it on its settings page, or leave the option out",
        )
    if tags and before.commit is not None:
        there = hub.tags_of(client, before.repo_id)
        unchanged = not plan.differing and not plan.delete
        for tag in tags:
            if tag in there and not (unchanged and there[tag] == before.commit):
                raise HubError(
                    f"the tag {tag!r} names another commit, {there[tag][:12]}",
                    where=before.repo_id,
                    hint="choose another tag; one that people use is not moved",
                )
    if collection is not None:
        hub.require_collection(client, collection)
