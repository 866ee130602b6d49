"""May a model leave, by what was measured; and which files do: the manifest's, reports of these bytes, and the card."""

from __future__ import annotations

import re
from pathlib import Path

from llmcompress.artifact import MANIFEST, REPORTS, Measurements
from llmcompress.errors import GateError, SecurityError, UsageError
from llmcompress.hub.account import current_token
from llmcompress.hub.eval_results import eval_results
from llmcompress.hub.upload import Outgoing
from llmcompress.report.evaluation import Check
from llmcompress.report.file_names import CARD, EVAL_REPORT
from llmcompress.system.command_line import command_line

# Larger files go by their path; the Hub stores them as large files in any case.
_READ_AT_ONCE_BYTES = 16 << 20
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_NOT_SEARCHED = (".bin",)
# Thresholds below which a value must stay; the others must be reached.
_UPPER = frozenset({"max_kl", "max_perplexity_increase"})


def model_files(directory: Path, measured: Measurements) -> dict[str, Outgoing]:
    """What leaves next to the card, by name; reports of other bytes stay.

    To be called after the directory was verified against its manifest.

    Raises:
        SecurityError: a file holds an access token.
    """
    files = {
        record.path: _outgoing(directory / record.path, record.size_bytes, record.sha256)
        for record in measured.manifest.files
    }
    for name in sorted({MANIFEST, *REPORTS} - {CARD} - measured.unused.keys()):
        if (directory / name).is_file():
            files[name] = Outgoing.of_bytes((directory / name).read_bytes())
    for name, file in files.items():
        if not name.endswith(_NOT_SEARCHED):
            require_no_token(name, file.content if isinstance(file.content, bytes) else file.content.read_bytes())
    return files


def benchmark_scores(measured: Measurements, page: str) -> dict[str, Outgoing]:
    """Files in ``.eval_results/`` for the scores that the Hub's leaderboards read, by name."""
    if measured.evaluation is None:
        return {}
    found = eval_results(measured.evaluation, source_url=f"{page}/blob/main/{EVAL_REPORT}")
    return {name: Outgoing.of_bytes(content) for name, content in found.items()}


def require_no_token(name: str, content: bytes) -> None:
    """Refuse to publish an access token of the Hub. Raises SecurityError."""
    token = current_token()
    if _TOKEN.search(content) or (token and token.encode() in content):
        raise SecurityError(
            "it holds an access token of the Hub; nothing was sent",
            where=name,
            hint="revoke that token at https://huggingface.co/settings/tokens, and compress without it in any input",
        )


def current_card(directory: Path, own: str, published: str) -> str:
    """The card for the repository, where the directory's README.md is absent or the current one.

    Args:
        directory: May hold a README.md.
        own: What the directory's card is now.
        published: The same for the repository.

    Raises:
        UsageError: the README.md that is there is neither.
    """
    there = _read_card(directory)
    # Git on Windows changes the ends of lines.
    if there is not None and there.replace("\r\n", "\n") not in (own, published):
        raise UsageError(
            "is not the card that the manifest and the reports give now: it is older, or somebody has changed it",
            where=str(directory / CARD),
            hint="`llmcompress card DIR` writes the current one (--overwrite); `keep_card` pushes this one as it is; "
            "a `base_model` or `license` of the card is given here, too",
        )
    return published


def kept_card(directory: Path) -> str:
    """The README.md that is there, whoever wrote it. Raises UsageError if there is none."""
    there = _read_card(directory)
    if there is None:
        raise UsageError(f"there is no {CARD} to keep", where=str(directory), hint="leave `keep_card` out")
    return there


def _read_card(directory: Path) -> str | None:
    path = directory / CARD
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        again = command_line(["llmcompress", "card"], [str(directory)])
        raise UsageError("is no text in UTF-8", where=str(path), hint=f"write it again: {again}") from None


def _outgoing(path: Path, size_bytes: int, sha256: str) -> Outgoing:
    return Outgoing(path.read_bytes() if size_bytes <= _READ_AT_ONCE_BYTES else path, size_bytes, sha256)


def require_gate(measured: Measurements, *, where: str, force: bool) -> str | None:
    """Refuse a model whose gate is not passed, or was not judged; with ``force`` return what the gate objects.

    A failed check of any evaluation of these bytes counts, also where the recipe has no gate.

    Raises:
        GateError: names the checks.
    """
    try:
        _judge(measured, where)
    except GateError as error:
        if not force:
            raise
        return error.message
    return None


def _judge(measured: Measurements, where: str) -> None:
    thresholds = measured.manifest.recipe.gate.model_dump(exclude_none=True)
    evaluation = measured.evaluation
    judge = "llmcompress eval DIR --reference ORIGINAL judges it; `force` pushes it all the same"
    if evaluation is None:
        if thresholds:
            reason = measured.unused.get(EVAL_REPORT)
            why = f"; {EVAL_REPORT} is not used: {reason}" if reason else ""
            raise GateError(f"the recipe's gate ({_words(thresholds)}) was not judged{why}", where=where, hint=judge)
        return
    failed = [check for check in evaluation.gate.checks if check.passed is False]
    if failed or evaluation.gate.passed is False:
        raise GateError(
            f"the gate is not passed: {'; '.join(f'{check.name}: {check.value}' for check in failed)}",
            where=where,
            hint="compress with a recipe that keeps more, or `force` pushes it all the same, with the verdict",
        )
    checks = {check.name: check for check in evaluation.gate.checks}
    open_ones = {name: value for name, value in thresholds.items() if not _passed(checks.get(name), value)}
    if open_ones or evaluation.gate.passed is None:
        named = _words(open_ones) or ", ".join(check.name for check in checks.values() if check.passed is None)
        raise GateError(f"the gate is not judged in full: {named}", where=where, hint=judge)


def _passed(check: Check | None, threshold: float) -> bool:
    """Whether a check passed that asks for at least as much as the recipe does."""
    if check is None or check.passed is not True or not isinstance(check.required, float | int):
        return False
    return check.required <= threshold if check.name in _UPPER else check.required >= threshold


def _words(thresholds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
