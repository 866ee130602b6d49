"""Which files leave a directory: those of the manifest, reports of these very bytes, and the card; nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from llmcompress import hub
from llmcompress.artifact import MANIFEST, REPORTS, Measurements, read_manifest
from llmcompress.errors import ArtifactError, GateError, SecurityError, UsageError
from llmcompress.hub import Outgoing, check_repo_id, current_token
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import Check
from llmcompress.system.progress import Reporter, silent

CARD = "README.md"

# Larger files go by their path; the Hub stores them as large files in any case.
_READ_AT_ONCE_BYTES = 16 << 20
_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
_NOT_SEARCHED = (".bin",)


def model_files(directory: Path, measured: Measurements) -> tuple[dict[str, Outgoing], dict[str, str]]:
    """What leaves besides the card, by name, and the reports that stay, each with the reason.

    To be called after the directory was verified against its manifest.

    Raises:
        SecurityError: a file holds an access token.
    """
    files = {
        record.path: _outgoing(directory / record.path, record.size_bytes, record.sha256)
        for record in measured.manifest.files
    }
    stay = dict(measured.unused)
    for name in sorted({MANIFEST, *REPORTS} - {CARD}):
        path = directory / name
        if name in stay or not path.is_file():
            continue
        content = path.read_bytes()
        if name != MANIFEST and _manifest_hash(content) != measured.manifest_sha256:
            stay[name] = "it was not measured on these bytes"
            continue
        files[name] = outgoing_bytes(content)
    for name, file in files.items():
        if not name.endswith(_NOT_SEARCHED):
            require_no_token(name, file.content if isinstance(file.content, bytes) else file.content.read_bytes())
    return files, stay


def outgoing_bytes(content: bytes) -> Outgoing:
    """A file whose bytes are in memory."""
    return Outgoing(content, len(content), hashlib.sha256(content).hexdigest())


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
    """The card for the repository, if the directory's README.md is none or the current one.

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
            hint="`llmcompress card DIR` writes the current one (--overwrite), --keep-card pushes this one as it is",
        )
    return published


def kept_card(directory: Path) -> str:
    """The README.md that is there, whoever wrote it. Raises UsageError where there is none."""
    there = _read_card(directory)
    if there is None:
        raise UsageError("there is no README.md to keep", where=str(directory), hint="leave --keep-card out")
    return there


def _read_card(directory: Path) -> str | None:
    path = directory / CARD
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise UsageError(
            "is no text in UTF-8", where=str(path), hint=f"write it anew: llmcompress card {directory}"
        ) from None


def _outgoing(path: Path, size_bytes: int, sha256: str) -> Outgoing:
    return Outgoing(path.read_bytes() if size_bytes <= _READ_AT_ONCE_BYTES else path, size_bytes, sha256)


def _manifest_hash(content: bytes) -> str | None:
    """The hash that a report carries; None for what is no report of ours."""
    try:
        data = json.loads(content)
    except ValueError:
        return None
    if not isinstance(data, dict):
        return None
    model = data.get("model")
    found = data.get("manifest_sha256") or (model.get("manifest_sha256") if isinstance(model, dict) else None)
    return found if isinstance(found, str) else None


_LONGEST = 96


def repository_name(directory: Path, manifest: CompressionReport, given: str | None, account: str) -> str:
    """``NAMESPACE/NAME`` of what was given, or ``ACCOUNT/BASE-RECIPE-ov``, as models for OpenVINO are named.

    The base is the source's name on the Hub; of a local source it is the output directory's.

    Raises:
        UsageError: that is no Hub id.
    """
    if given is not None:
        return check_repo_id(given if "/" in given else f"{account}/{given}")
    ending = f"-{manifest.recipe.name}-ov"
    source = manifest.provenance.id
    base = source.rpartition("/")[2] if source else directory.resolve().name
    name = base if base.endswith(ending) else base + ending
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or len(name) > _LONGEST or ".." in name or "--" in name:
        raise UsageError(
            f"{name!r} cannot be the name of a repository", where=str(directory), hint="give one: NAMESPACE/NAME"
        )
    return check_repo_id(f"{account}/{name}")


# Thresholds below which a value must stay; the others must be reached.
_UPPER = frozenset({"max_kl", "max_perplexity_increase"})


def require_gate(measured: Measurements, *, where: str) -> None:
    """Refuse a model whose gate is not passed, or was not judged.

    A failed check of any evaluation of these bytes counts, also where the recipe has no gate.

    Raises:
        GateError: names the checks.
    """
    thresholds = measured.manifest.recipe.gate.model_dump(exclude_none=True) if measured.manifest.recipe.gate else {}
    evaluation = measured.evaluation
    judge = "llmcompress eval DIR --reference ORIGINAL judges it; --force pushes it all the same"
    if evaluation is None:
        if thresholds:
            raise GateError(
                f"the recipe's gate ({_words(thresholds)}) was not judged{_why(measured)}", where=where, hint=judge
            )
        return
    failed = [check for check in evaluation.gate.checks if check.passed is False]
    if failed or evaluation.gate.passed is False:
        raise GateError(
            f"the gate is not passed: {'; '.join(f'{check.name}: {check.value}' for check in failed)}",
            where=where,
            hint="compress with a recipe that keeps more, or --force pushes it all the same, with the verdict",
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


def _why(measured: Measurements) -> str:
    reason = measured.unused.get("eval.json")
    return f"; eval.json is not used: {reason}" if reason else ""


def fetch_artifact(
    repo_id: str, *, revision: str | None = None, offline: bool = False, progress: Reporter = silent
) -> Path:
    """Bring the files of a pushed artifact and its reports into the Hugging Face cache; files of others stay there.

    Returns:
        The snapshot's directory, of one commit.

    Raises:
        ArtifactError: there is no manifest of ours, or a file that it lists is not there.
        UsageError, HubError, SecurityError: as ``hub.listing`` and ``hub.fetch``.
    """
    found = hub.listing(repo_id, revision, offline=offline)
    names = {file.path for file in found.files}
    if MANIFEST not in names:
        raise ArtifactError(
            f"is no llmcompress artifact: it has no {MANIFEST}",
            where=repo_id,
            hint="give the id of one that was pushed",
        )
    directory = hub.fetch(found, [MANIFEST]).path
    listed = [record.path for record in read_manifest(directory).files]
    missing = [name for name in listed if name not in names]
    if missing:
        raise ArtifactError(
            f"files of its manifest are not there: {', '.join(missing[:5])}",
            where=repo_id,
            hint="push it again, or take another revision",
        )
    hub.fetch(found, [*listed, *sorted(REPORTS & names)], progress=progress)
    return directory
