"""What is done already, read from the output directory: an artifact and its reports say themselves what they answer.

Each function returns why a step has to be done, in a few words, or None where nothing is to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from llmcompress.artifact import MANIFEST, read_manifest, read_measurements, verify, write_errors
from llmcompress.errors import ArtifactError
from llmcompress.loaders.environments import versions_for
from llmcompress.loaders.loaded_model import ADAPTER_FOLDER, source_files
from llmcompress.loaders.source import Source
from llmcompress.report.benchmark import BenchReport
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import BENCH_REPORT, CARD, EVAL_REPORT
from llmcompress.report.record import CalibrationRecord, FileRecord, Provenance
from llmcompress.spec import BenchSpec, EvalSpec, Gate, Recipe, TuneSpec
from llmcompress.spec.dataset import AUTO, BUNDLED, WIKITEXT
from llmcompress.spec.plan import Evaluation, Tracker
from llmcompress.spec.pruning import with_num_layers
from llmcompress.spec.search import SearchSpec
from llmcompress.spec.training import with_num_steps
from llmcompress.system.cache import content_key
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_BYTES
from llmcompress.system.files import replace_file, short_name
from llmcompress.system.json_file import noted

SpecT = TypeVar("SpecT", EvalSpec, TuneSpec, SearchSpec)


class Original:
    """A source, to be compared with what artifacts say of theirs; its files are hashed when first asked for."""

    def __init__(self, found: Source) -> None:
        self.source = found

    @cached_property
    def _files(self) -> tuple[FileRecord, ...]:
        return source_files(self.source)

    def is_of(self, provenance: Provenance) -> bool:
        """Whether the provenance is of these bytes; a Hub source is known by its commit."""
        found, adapter, stated = self.source, self.source.adapter, provenance.adapter
        if provenance.trust_remote_code != found.trust_remote_code:
            return False
        if (provenance.id, provenance.revision) != (found.id, found.revision):
            return False
        if (adapter and (adapter.id, adapter.revision)) != (stated and (stated.id, stated.revision)):
            return False
        # What the Hub has is known by its commit.
        of_hub = {False: found.id is not None, True: adapter is None or adapter.id is not None}
        local = tuple(file for file in provenance.files if not of_hub[file.path.startswith(ADAPTER_FOLDER)])
        return local == self._files


def compress_reason(
    directory: Path,
    recipe: Recipe,
    original: Original,
    texts: Callable[[], dict[str, CalibrationRecord]] | None = None,
) -> str | None:
    """Compare an artifact with what compressing now would give.

    Args:
        directory: Where the artifact is, if it is.
        recipe: What it has to be made by.
        original: What it has to be made from.
        texts: Gives the windows that the recipe's texts have now; None: the texts are taken to be the same.
    """
    if not (directory / MANIFEST).is_file():
        return "not made yet"
    try:
        manifest = read_manifest(directory)
    except ArtifactError:
        return "its manifest cannot be read"
    wanted = recipe.portable()
    if recipe.training is not None and recipe.training.budget_s is not None and manifest.training is not None:
        if manifest.training.budget_s != recipe.training.budget_s:
            return "the time for training changed"
        wanted = with_num_steps(wanted, manifest.training.num_steps or 0)
    if recipe.pruning is not None and recipe.pruning.speedup is not None and manifest.pruning is not None:
        if manifest.pruning.speedup != recipe.pruning.speedup:
            return "the speed that pruning is for changed"
        wanted = with_num_layers(wanted, len(manifest.pruning.layers))
    if manifest.recipe != wanted:
        return "the recipe changed"
    if (changed := _origin_reason(manifest, original)) is not None:
        return changed
    if texts is not None:
        for name, record in texts().items():
            if manifest.texts.get(name) != record:
                return f"the {name} text changed"
    return None if verify(directory).ok else "damaged"


def search_reason(directory: Path, spec: SearchSpec, original: Original) -> str | None:
    """Compare an artifact and its ``search.json`` with what searching now is asked for; texts are taken to be the same.

    Args:
        directory: Where the artifact is, if it is.
        spec: Of the search.
        original: What it has to be made from.
    """
    if not (directory / MANIFEST).is_file():
        return "not made yet"
    try:
        found = read_measurements(directory)
    except ArtifactError:
        return "its manifest cannot be read"
    if found.search is None:
        return "not searched yet"
    asked = as_reported(spec, found.search.text.dataset)
    asked = asked.model_copy(update={"calibration": spec.calibration and spec.calibration.portable()})
    if found.search.spec != asked:
        return "the search changed"
    if (changed := _origin_reason(found.manifest, original)) is not None:
        return changed
    return None if verify(directory).ok else "damaged"


def _origin_reason(manifest: CompressionReport, original: Original) -> str | None:
    versions = versions_for(original.source, PACKAGES_THAT_DECIDE_BYTES)
    changed = sorted(name for name in versions if manifest.environment.versions.get(name) != versions[name])
    if changed:
        return f"another version of {changed[0]}"
    is_alone = manifest.provenance.language_model_of is not None
    same = original.is_of(manifest.provenance) and is_alone == original.source.text_only
    return None if same else "the model changed"


def evaluate_reason(
    directory: Path, evaluation: Evaluation, gate: Gate, original: Original, token_ids_sha256: Callable[[], str] | None
) -> str | None:
    """Compare ``eval.json`` with what the plan asks.

    Args:
        directory: A complete artifact.
        evaluation: What is asked.
        gate: The plan's thresholds.
        original: What the reference has to be.
        token_ids_sha256: Gives the hash of the tokens that the text has now; None: the text is taken to be the same.
    """
    measured = read_measurements(directory)
    report = measured.evaluation
    if report is None:
        return "not evaluated yet"
    if not answers(report, evaluation):
        return "the evaluation changed"
    if report.reference is None or not original.is_of(report.reference.provenance):
        return "the model changed"
    if token_ids_sha256 is not None and report.text.token_ids_sha256 != token_ids_sha256():
        return "the text changed"
    required = {check.name: check.required for check in report.gate.checks}
    asked = {**measured.manifest.recipe.gate.model_dump(), **gate.model_dump(exclude_none=True)}
    judged = all(value is None or required.get(name) == value for name, value in asked.items())
    return None if judged else "the gate changed"


def answers(report: EvalReport, evaluation: Evaluation) -> bool:
    """Whether a report is of the spec and holds all else that is asked."""
    how = report.divergence.reference_scores if report.divergence is not None else None
    generations = report.generations.num_prompts if report.generations else 0
    return (
        report.spec == _with_pictures_by_name(as_reported(evaluation.spec(), report.text.dataset))
        and _backends_measured(report, evaluation)
        and evaluation.reference_scores in ("auto", how)
        and (not evaluation.noise_floor or report.noise_floor is not None)
        and (not evaluation.split_damage or bool(report.split_damage))
        # A text with fewer windows gives fewer prompts.
        and generations == min(evaluation.num_generations, report.text.num_windows)
    )


def _with_pictures_by_name(spec: EvalSpec) -> EvalSpec:
    return spec.model_copy(update={"pictures": spec.pictures_name})


def _backends_measured(report: EvalReport, evaluation: Evaluation) -> bool:
    """Whether each form of the graph that is asked for was scored, or has a reason why it was not."""
    measured = {record.backend for record in report.backends} or {"stateful"}
    missing = set(evaluation.backends(is_ir=True)) - measured
    return not missing or (missing == {"paged"} and report.paged_refusal is not None)


def as_reported(spec: SpecT, dataset: str) -> SpecT:
    """A spec as a report on ``dataset`` holds it: of a local text the name alone, and what stands for ``auto``."""
    path = spec.dataset_path()
    if path is not None:
        return spec.model_copy(update={"dataset": path.name})
    stands = spec.dataset == AUTO and dataset in (WIKITEXT, BUNDLED)
    return spec.model_copy(update={"dataset": dataset}) if stands else spec


def benchmark_reason(directory: Path, spec: BenchSpec) -> str | None:
    """Compare ``bench.json`` with what the plan asks."""
    runs = read_measurements(directory).benchmarks
    if not runs:
        return "not benchmarked yet"
    return None if any(run.spec == spec for run in runs) else "the benchmark changed"


def card_reason(directory: Path) -> str | None:
    """Say whether the card is older than something that it describes."""
    card = directory / CARD
    if not card.is_file():
        return "no card yet"
    told = [path.stat().st_mtime_ns for name in (EVAL_REPORT, BENCH_REPORT) if (path := directory / name).is_file()]
    # The manifest's own time may be that of an older file: a rename keeps it.
    return None if max(told, default=0) <= card.stat().st_mtime_ns else "the reports changed"


def push_reason(directory: Path, repo_id: str, *, private: bool) -> str | None:
    """Compare what was pushed last with what is there now."""
    pushed = noted(_push_file(directory))
    if not pushed:
        return "not pushed yet"
    return None if pushed == _pushed(directory, repo_id, private) else "something changed since it was pushed"


def remember_push(directory: Path, repo_id: str, *, private: bool) -> None:
    """Note what was pushed, next to the directory, in which one more file would be unknown to the manifest."""
    with write_errors(_push_file(directory)):
        replace_file(_push_file(directory), json.dumps(_pushed(directory, repo_id, private)).encode())


def log_reason(directory: Path, tracker: Tracker) -> str | None:
    """Say whether there are figures that were not logged yet."""
    return "not logged yet" if unlogged(directory, tracker) else None


def unlogged(directory: Path, tracker: Tracker) -> tuple[EvalReport | BenchReport, ...]:
    """The newest reports of an artifact that were not logged there."""
    found = read_measurements(directory)
    known = _logged(directory).get(tracker, [])
    reports = (found.evaluation, found.benchmark)
    return tuple(report for report in reports if report is not None and _key(report) not in known)


def remember_logged(directory: Path, tracker: Tracker, report: EvalReport | BenchReport) -> None:
    """Note that a report was logged, next to the directory."""
    known = _logged(directory)
    known[tracker] = [*known.get(tracker, []), _key(report)]
    with write_errors(_log_file(directory)):
        replace_file(_log_file(directory), json.dumps(known).encode())


def _logged(directory: Path) -> dict[str, list[str]]:
    known = noted(_log_file(directory))
    return {tracker: list(map(str, keys)) for tracker, keys in known.items() if isinstance(keys, list)}


def _key(report: EvalReport | BenchReport) -> str:
    return content_key({"report": report.model_dump(mode="json")})


def _log_file(directory: Path) -> Path:
    return directory.with_name(f".{short_name(directory.name)}.log.json")


def gate_failures(directory: Path) -> tuple[str, ...]:
    """What ``eval.json`` says the artifact failed or could not be judged by, for people; empty: shippable."""
    report = read_measurements(directory).evaluation
    if report is None or report.gate.passed:
        return ()
    wanted = [check for check in report.gate.checks if check.passed is False]
    wanted += [check for check in report.gate.checks if check.passed is None and check.name in Gate.model_fields]
    return tuple(
        f"{check.name}: "
        + (f"{check.value}, required {check.required}" if check.passed is False else f"not decided, {check.detail}")
        for check in wanted
    )


def _push_file(directory: Path) -> Path:
    return directory.with_name(f".{short_name(directory.name)}.push.json")


def _pushed(directory: Path, repo_id: str, private: bool) -> dict[str, object]:
    names = (MANIFEST, EVAL_REPORT, BENCH_REPORT, CARD)
    hashes = [
        hashlib.sha256((directory / name).read_bytes()).hexdigest() if (directory / name).is_file() else None
        for name in names
    ]
    return {"repo_id": repo_id, "private": private, "content": content_key({"files": hashes})}
