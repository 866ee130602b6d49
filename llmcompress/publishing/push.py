"""The steps of a push: everything that can be refused is refused before the first byte leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from llmcompress.artifact import read_measurements, replace_report, require_verified
from llmcompress.errors import HubError, UsageError
from llmcompress.hub import upload
from llmcompress.hub.account import current_token, find_account, require_rights
from llmcompress.hub.client import HubClient
from llmcompress.publishing import outgoing
from llmcompress.publishing.base_model import Stated
from llmcompress.publishing.changes import find_changes, pushed_files, repository_name, require_place
from llmcompress.publishing.gate import require_gate
from llmcompress.report.file_names import CARD
from llmcompress.report.push import PushReport
from llmcompress.spec.access import check_revision
from llmcompress.system.environment import installed_versions
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.progress import Progress, Reporter

UNKNOWN_ACCOUNT = "YOUR-ACCOUNT"
"""In the name that a dry run shows where nobody is logged in."""

CardRenderer = Callable[[Path, str | None], str]


@library_call
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
    base_model: str | None = None,
    license: str | None = None,
    collection: str | None = None,
    tags: Sequence[str] = (),
    revision: str | None = None,
    progress: ProgressOption = "auto",
    render: CardRenderer | None = None,
) -> PushReport:
    """Publish an output directory of ``compress`` in one commit, and compare what the Hub then holds by hash.

    What leaves: the files of the manifest, reports that were measured on these bytes, and the card, which is written
    where there is none. The login and its rights are checked first; a dry run goes without. The token comes from
    ``HF_TOKEN`` or the login.

    Args:
        directory: With its manifest; verified before anything leaves.
        repo_id: ``NAMESPACE/NAME`` or ``NAME``; by default the account's ``BASE-RECIPE-ov``. Made if it is absent.
        private: For a repository that is made; None leaves it to the account's settings.
        create_pr: Propose it as a pull request to an existing repository instead.
        dry_run: Do all checks and send nothing.
        force: Push although the gate is not passed or not judged. Reports and card leave with the model and say so.
        delete_others: Remove every file of the repository that is not of this model.
        keep_card: Push the README.md that is there, whoever wrote it.
        base_model: Hub id of the base, for the card.
        license: The Hub's id of the license, for the card.
        collection: Slug of a collection to put the model into.
        tags: Git tags for the commit.
        revision: An existing branch; by default main.
        progress: Given the bytes that were sent.
        render: Directory and Hub id -> card; by default ``llmcompress.publishing.card.render_card``.

    Raises:
        ArtifactError: the directory is not what its manifest says.
        GateError: the gate is not passed or not judged, or the model was never evaluated. Without a threshold of the
            recipe or the evaluation, at most 0.1 nats of KL divergence, 10 % more perplexity and no failed probe count
            as passed.
        UsageError: arguments that exclude each other, or a README.md that is not the current card.
        SecurityError: a file holds an access token.
        HubError: no login, no rights, a conflict, or the Hub cannot be reached. There is one commit or none.
    """
    progress = reporter(progress)
    directory = Path(directory)
    for tag in tags:
        check_revision(tag)
    branch = check_revision(revision or "main")
    if create_pr and tags:
        raise UsageError("a pull request is no commit of the model yet: it cannot be tagged", hint="leave `tags` out")
    if create_pr and private is not None:
        raise UsageError("a pull request goes to a repository that is there", hint="leave `private` out")
    if keep_card and (base_model or license):
        raise UsageError(
            "`base_model` and `license` go onto a card that is written, and this one is kept",
            hint="write them into the README.md, or leave `keep_card` out",
        )
    stated = Stated(base_model, license).checked()
    progress(Progress("verify", 0, 0))
    require_verified(directory)
    measured = read_measurements(directory)
    forced = require_gate(measured, where=str(directory), force=force)
    files = outgoing.model_files(directory, measured)
    sent = _Sent(progress)
    client = HubClient(sum(file.size_bytes for file in files.values()), on_sent=sent.add)
    progress(Progress("look at the Hub", 0, 0))
    # A look at what would leave needs no account; what is private is then not seen.
    who = None if dry_run and current_token() is None else find_account(client)
    name = repository_name(directory, measured.manifest, repo_id, who.name if who else UNKNOWN_ACCOUNT)
    if who is not None:
        require_rights(who, name, create_pr=create_pr)
    if keep_card:
        card = own = outgoing.kept_card(directory)
    else:
        own, published = ((render or _renderer(stated))(directory, place) for place in (None, name))
        card = outgoing.current_card(directory, own, published)
    outgoing.require_no_token(CARD, card.encode())
    files[CARD] = upload.Outgoing.of_bytes(card.encode())
    files |= outgoing.benchmark_scores(measured, upload.page(name))
    unknown = name.startswith(f"{UNKNOWN_ACCOUNT}/")
    before = upload.Remote(name, branch, None, False, {}) if unknown else upload.fetch_state(client, name, branch)
    changes = find_changes(client, before, files, delete_others=delete_others)
    require_place(client, changes, private=private, create_pr=create_pr, tags=tags, collection=collection)
    new = changes.before.commit is None
    report = PushReport(
        repo_id=name,
        url=upload.page(name),
        dry_run=dry_run,
        created=new,
        private=private if new else changes.before.private,
        commit=None,
        files=pushed_files(changes),
        deleted=tuple(changes.delete),
        kept=tuple(changes.kept),
        left_out=dict(measured.unused),
        forced=forced,
        sent_bytes=sum(files[path].size_bytes for path in changes.differing),
        tags=tuple(tags),
        collection=collection,
        card=card,
    )
    if dry_run or who is None:
        return report
    if not (directory / CARD).is_file():
        replace_report(directory, CARD, own.encode())
    if new:
        upload.create_repo(client, name, private=private)
        changes = find_changes(client, upload.fetch_state(client, name, branch), files, delete_others=delete_others)
    sent.total = report.sent_bytes
    message = f"Upload {measured.manifest.recipe.name} model made with llmcompress {_version()}"
    commit = _commit(client, changes, who.name, message, create_pr=create_pr) if changes.any else None
    return _finished(client, changes, commit, report)


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


def _renderer(stated: Stated) -> CardRenderer:
    from llmcompress.publishing.card import render_card

    return lambda directory, repo_id: str(render_card(directory, repo_id=repo_id, **stated._asdict()))


def _commit(client: HubClient, changes: upload.Changes, author: str, message: str, *, create_pr: bool) -> upload.Commit:
    if create_pr:
        same = upload.open_pull_request(client, changes, author)
        if same is not None:
            return same
    return upload.make_commit(client, changes, message, create_pr=create_pr)


def _finished(
    client: HubClient, changes: upload.Changes, commit: upload.Commit | None, report: PushReport
) -> PushReport:
    """Compare what the Hub holds now, by hash; then tags and collection."""
    name, sha = report.repo_id, commit.sha if commit else str(changes.before.commit)
    try:
        wrong = changes.missing_in(upload.fetch_state(client, name, sha))
        if wrong:
            raise HubError(
                f"the Hub does not hold what was sent: {', '.join(wrong[:5])}", where=name, hint="run it again"
            )
        if report.tags:
            known = upload.tags_of(client, name)
            upload.add_tags(client, name, sha, [tag for tag in report.tags if known.get(tag) != sha])
        if report.collection is not None:
            upload.add_to_collection(client, report.collection, name)
    except HubError as error:
        if commit is not None:
            error.message = f"the commit {sha[:12]} is made; then: {error.message}"
        raise
    if commit is None:
        return report
    made = {"commit": sha, "commit_url": f"{report.url}/commit/{sha}", "pull_request_url": commit.pull_request}
    return report.model_copy(update=made)


def _version() -> str:
    return installed_versions(("llmcompress",))["llmcompress"]
