"""One measurement of one artifact, in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llmcompress.benchmarking.benchmark import benchmark
from llmcompress.errors import ResourceError
from llmcompress.evaluation.artifact_report import judge_again
from llmcompress.evaluation.evaluate import evaluate
from llmcompress.loaders.layout import weight_bytes
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.runner.durations import remember
from llmcompress.runner.state import Original, evaluate_reason
from llmcompress.spec import Access, BenchSpec, Gate, Recipe
from llmcompress.spec.plan import Evaluation
from llmcompress.system.background import available_for
from llmcompress.system.memory import ROOM
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Reporter, silent


class PlannedArtifact(NamedTuple):
    """An artifact of a plan, and what it is made from."""

    directory: Path
    recipe: Recipe
    source: str
    access: Access


def evaluate_artifact(
    artifact: PlannedArtifact,
    evaluation: Evaluation,
    gate: Gate,
    keep_logits_in: Path | None,
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
) -> None:
    """Measure an artifact against its original; where only the gate changed, judge its report again.

    Raises: what ``evaluate`` raises, and ResourceError where the larger of the two does not fit into memory.
    """
    directory, recipe, source, access = artifact
    found = resolve(source, access, vision=True)
    if evaluate_reason(directory, evaluation, gate, Original(found), None) == "the gate changed":
        run_supervised(judge, {"directory": directory, "gate": gate}, progress=progress, logs=logs)
        return
    # Where both do not fit at once, they are measured one after the other.
    _require(max(needed_bytes(directory), int(_weight_bytes(found) * ROOM)), directory)
    started = time.perf_counter()
    run_supervised(
        evaluate,
        {
            "source": directory,
            "spec": evaluation.spec(),
            "reference": source,
            "reference_revision": access.revision,
            "trust_remote_code": access.trust_remote_code,
            "offline": access.offline,
            "allow_nonfinite": access.allow_nonfinite,
            "allow_links": access.allow_links,
            "merge_adapter": access.merge_adapter,
            "max_context": access.max_context,
            "file": access.file,
            "reference_scores": evaluation.reference_scores,
            "keep_logits_in": keep_logits_in,
            "gate": gate,
            "num_generations": evaluation.num_generations,
            "noise_floor": evaluation.noise_floor,
            "split_damage": evaluation.split_damage,
        },
        progress=progress,
        logs=logs,
    )
    remember("evaluate", found, (recipe.portable(), evaluation), time.perf_counter() - started)


def needed_bytes(directory: Path) -> int:
    """Predict the memory that running an artifact takes at least."""
    return int(weight_bytes(directory) * ROOM)


def judge(directory: Path, gate: Gate, *, progress: Reporter) -> None:
    """Judge an artifact's report by other thresholds. For a worker."""
    judge_again(directory, gate)


def benchmark_artifact(
    artifact: PlannedArtifact,
    spec: BenchSpec,
    *,
    progress: Reporter = silent,
    logs: Callable[[str], None] | None = None,
) -> None:
    """Measure how fast an artifact is; nothing of ours may run at the same time.

    Raises: what ``benchmark`` raises, and ResourceError where the model does not fit into memory.
    """
    directory, recipe, source, access = artifact
    _require(needed_bytes(directory), directory)
    started = time.perf_counter()
    allowed = {"trust_remote_code": access.trust_remote_code, "offline": access.offline}
    kwargs = {"sources": [directory], "spec": spec, **allowed}
    run_supervised(benchmark, kwargs, progress=progress, logs=logs)
    remember(
        "benchmark", resolve(source, access, vision=True), (recipe.portable(), spec), time.perf_counter() - started
    )


def _weight_bytes(found: Source) -> int:
    ending = ".bin" if found.layout == "ir" else ".safetensors"
    if found.files is not None:
        # What the Hub lists; of the directory only config.json may be here yet.
        return sum(file.size_bytes for file in found.files.files if file.path.endswith(ending))
    return sum(path.stat().st_size for path in found.path.iterdir() if path.suffix == ending)


def _require(needed: int, directory: Path) -> None:
    available = available_for(needed)
    if needed > available:
        raise ResourceError(
            f"it needs about {needed / 1e9:.2f} GB of memory, {available / 1e9:.2f} GB are available",
            where=str(directory),
            hint="close other programs, or take a machine with more memory",
        )
