"""What a push changes in a repository, and whether the repository takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmcompress.artifact import HUB_FILES, MANIFEST, REPORTS
from llmcompress.errors import HubError, UsageError
from llmcompress.hub.client import HubClient
from llmcompress.hub.upload import Changes, Outgoing, Remote, differing, read_file, require_collection, tags_of
from llmcompress.report.compression import CompressionReport
from llmcompress.report.file_names import BENCHMARK_SCORES
from llmcompress.report.push import PushedFile
from llmcompress.spec.access import check_repo_id

_LONGEST_NAME = 96


def repository_name(directory: Path, manifest: CompressionReport, given: str | None, account: str) -> str:
    """``NAMESPACE/NAME`` of what was given, or ``ACCOUNT/BASE-RECIPE-ov``, as models for OpenVINO are named.

    The base is the source's name on the Hub; of a local source it is the output directory's.

    Raises:
        UsageError: that is not a Hub id.
    """
    if given is not None:
        return check_repo_id(given if "/" in given else f"{account}/{given}")
    ending = f"-{manifest.recipe.name}-ov"
    source = manifest.provenance.id
    base = source.rpartition("/")[2] if source else directory.resolve().name
    name = base if base.endswith(ending) else base + ending
    legal = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) and len(name) <= _LONGEST_NAME
    if not legal or ".." in name or "--" in name:
        raise UsageError(
            f"{name!r} cannot be the name of a repository", where=str(directory), hint="give one: NAMESPACE/NAME"
        )
    return check_repo_id(f"{account}/{name}")


def find_changes(client: HubClient, before: Remote, files: Mapping[str, Outgoing], *, delete_others: bool) -> Changes:
    """Compare by hash; files of others stay unless they are to be deleted.

    What an earlier push left there and this model does not have is deleted: the repository would not verify with it.
    Raises HubError.
    """
    changed = differing(files, before.files)
    others = before.files.keys() - files.keys() - HUB_FILES
    delete = set(others) if delete_others else others & _earlier(client, before, changed)
    return Changes(before, dict(files), changed, sorted(delete), sorted(others - delete))


def _earlier(client: HubClient, before: Remote, changed: list[str]) -> set[str]:
    """Files of another artifact that was pushed there: those of its manifest, and its reports."""
    if MANIFEST not in before.files or MANIFEST not in changed:
        return set()
    try:
        manifest = json.loads(read_file(client, before, MANIFEST))
        return {str(record["path"]) for record in manifest["files"]} | REPORTS | set(BENCHMARK_SCORES.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        # A manifest that cannot be read claims no files.
        return set()


def pushed_files(changes: Changes) -> tuple[PushedFile, ...]:
    """Every file that the repository is to hold of this model, with what becomes of it."""
    changed = set(changes.differing)
    return tuple(
        PushedFile(
            path=path,
            size_bytes=file.size_bytes,
            state="unchanged" if path not in changed else "changed" if path in changes.before.files else "new",
        )
        for path, file in sorted(changes.files.items())
    )


def require_place(
    client: HubClient,
    changes: Changes,
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
    before = changes.before
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
        there = tags_of(client, before.repo_id)
        for tag in tags:
            if tag in there and (changes.any or there[tag] != before.commit):
                raise HubError(
                    f"the tag {tag!r} names another commit, {there[tag][:12]}",
                    where=before.repo_id,
                    hint="choose another tag; one that people use is not moved",
                )
    if collection is not None:
        require_collection(client, collection)
