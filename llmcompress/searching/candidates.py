"""What every weight costs in every format: bytes as they are stored, and KL divergence as its actual error predicts."""

from __future__ import annotations

import functools
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.compression.coding import weighted_error, write_codes
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.late_codes import codes_left_for_later
from llmcompress.compression.layers import constants_taken_by, layer_table
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.errors import ResourceError
from llmcompress.graph.integer_weights import IntegerWeight, codes_of, integer_weights
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.report.search import ExpertsRecord
from llmcompress.searching.crew import Crew, loaded_there
from llmcompress.searching.pieces import Piece, routers
from llmcompress.searching.shelf import Shelf, deciding_versions, shelf_of
from llmcompress.spec import Access, WeightCompression
from llmcompress.spec.modes import INT8
from llmcompress.spec.search import Format
from llmcompress.system.environment import threads_of_torch
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import torch

    from llmcompress.compression.nncf.gptq_formats import Made
    from llmcompress.compression.nncf.noted_codes import NotedWeight
    from llmcompress.data import CalibrationWindows
    from llmcompress.searching.sensitivity import Sensitivity


BACKUP = Format("int8_asym", -1)
"""What NNCF gives embeddings and the head beside a format of fewer bits."""


OF_STACKS = ("int4_sym", "int4_asym", "int8_sym", "int8_asym")
"""Modes of stacks of experts that the CPU plugin multiplies by as they are; those of fewer bits it makes floats of."""
REST = "MatMul"
"""In the place of a weight's name: what a rule for this type of operation takes after the rules for names."""


class Candidate(NamedTuple):
    """A weight in a format."""

    weight: str
    """Its name in the checkpoint."""
    format: Format
    num_parameters: int
    size_bytes: int
    kl_divergence: float
    """Predicted, in nats per token."""
    seconds: float = 0.0
    """That a token takes to be multiplied by it, where a search goes by time."""


class Formats(NamedTuple):
    """What weights may take."""

    everywhere: tuple[Format, ...]
    further: tuple[Format, ...]
    """Of those that are looked up and not multiplied."""
    looked_up: frozenset[str]
    """Names of these."""

    def of(self, name: str) -> tuple[Format, ...]:
        """Those of one weight."""
        return (*self.everywhere, *(self.further if name in self.looked_up else ()))

    def by(self, method: str) -> Formats:
        """Those that a method makes."""
        everywhere, further = (
            tuple(each for each in formats if each.method == method) for formats in (self.everywhere, self.further)
        )
        return self._replace(everywhere=everywhere, further=further)


class Growth(NamedTuple):
    """How much more a plan loses than its weights alone do together, where that is much."""

    excess: float = 0.0
    """Of the sum, where it is large."""
    scale: float = 1.0
    """The sum in nats per token at which the excess is half of that."""

    def of_sum(self, alone: float) -> float:
        """What a plan loses."""
        return alone * (1 + self.excess * alone / (alone + self.scale))

    def sum_of(self, kl_divergence: float) -> float:
        """What its weights may lose alone, together, for a plan to lose so much."""
        whole, half = 1 + self.excess, (kl_divergence - self.scale) / 2
        return (half + math.sqrt(half**2 + whole * kl_divergence * self.scale)) / whole


class Table(NamedTuple):
    """What weights cost in formats."""

    candidates: list[Candidate]
    """Of the spec's formats, and ``BACKUP``."""
    formats: tuple[Format, ...]
    special: frozenset[str]
    """Embeddings and the head."""
    looked_up: frozenset[str]
    """Embeddings that are no head."""
    num_tokens: int
    growth: Growth = Growth()
    settled: frozenset[str] = frozenset()
    """What takes ``BACKUP`` whatever the limit: no prediction tells what it would lose."""
    experts: ExpertsRecord | None = None

    def predicted(self, plan: Mapping[str, Candidate]) -> float:
        """What a plan loses."""
        return self.growth.of_sum(sum(each.kl_divergence for each in plan.values()))

    def same(self, plan: Mapping[str, Candidate]) -> dict[str, Candidate]:
        """A plan with what this table says of its candidates."""
        known = {(each.weight, each.format): each for each in self.candidates}
        return {name: known[name, each.format] for name, each in plan.items()}

    @property
    def permitted(self) -> list[Candidate]:
        """Of the formats that the spec names; ``BACKUP`` of what is settled, and of what takes none of them."""
        found = [each for each in self.candidates if each.format in self.formats and each.weight not in self.settled]
        names = {each.weight for each in found}
        return found + [each for each in self.candidates if each.format == BACKUP and each.weight not in names]


def by_name(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates of weights whose names rules can take; all others, single experts, agree on a format and are one."""
    found = [each for each in candidates if not is_nameless(each.weight)]
    others = [each for each in candidates if is_nameless(each.weight)]
    names = {each.weight for each in others}
    for wanted in dict.fromkeys(each.format for each in others):
        of_format = [each for each in others if each.format == wanted]
        if len(of_format) == len(names):
            total = (sum(getattr(each, field) for each in of_format) for field in Candidate._fields[2:5])
            found.append(Candidate(REST, wanted, *total))
    return found


def is_nameless(weight: str) -> bool:
    """Whether only the graph has a name for it."""
    return "/" in weight


class Uncompressed(NamedTuple):
    """The model that errors are taken from."""

    loaded: LoadedModel
    """Uncompressed."""
    model: Any
    """The same in torch."""
    parameters: Mapping[str, torch.Tensor]
    """By name, matrices in the checkpoint's precision."""
    sensitivity: Sensitivity
    pieces: Mapping[str, Piece] = {}
    """Constants that are cut out of stacks of experts, by their names."""

    def settled(self) -> frozenset[str]:
        """Weights whose loss cannot be told: routers, experts that no token was sent to, and what torch has not."""
        found = set(routers(self.parameters))
        for layer in layer_table(self.loaded.model):
            name, piece = parameter_name(layer.name), self.pieces.get(layer.name)
            stack = name if piece is None else piece.stack
            if stack not in self.sensitivity.diagonal:
                found.add(name)
            elif self.parameters[stack].ndim == 3:
                called = self.sensitivity.called(stack)
                if not (called.any() if piece is None or piece.expert is None else called[piece.expert]):
                    found.add(name)
        return frozenset(REST if is_nameless(name) else name for name in found)


def uniform(wanted: Format, *, all_layers: bool = False) -> WeightCompression:
    """One format for all layers; embeddings and the head take NNCF's backup precision unless ``all_layers``."""
    if wanted.mode in INT8:
        return WeightCompression.model_validate({"mode": wanted.mode})
    fields = {"mode": wanted.mode, "group_size": wanted.group_size, "all_layers": all_layers}
    if wanted.group_size != -1:
        fields["group_size_fallback"] = "ignore"
    if wanted.method == "gptq":
        fields["gptq"] = True
    return WeightCompression.model_validate(fields)


def data_free(original: Uncompressed, formats: Formats, progress: Reporter) -> Iterator[Candidate]:
    """Weigh each weight's error in each format by its sensitivity; where our kernels make codes none are kept.

    Args:
        original: The model.
        formats: To try; weights whose channels a group size does not divide go without that one.
        progress: Told of every format.
    """
    every = (*formats.everywhere, *formats.further)
    with ThreadPoolExecutor(threads_of_torch()) as pool:
        for number, wanted in enumerate(every):
            progress(Progress("candidates", number, len(every), "formats"))
            model = original.loaded.clone().model
            with codes_left_for_later(model) as noted:
                compress_weights(model, uniform(wanted, all_layers=True))
            weights, records = integer_weights(model), {layer.name: layer for layer in layer_table(model)}
            for constant in weights:
                name, record, piece = parameter_name(constant), records.get(constant), original.pieces.get(constant)
                if record is None or wanted not in formats.of(name):
                    continue
                if (record.mode, record.group_size) != (wanted.mode, wanted.group_size):
                    continue
                if len(record.shape) == 3 and wanted.mode not in OF_STACKS:
                    continue
                cost: float | None = 0.0
                if (name if piece is None else piece.stack) in original.sensitivity.diagonal:
                    cost = _cost_of_rounding(original, name, piece, _Rounded(weights, constant, noted), pool)
                elif wanted != BACKUP:
                    continue
                if cost is None and wanted != BACKUP:
                    continue
                yield Candidate(name, wanted, record.num_parameters, record.size_bytes, cost or 0.0)
    progress(Progress("candidates", len(every), len(every), "formats"))


class _Rounded(NamedTuple):
    """A weight of a compressed graph."""

    weights: Mapping[str, IntegerWeight]
    constant: str
    noted: Mapping[str, NotedWeight]
    """Those of which the graph has no codes yet."""

    def finished(self, pool: ThreadPoolExecutor) -> IntegerWeight:
        """The weight with its codes."""
        import numpy as np

        found, noted = self.weights[self.constant], self.noted.get(self.constant)
        if noted is None:
            return found
        packed = np.empty(noted.layout.num_bytes, np.uint8)
        parts = write_codes(noted.values, noted.layout, packed, pool)
        codes = codes_of(packed, found.element, found.codes.shape)
        scales = parts.scales.view(np.float16).reshape(found.scales.shape)
        zeros = found.zero_points
        if zeros is not None and len(parts.zero_points):
            zeros = codes_of(parts.zero_points, found.element, zeros.shape)
        return IntegerWeight(codes, scales, zeros, found.element)


def _cost_of_rounding(
    original: Uncompressed, name: str, piece: Piece | None, rounded: _Rounded, pool: ThreadPoolExecutor
) -> float | None:
    """What a weight costs that is rounded; None where a scale of its is beyond half precision."""
    try:
        cost = _cost_of_codes(original, name, piece, rounded, pool)
    except DoubtError:
        return None
    return cost if math.isfinite(cost) else None


def _cost_of_codes(
    original: Uncompressed, name: str, piece: Piece | None, rounded: _Rounded, pool: ThreadPoolExecutor
) -> float:
    import torch

    sensitivity, noted = original.sensitivity, rounded.noted.get(rounded.constant)
    if piece is None and noted is not None and original.parameters[name].ndim == 2:
        cost = sensitivity.cost_by(name, lambda factors: weighted_error(noted.values, noted.layout, factors, pool))
        if cost is not None:
            return cost
    of = name if piece is None else piece.stack
    before = original.parameters[of] if piece is None else piece.of(original.parameters[of])
    error = torch.from_numpy(rounded.finished(pool).values()).reshape(before.shape).sub_(before)
    return sensitivity.cost(of, error, piece)


def by_gptq(
    original: Uncompressed,
    formats: Formats,
    windows: CalibrationWindows,
    shelf: Shelf,
    progress: Reporter,
    crew: Crew | None = None,
) -> Iterator[Candidate]:
    """The same by GPTQ, whose errors make up for each other; what is not on the shelf is made and put there.

    Args:
        original: The model.
        formats: To try, all by GPTQ.
        windows: What it goes by.
        shelf: For weights that are finished.
        progress: Told of every layer.
        crew: Machines that make it; None: this one does.
    """
    import torch

    of_tables = itertools.product(formats.looked_up, formats.further)
    if not (all(map(shelf.is_whole, formats.everywhere)) and all(shelf.has(*each) for each in of_tables)):
        if crew is None:
            _fill(original.loaded, lambda: original.model, formats, windows, shelf, progress)
        else:
            _fill_by_crew(original.loaded, formats, windows, shelf, progress, crew)
        for each in formats.everywhere:
            shelf.note_whole(each)
    for name in original.sensitivity.factors:
        for wanted in formats.of(name):
            if (weight := shelf.get(name, wanted)) is not None:
                before = original.parameters[name]
                error = torch.from_numpy(weight.values()).reshape(before.shape).sub_(before)
                cost = original.sensitivity.joint_cost(name, error)
                if not math.isfinite(cost):
                    continue
                yield Candidate(name, wanted, weight.codes.size, weight.size_bytes, cost)


def _fill_by_crew(
    loaded: LoadedModel,
    formats: Formats,
    windows: CalibrationWindows,
    shelf: Shelf,
    progress: Reporter,
    crew: Crew,
) -> None:
    """Have each machine make a part of the weights, which it puts next to the output."""
    layers = sorted(layer_table(loaded.model), key=lambda each: -each.num_parameters)
    names = [parameter_name(layer.name) for layer in layers]
    missing = [name for name in names if not all(shelf.has(name, each) for each in formats.of(name))]
    with tempfile.TemporaryDirectory(dir=crew.place, prefix="weights-") as between:
        shares = crew.shares(missing)
        calls = [{"share": Share(formats, windows, Path(between), frozenset(names))} for names in shares]
        made_by = crew.carry_out("make weights", make_there, calls, progress)
        _require_same_versions(made_by)
        shelf.take(Path(between))


class Share(NamedTuple):
    """What one of several machines makes by GPTQ."""

    formats: Formats
    windows: CalibrationWindows
    between: Path
    """Where the weights are put."""
    names: frozenset[str]
    """Of them, in the checkpoint."""


def _require_same_versions(made_by: Sequence[Mapping[str, str]]) -> None:
    """Refuse weights that this machine would not make."""
    here = deciding_versions()
    for there in made_by:
        other = sorted(name for name in here if there.get(name) != here[name])
        if other:
            raise ResourceError(
                f"a node of the cluster has {', '.join(f'{name} {there.get(name)}' for name in other)}; this machine "
                f"has {', '.join(here[name] for name in other)}",
                where="`executor` ray",
                hint="install the same versions on every node",
            )


def make_there(*, source: str, access: Access, share: Share, progress: Reporter, logs: object) -> Mapping[str, str]:
    """Make some weights by GPTQ on another machine, whose cache keeps them too; the versions that decide what they are.

    Raises: as ``loaded_there`` and ``compress_weights``.
    """
    loaded = loaded_there(source, access, progress)
    shelf = shelf_of(loaded, share.windows.record, share.between)
    in_torch = functools.partial(load_torch_model, loaded.source)
    _fill(loaded, in_torch, share.formats, share.windows, shelf, progress, share.names)
    for name in share.names:
        for wanted in share.formats.of(name):
            shelf.lend(name, wanted, share.between)
    return deciding_versions()


def _fill(
    loaded: LoadedModel,
    in_torch: Callable[[], Any],
    formats: Formats,
    windows: CalibrationWindows,
    shelf: Shelf,
    progress: Reporter,
    names: Set[str] | None = None,
) -> None:
    """Make what a killed search has not come to, of all weights or some; embeddings alone take the model in torch."""
    from llmcompress.compression.fisher import embedding_moments, embedding_names
    from llmcompress.compression.nncf.gptq_formats import Statistics, gptq_in_formats
    from llmcompress.compression.nncf.runs import Samples

    def missing(constant: str) -> list[tuple[str, int]]:
        name = parameter_name(constant)
        if names is not None and name not in names:
            return []
        return [(each.mode, each.group_size) for each in formats.of(name) if not shelf.has(name, each)]

    def keep(made: Made) -> None:
        shelf.keep(parameter_name(made.name), Format(made.mode, made.group_size, "gptq"), made.weight)

    # Of a vision-language model the embeddings of text lie in another graph.
    looked_up = set(map(parameter_name, constants_taken_by(loaded.model, "Gather")))
    if names is not None:
        looked_up &= names
    moments = {}
    if looked_up:
        model = in_torch()
        if embeddings := embedding_names(model) & looked_up:
            moments = embedding_moments(model, embeddings, windows.token_ids, windows.record.seed, progress)
        del model
    samples = Samples(list(windows.token_ids), loaded.text_feed())
    gptq_in_formats(loaded.clone().model, Statistics(samples, moments), missing, keep, progress)
