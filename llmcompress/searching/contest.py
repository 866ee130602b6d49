"""The plan and what is as small, made and scored on the same windows, and which of them is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.artifact import staging
from llmcompress.compression.assembly import FinishedWeights, assemble
from llmcompress.compression.compress import compress
from llmcompress.compression.layers import layer_table
from llmcompress.compression.output import inputs
from llmcompress.compression.preparation import CompressOptions
from llmcompress.data.protocols import EvaluationWindows
from llmcompress.evaluation.measurement import ModelOnDevice, score_at_once
from llmcompress.evaluation.scoring import Feed, recurrent_chunk
from llmcompress.evaluation.statistics import TokenScores, divergence
from llmcompress.graph.device import properties_of
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.layout import weight_bytes
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.report.compression import CompressionReport
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import DivergenceRecord
from llmcompress.searching.candidates import Table
from llmcompress.searching.crew import Crew, loaded_there
from llmcompress.searching.plans import Rival, plan_recipe, rivals
from llmcompress.searching.shelf import OnShelf, Shelf
from llmcompress.searching.solver import Plan, total_bytes
from llmcompress.spec import Access, Recipe
from llmcompress.spec.search import SearchSpec
from llmcompress.system.progress import Reporter

if TYPE_CHECKING:
    from llmcompress.data import CalibrationWindows
    from llmcompress.evaluation.measurement import Scored

DEVICE = "CPU"
AT_ONCE = 4
"""Plans that are scored together, for which the original runs once."""
ROOM_BYTES = 64
"""For each weight, that a file's shapes and padding may differ by."""


class Entrant(NamedTuple):
    """A way to compress the model, on disk and scored."""

    name: str
    recipe: Recipe
    size_bytes: int
    scored: Scored

    def lost(self, confidence: float) -> DivergenceRecord:
        """Against the original."""
        return divergence(self.scored.scores, confidence)


class Planned(NamedTuple):
    """A plan, and the whole file that it makes."""

    plan: Plan
    recipe: Recipe
    directory: Path
    size_bytes: int
    max_bytes: int
    """What a rival's file may take: the limit, or as much as the plan's."""


class Calibrated(NamedTuple):
    """What candidates by GPTQ are made by, and where they are kept."""

    windows: CalibrationWindows
    shelf: Shelf


class Output(NamedTuple):
    """Where a model goes, and with what."""

    directory: Path
    overwrite: bool = True
    tokenizer: bool = False
    offline: bool = False


class Contest(NamedTuple):
    """What contenders are scored on."""

    windows: EvaluationWindows
    spec: SearchSpec
    """How they are fed."""
    logits_dir: Path
    """Where the original's logits wait for the next ones on these windows."""


class Workshop(NamedTuple):
    """The original, and where contenders are made and scored."""

    loaded: LoadedModel
    spec: SearchSpec
    place: Path
    looked_at: EvaluationWindows
    held_out: EvaluationWindows
    calibrated: Calibrated | None
    progress: Reporter
    crew: Crew | None = None
    """Machines that measure along."""

    def make(self, name: str, recipe: Recipe) -> tuple[Path, int]:
        """Write a contender; returns its directory and the size of its weights' file."""
        output = Output(self.place / name)
        self.write({}, recipe, output)
        return output.directory, weight_bytes(output.directory)

    def write(self, plan: Plan, recipe: Recipe, output: Output) -> CompressionReport:
        """Write what a recipe makes; where it is a plan's, what GPTQ made of its weights comes from the shelf."""
        by_gptq = {name: each.format for name, each in plan.items() if each.format.method == "gptq"}
        if self.calibrated is None or not by_gptq:
            return compress(
                self.loaded,
                recipe,
                output.directory,
                offline=output.offline,
                tokenizer=output.tokenizer,
                overwrite=output.overwrite,
                progress=self.progress,
            )
        constants = [layer.name for layer in layer_table(self.loaded.model) if parameter_name(layer.name) in by_gptq]
        names = {each: (parameter_name(each), by_gptq[parameter_name(each)]) for each in constants}
        weights = OnShelf(self.calibrated.shelf, names)
        sources = inputs(self.loaded.source, recipe)
        with staging(output.directory, overwrite=output.overwrite, inputs=sources) as stage:
            access = Access(offline=output.offline)
            options = CompressOptions(stage.scratch_dir(), stage.target, access, output.tokenizer)
            finished = FinishedWeights(weights, self.calibrated.windows.record)
            return assemble(self.loaded, recipe, finished, stage, options, self.progress)

    def planned(self, plan: Plan, table: Table, output: Output) -> Planned:
        """Write a plan; what its file takes is its limit as well."""
        recipe = plan_recipe(plan, table, self.spec.calibration)
        self.write(plan, recipe, output)
        size_bytes = weight_bytes(output.directory)
        return Planned(plan, recipe, output.directory, size_bytes, size_bytes)

    @property
    def at_once(self) -> int:
        """Plans that are scored together."""
        return AT_ONCE * (self.crew.num_machines if self.crew else 1)

    def score(self, directories: Sequence[Path], windows: EvaluationWindows) -> tuple[Scored, ...]:
        """Score contenders in exact execution against the original, which runs once on each machine."""
        contest = Contest(windows, self.spec, self.place / "logits")
        if self.crew is None or len(directories) == 1:
            return score_contenders(self.loaded, directories, contest, self.progress)
        shares = self.crew.shares(directories)
        calls = [{"directories": share, "contest": contest} for share in shares]
        found = self.crew.carry_out("measure", score_there, calls, self.progress)
        by_directory = {
            directory: scored
            for share, of_share in zip(shares, found, strict=True)
            for directory, scored in zip(share, of_share, strict=True)
        }
        return tuple(by_directory[each] for each in directories)


def score_contenders(
    loaded: LoadedModel, directories: Sequence[Path], contest: Contest, progress: Reporter
) -> tuple[Scored, ...]:
    """Score artifacts against the original in exact execution.

    Args:
        loaded: The original.
        directories: Of artifacts.
        contest: What on.
        progress: Told of windows.
    """
    exact = properties_of(DEVICE, "pinned")
    models = [ModelOnDevice(load(each, tokenizer=False).reading_text(), DEVICE, exact) for each in directories]
    reference = ModelOnDevice(loaded.reading_text(), DEVICE, exact)
    chunk = recurrent_chunk(None, [loaded]) or contest.spec.evaluation().effective_chunk
    return score_at_once(models, reference, Feed(contest.windows, chunk), progress, logits_dir=contest.logits_dir)


def score_there(
    *,
    source: str,
    access: Access,
    directories: Sequence[Path],
    contest: Contest,
    progress: Reporter,
    logs: object,
) -> tuple[Scored, ...]:
    """As ``score_contenders``, on another machine."""
    found = score_contenders(loaded_there(source, access, progress), directories, contest, progress)
    for each in found:
        each.cache.forget()
    return found


def contenders(shop: Workshop, table: Table, planned: Planned) -> tuple[Entrant, list[tuple[Entrant, Rival]]]:
    """The plan and its rivals of no more bytes, scored on the held-out windows together."""
    made = list(_fitting(shop, table, planned))
    scored = shop.score([planned.directory, *(directory for _, directory, _ in made)], shop.held_out)
    plan = Entrant("searched", planned.recipe, planned.size_bytes, scored[0])
    others = [
        (Entrant(rival.name, rival.recipe, size, found), rival)
        for (rival, _, size), found in zip(made, scored[1:], strict=True)
    ]
    for each in scored:
        each.cache.forget()
    return plan, others


def _fitting(shop: Workshop, table: Table, planned: Planned) -> Iterator[tuple[Rival, Path, int]]:
    # The file's rest is a little different for each; what is larger after all is left out.
    others = planned.size_bytes - total_bytes(planned.plan) - ROOM_BYTES * len(planned.plan)
    fitting = rivals(table, planned.max_bytes - others, shop.spec.calibration)
    for number, rival in enumerate(fitting):
        directory, size_bytes = shop.make(f"rival-{number}", rival.recipe)
        if size_bytes <= planned.max_bytes:
            yield rival, directory, size_bytes


def decide(plan: Entrant, others: Sequence[Entrant], confidence: float) -> tuple[Entrant, Estimate | None, str]:
    """The plan where it beats every other of no more bytes beyond noise, else the best of these.

    Returns:
        What is written, the gain over the best other, window by window, and why.
    """
    if not others:
        return plan, None, "no uniform format is as small"
    rival = min(others, key=lambda each: each.lost(confidence).kl_divergence.value)
    gain = gain_over(plan.scored, rival.scored, confidence)
    if gain.low is not None and gain.low > 0:
        return plan, gain, f"it loses less than {rival.name} beyond noise"
    return rival, gain, f"the plan does not lose less than {rival.name} beyond noise"


def gain_over(ours: Scored, theirs: Scored, confidence: float) -> Estimate:
    """The KL divergence that the others lose more, on the same tokens."""
    difference = theirs.scores.values["kl"] - ours.scores.values["kl"]
    return TokenScores({"gain": difference}, ours.scores.clusters).mean("gain", confidence)
