"""One artifact's tuned twin: its state, and the task that makes it.

The search's report lies next to what was tuned, as its ``tune.json``. Where settings were found that a model can hold,
the twin is that artifact with them; where the defaults stay, there is none, and the report says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llmcompress.artifact import MANIFEST, read_manifest, read_measurements, remove_artifact, verify
from llmcompress.errors import ArtifactError, GateError
from llmcompress.loaders.resolving import resolve
from llmcompress.runner.durations import remember
from llmcompress.runner.measuring import PlannedArtifact, needed_bytes
from llmcompress.runner.state import Original, as_reported
from llmcompress.spec import Gate
from llmcompress.spec.plan import Tuning
from llmcompress.system.environment import cpu_name
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Reporter, silent
from llmcompress.tuning import apply_tuning, tuning_origin
from llmcompress.tuning.tune import tune


def tune_reason(
    directory: Path, tuning: Tuning, gate: Gate, original: Original, token_ids_sha256: Callable[[], str] | None
) -> str | None:
    """Compare an artifact's ``tune.json`` with what the plan asks; arguments and result as of ``evaluate_reason``."""
    found = read_measurements(directory)
    report = found.tuning
    if report is None:
        return "not tuned yet"
    asked_spec = as_reported(tuning.spec(), report.text.dataset)
    if report.spec != asked_spec or report.reference.itself != (tuning.reference == "itself"):
        return "the tuning changed"
    if not report.reference.itself and not original.is_of(report.reference.provenance):
        return "the model changed"
    if token_ids_sha256 is not None and report.text.token_ids_sha256 != token_ids_sha256():
        return "the text changed"
    asked = {**found.manifest.recipe.gate.model_dump(), **gate.model_dump(exclude_none=True)}
    kept = {check.name: check.required for check in report.gate.checks} if report.gate else {}
    return None if kept == {name: value for name, value in asked.items() if value is not None} else "the gate changed"


def apply_reason(directory: Path, tuned: Path) -> str | None:
    """Compare a tuned artifact with what ``tune.json`` chose; why it has to be written, None where it is there.

    Args:
        directory: What was tuned; its ``tune.json`` answers what is asked.
        tuned: The twin.
    """
    report = read_measurements(directory).tuning
    assert report is not None
    if not report.in_model:
        return "an earlier one does not hold" if (tuned / MANIFEST).is_file() else None
    if not (tuned / MANIFEST).is_file():
        return "not applied yet"
    try:
        manifest = read_manifest(tuned)
    except ArtifactError:
        return "its manifest cannot be read"
    if manifest.tuning != tuning_origin(report):
        return "what it was tuned from changed"
    return None if verify(tuned).ok else "damaged"


def kept_defaults(directory: Path) -> str:
    """Why an artifact that was tuned has no twin; nothing where it has one.

    Raises:
        GateError: Not even the defaults are permitted.
    """
    report = read_measurements(directory).tuning
    assert report is not None
    if not report.permitted:
        raise GateError(
            report.reason, where=str(directory), hint="set another max_kl, or take a recipe that loses less"
        )
    return "" if report.in_model else report.reason


def tune_artifact(
    artifact: PlannedArtifact,
    tuned: Path,
    tuning: Tuning,
    gate: Gate,
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
) -> str:
    """Search the settings of an artifact and write its twin; nothing of ours may run at the same time.

    Args:
        artifact: What is tuned; its recipe has the twin's name.
        tuned: Where the twin goes.

    Returns:
        As ``kept_defaults``.

    Raises: what ``tune`` and ``apply_tuning`` raise, and GateError where not even the defaults are permitted.
    """
    directory, recipe, source, access = artifact
    found = resolve(source, access, vision=True)
    started = time.perf_counter()
    reason = tune_reason(directory, tuning, gate, Original(found), None)
    # What another machine found may have no effect on this one.
    if reason is not None or (apply_reason(directory, tuned) and not _found_here(directory)):
        itself = tuning.reference == "itself"
        run_supervised(
            tune,
            {
                "directory": directory,
                "spec": tuning.spec(),
                "reference": None if itself else source,
                "reference_revision": None if itself else access.revision,
                "trust_remote_code": access.trust_remote_code,
                "allow_nonfinite": access.allow_nonfinite,
                "allow_links": access.allow_links,
                "merge_adapter": access.merge_adapter and not itself,
                "max_context": access.max_context,
                "file": None if itself else access.file,
                "offline": access.offline,
                "gate": gate,
            },
            progress=progress,
            logs=logs,
        )
        remember("tune", found, (recipe.portable(), tuning), time.perf_counter() - started)
    kept = kept_defaults(directory)
    if kept:
        remove_artifact(tuned)
    elif apply_reason(directory, tuned) is not None:
        kwargs = {"directory": directory, "output_dir": tuned, "overwrite": True}
        run_supervised(apply_tuning, kwargs, progress=progress, logs=logs)
    return kept


def tuning_bytes(directory: Path) -> int:
    """Predict the memory that tuning an artifact takes at least: in two workers, and where it is scored."""
    return 3 * needed_bytes(directory)


def _found_here(directory: Path) -> bool:
    report = read_measurements(directory).tuning
    return report is not None and report.environment.cpu == cpu_name()
