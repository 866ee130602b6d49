"""The steps of a push: everything that can be refused is refused before the first byte leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from llmcompress import hub
from llmcompress.artifact import Measurements, read_measurements, replace_report, require_verified
from llmcompress.errors import GateError, HubError, UsageError
from llmcompress.publishing.changes import Plan, planned, pushed_files, require_place
from llmcompress.publishing.contents import (
    CARD,
    current_card,
    kept_card,
    model_files,
    outgoing_bytes,
    repository_name,
    require_gate,
    require_no_token,
)
from llmcompress.report.push import PushReport
from llmcompress.system.environment import installed_versions
from llmcompress.system.progress import Progress, Reporter, silent

CardRenderer = Callable[[Path, str | None], str]


def push_to_hub(
    directory: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    force: bool = False,
    delete_others: bool = False,
    keep_card: bool = False,
    collection: str | None = None,
    tags: Sequence[str] = (),
    revision: str | None = None,
    progress: Reporter = silent,
    render: CardRenderer | None = None,
) -> PushReport:
    """Publish an output directory of ``compress`` in one commit, and compare what the Hub then holds by hash.

    What leaves: the files of the manifest, reports that were measured on these bytes, and the card, which is written
    where there is none. The login and its rights are checked first. The token comes from ``HF_TOKEN`` or the login.

    Args:
        directory: With its manifest; verified before anything leaves.
        repo_id: ``NAMESPACE/NAME`` or ``NAME``; by default the account's ``BASE-RECIPE-ov``. Made if it is absent.
        private: For a repository that is made; None leaves it to the account's settings.
        create_pr: Propose it as a pull request to an existing repository instead.
        dry_run: Do all checks and send nothing.
        force: Push although the gate is not passed or not judged. The reports leave with the model and say so.
        delete_others: Remove every file of the repository that is not of this model.
        keep_card: Push the README.md that is there, whoever wrote it.
        collection: Slug of a collection to put the model into.
        tags: Git tags for the commit.
        revision: An existing branch; by default main.
        progress: Told the bytes that were sent.
        render: Directory and Hub id -> card; by default ``llmcompress.publishing.card.render_card``.

    Raises:
        ArtifactError: the directory is not what its manifest says.
        GateError: the gate is not passed, or not judged.
        UsageError: arguments that exclude each other, or a README.md that is not the current card.
        SecurityError: a file holds an access token.
        HubError: no login, no rights, a conflict, or the Hub cannot be reached. There is one commit or none.
    """
    directory = Path(directory)
    for tag in tags:
        hub.check_revision(tag)
    branch = hub.check_revision(revision or "main")
    if create_pr and tags:
        raise UsageError("a pull request is no commit of the model yet: it cannot be tagged", hint="leave --tag out")
    if create_pr and private is not None:
        raise UsageError("a pull request goes to a repository that is there", hint="leave --private out")
    progress(Progress("verify", 0, 0))
    require_verified(directory)
    measured = read_measurements(directory)
    forced = _gate(measured, directory, force=force)
    files, left_out = model_files(directory, measured)
    total = sum(file.size_bytes for file in files.values())
    sent = _Sent(progress)
    client = hub.HubClient(hub.limit_s(total), on_sent=sent.add)
    progress(Progress("look at the Hub", 0, 0))
    who = hub.find_account(client)
    name = repository_name(directory, measured.manifest, repo_id, who.name)
    hub.require_rights(who, name, create_pr=create_pr)
    if keep_card:
        card = own = kept_card(directory)
    else:
        own = (render or _render)(directory, None)
        card = current_card(directory, own, (render or _render)(directory, name))
    require_no_token(CARD, card.encode())
    files[CARD] = outgoing_bytes(card.encode())
    plan = planned(client, hub.fetch_state(client, name, branch), files, delete_others=delete_others)
    require_place(client, plan, private=private, create_pr=create_pr, tags=tags, collection=collection)
    report = PushReport(
        repo_id=name,
        url=hub.page(name),
        dry_run=dry_run,
        created=plan.before.commit is None,
        private=private if plan.before.commit is None else plan.before.private,
        commit=None,
        files=pushed_files(plan),
        deleted=tuple(plan.delete),
        kept=tuple(plan.kept),
        left_out=left_out,
        forced=forced,
        sent_bytes=sum(files[path].size_bytes for path in plan.differing),
        tags=tuple(tags),
        collection=collection,
        card=card,
    )
    if dry_run:
        return report
    if not (directory / CARD).is_file():
        replace_report(directory, CARD, own.encode())
    if plan.before.commit is None:
        hub.create_repo(client, name, private=private)
        plan = planned(client, hub.fetch_state(client, name, branch), files, delete_others=delete_others)
    made = None
    if plan.differing or plan.delete:
        sent.total = report.sent_bytes
        made = hub.open_pull_request(client, plan.before, who.name, files, plan.delete) if create_pr else None
        if made is None:
            message = f"Upload {measured.manifest.recipe.name} model made with llmcompress {_version()}"
            made = hub.make_commit(client, plan.before, files, plan.delete, message, create_pr=create_pr)
    return _finish(client, plan, made, report)


class _Sent:
    """Bytes of large files that went out, as progress."""

    def __init__(self, progress: Reporter) -> None:
        self.total = 0
        self._done = 0
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            # A part that failed is sent again.
            self._done = min(self._done + count, self.total)
            self._progress(Progress("upload", self._done, self.total, "bytes"))


def _render(directory: Path, repo_id: str | None) -> str:
    from llmcompress.publishing.card import render_card

    return str(render_card(directory, repo_id=repo_id))


def _gate(measured: Measurements, directory: Path, *, force: bool) -> str | None:
    """What the gate objects, where it is overruled."""
    try:
        require_gate(measured, where=str(directory))
    except GateError as error:
        if not force:
            raise
        return error.message
    return None


def _finish(client: hub.HubClient, plan: Plan, made: hub.Commit | None, report: PushReport) -> PushReport:
    """Compare what the Hub holds now, by hash; then tags and collection."""
    name, commit = report.repo_id, made.sha if made else str(plan.before.commit)
    try:
        there = hub.fetch_state(client, name, commit).files
        wrong = hub.differing(plan.files, there) + [path for path in plan.delete if path in there]
        if wrong:
            raise HubError(
                f"the Hub does not hold what was sent: {', '.join(wrong[:5])}", where=name, hint="run it again"
            )
        if report.tags:
            known = hub.tags_of(client, name)
            hub.add_tags(client, name, commit, [tag for tag in report.tags if known.get(tag) != commit])
        if report.collection is not None:
            hub.add_to_collection(client, report.collection, name)
    except HubError as error:
        if made is None:
            raise
        error.message = f"the commit {commit[:12]} is made; then: {error.message}"
        raise
    if made is None:
        return report
    changes = {"commit": commit, "commit_url": f"{report.url}/commit/{commit}", "pull_request_url": made.pull_request}
    return report.model_copy(update=changes)


def _version() -> str:
    return installed_versions(("llmcompress",))["llmcompress"]
