"""A directory in, its model card out; and the card as the directory's README.md."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import yaml

from llmcompress.artifact import Measurements, read_measurements, replace_report
from llmcompress.errors import UsageError, WriteError
from llmcompress.publishing.base_model import Stated, find_base
from llmcompress.publishing.content import variables
from llmcompress.publishing.sandbox import render
from llmcompress.report.file_names import BENCH_REPORT, CARD, EVAL_REPORT
from llmcompress.report.readable import Readable
from llmcompress.spec.access import check_repo_id

_MARK = re.compile(r"\n<!-- llmcompress card, sha256 of the text above: ([0-9a-f]{64}) -->\n\Z")
_FRONT_MATTER = re.compile(r"---\n(.*?)^---$", re.DOTALL | re.MULTILINE)


class CardReport(Readable):
    """What became of a card."""

    path: str
    written: bool
    """False: the same card was there already."""
    size_bytes: int
    manifest_sha256: str
    used_reports: tuple[str, ...]
    unused_reports: dict[str, str]
    """Reports that are there and tell of other bytes or cannot be read, each with the reason."""


def render_card(
    directory: str | Path,
    *,
    repo_id: str | None = None,
    template: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
) -> str:
    """Return the model card of an artifact, from its manifest and its reports alone.

    Args:
        directory: An output directory of ``compress``, with the reports that ``evaluate`` and ``benchmark`` put there.
        repo_id: Where it will be published; by default the card speaks of the directory by its name.
        template: A Jinja template of one's own; docs/cards.md describes what it may use.
        base_model: Hub id of the base; by default the source's, or the one that its config.json names.
        license: The Hub's id of the license; by default what the source's own card states.

    Raises:
        ArtifactError: The directory is not an artifact.
        UsageError: ``repo_id`` or ``base_model`` is not a Hub id, ``license`` is no id of a license, or the template
            cannot be rendered.
    """
    stated = Stated(base_model, license).checked()
    return _render(read_measurements(Path(directory)), Path(directory), repo_id, template, stated)


def write_card(
    directory: str | Path,
    *,
    repo_id: str | None = None,
    template: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> CardReport:
    """Write the model card of an artifact as its README.md, in one step.

    An earlier card of ours is replaced if nobody changed it since.

    Args:
        directory: As for ``render_card``, and so are ``repo_id``, ``template``, ``base_model`` and ``license``.
        overwrite: Also replace a README.md that somebody else wrote or changed.

    Raises:
        ArtifactError: The directory is not an artifact.
        UsageError: As ``render_card``, or there is a README.md that is not ours.
        WriteError: The disk refuses; the earlier file is still there.
    """
    directory = Path(directory)
    found = read_measurements(directory)
    content = _render(found, directory, repo_id, template, Stated(base_model, license).checked()).encode()
    path = directory / CARD
    there = _read(path)
    if there is not None and there != content and not overwrite and not _is_ours(there):
        raise UsageError(
            "was written or changed by somebody else: it is left as it is",
            where=str(path),
            hint="`overwrite` replaces it; move it away to keep it",
        )
    if there != content:
        replace_report(directory, CARD, content)
    used = {EVAL_REPORT: found.evaluation, BENCH_REPORT: found.benchmark}
    return CardReport(
        path=str(path),
        written=there != content,
        size_bytes=len(content),
        manifest_sha256=found.manifest_sha256,
        used_reports=tuple(name for name, record in used.items() if record is not None),
        unused_reports=found.unused,
    )


def _render(
    found: Measurements, directory: Path, repo_id: str | None, template: str | Path | None, stated: Stated
) -> str:
    if repo_id is not None:
        check_repo_id(repo_id)
    title = repo_id.rpartition("/")[2] if repo_id else directory.resolve().name
    base = find_base(found.manifest, stated, directory)
    values = variables(found, base, title=title, repo_id=repo_id)
    template = None if template is None else Path(template)
    body = render(values, template)
    if not body.startswith("---\n"):
        body = f"---\n{values['front_matter']}---\n\n{body.lstrip()}"
    elif template is not None:
        _check_front_matter(body, template)
    body = body.rstrip() + "\n"
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f"{body}\n<!-- llmcompress card, sha256 of the text above: {digest} -->\n"


def _check_front_matter(page: str, template: Path) -> None:
    hint = "write {{ front_matter }} between two lines '---', or leave both out"
    found = _FRONT_MATTER.match(page)
    try:
        if found is None:
            raise UsageError("begins with '---' and no second such line", where=str(template), hint=hint)
        data = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UsageError("makes front matter that is not YAML", where=str(template), hint=hint) from None
    if not isinstance(data, dict):
        raise UsageError("makes front matter that is no list of fields", where=str(template), hint=hint)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WriteError(
            f"cannot be replaced: {error.strerror}", where=str(path), hint="move it away, or check its permissions"
        ) from error


def _is_ours(content: bytes) -> bool:
    try:
        # Git on Windows changes the ends of lines.
        text = content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        return False
    mark = _MARK.search(text)
    return mark is not None and hashlib.sha256(text[: mark.start()].encode()).hexdigest() == mark[1]
