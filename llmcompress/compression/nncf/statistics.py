"""NNCF's activation statistics: collected without what no statistic needs, and kept for the next run.

Windows stay apart, since NNCF takes the mean of each; in batches of four, 256 tokens each, they took 2 % less time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from llmcompress.artifact import file_records
from llmcompress.errors import ArtifactError, ModelError, RecipeError, last_line
from llmcompress.graph.segments import Segment, infer_by_segments, segments
from llmcompress.report.file_names import MODEL
from llmcompress.report.record import CalibrationRecord, Provenance
from llmcompress.spec import Recipe, StatisticsPrecision
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import installed_versions
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.patching import replaced
from llmcompress.system.progress import Reporter, silent

_COLLECTOR = "collect_statistics_and_statistic_points"
_READERS = ("_awq", "_codebook_estimation", "_data_aware_mixed_precision")
LISTING = "files.json"
VERSIONED = ("nncf", "openvino", "optimum-intel", "transformers", "torch")


def check_statistics_precision(recipe: Recipe) -> None:
    """Refuse to collect statistics in a precision that this processor does not compute in.

    Raises:
        RecipeError: Says so.
    """
    import openvino as ov

    if all(weights.statistics_precision == "f32" for weights in recipe.weight_passes):
        return
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RecipeError(
            "this machine's processor does not compute in bf16",
            where=f"recipe {recipe.name}: weights.statistics_precision",
            hint="write f32, which takes longer and gives NNCF's own statistics",
        )


@contextlib.contextmanager
def lean_statistics(
    precision: StatisticsPrecision, file_memory: FileMemory | None = None, progress: Reporter = silent
) -> Iterator[None]:
    """Have NNCF infer only what its statistics are of, in that precision, a few layers of the model at a time.

    In f32, which NNCF infers in, the statistics are the same bit for bit. Where NNCF has moved the names, it collects
    them in its own way.

    Args:
        precision: In which layers are computed.
        file_memory: Next to which activations wait for the next layers; by default they do in ordinary memory.
        progress: Told of the layers.

    Raises:
        RecipeError: It has moved them, and its own way is not in that precision.
        ModelError: Where it collects: the runtime does not take a few layers by themselves.
    """
    from nncf.common import factory
    from nncf.openvino.statistics.aggregator import OVStatisticsAggregator

    collect = vars(OVStatisticsAggregator).get("collect_statistics")
    register = vars(OVStatisticsAggregator).get("_register_statistics")
    if collect is None or register is None or "create" not in vars(factory.EngineFactory):
        if precision != "f32":
            raise RecipeError(
                f"the installed NNCF cannot be made to collect statistics in {precision}",
                where="weights.statistics_precision",
                hint="write f32",
            )
        yield
        return

    def collect_lean(self: Any, model: Any, graph: Any) -> None:
        lean = _LeanCollection(self, model, register, precision, file_memory, progress)
        with (
            replaced(factory.EngineFactory, "create", staticmethod(lean.engine)),
            replaced(OVStatisticsAggregator, "_register_statistics", lean.register),
        ):
            collect(self, model, graph)

    with replaced(OVStatisticsAggregator, "collect_statistics", collect_lean):
        yield


class _LeanCollection:
    """One collection of NNCF's, whose windows go through the model segment by segment where it has several."""

    def __init__(
        self,
        aggregator: Any,
        model: Any,
        stock_register: Any,
        precision: StatisticsPrecision,
        file_memory: FileMemory | None,
        progress: Reporter,
    ) -> None:
        import openvino as ov
        from openvino.properties.hint import inference_precision

        self._aggregator = aggregator
        self._outputs = {result.get_friendly_name() for result in model.get_results()}
        self._stock_register = stock_register
        self._properties = {inference_precision: getattr(ov.Type, precision)}
        self._file_memory = file_memory
        self._progress = progress
        self._parts: Sequence[Segment] = ()

    def engine(self, with_statistics: Any) -> Any:
        """In the place of NNCF's factory: of a model with results of statistics."""
        import openvino as ov
        from nncf.openvino.engine import OVCompiledModelEngine
        from nncf.openvino.graph.model_utils import model_has_state

        for result in with_statistics.get_results():
            if result.get_friendly_name() in self._outputs:
                with_statistics.remove_result(result)
        parts = segments(with_statistics)
        if len(parts) > 1:
            self._parts = parts
            return SimpleNamespace(infer=lambda window: {})
        compiled = ov.Core().compile_model(with_statistics, "CPU", self._properties)
        return OVCompiledModelEngine(compiled, model_has_state(with_statistics))

    def register(self, outputs: dict[str, Any], points: Any) -> None:
        """In the place of NNCF's method: the first window brings the statistics of all, the others nothing."""
        if outputs:
            self._stock_register(self._aggregator, outputs, points)
            return
        parts, self._parts = self._parts, ()
        if not parts:
            return
        aggregator, num_windows = self._aggregator, self._aggregator._get_iterations_number()

        def take(found: dict[str, Any]) -> None:
            self._stock_register(aggregator, aggregator._process_outputs(found), self._of(points, found))

        try:
            infer_by_segments(
                parts,
                lambda: itertools.islice(aggregator.dataset.get_inference_data(), num_windows),
                num_windows,
                self._properties,
                take,
                lambda: None if self._file_memory is None else FileMemory(self._file_memory.directory),
                self._progress,
            )
        except RuntimeError as error:
            raise ModelError(
                f"the runtime does not take a part of the model by itself: {last_line(error)}",
                where="statistics of activations",
                hint="give `engine` nncf, which computes them by the whole model",
            ) from error

    def _of(self, points: Any, outputs: Collection[str]) -> Any:
        """The points of NNCF's whose outputs are there."""
        from nncf.common.tensor_statistics.statistic_point import StatisticPointsContainer
        from nncf.openvino.graph.node_utils import get_reducer_output_node_names

        found = StatisticPointsContainer()
        for _, point, collector in points.get_tensor_collectors():
            node, port, _ = self._aggregator._translate_to_post_layer_operation(point)
            asked = [
                name
                for reducer in collector.reducers
                for name in get_reducer_output_node_names(
                    reducer.name, node, port, reducer.output_port_id, reducer.inplace
                )
            ]
            if all(name in outputs for name in asked):
                found.add_statistic_point(point)
        return found


@contextlib.contextmanager
def without_unread_statistics() -> Iterator[None]:
    """Have NNCF collect nothing that it would throw away; where it has moved the name, nothing is changed."""
    from nncf.quantization.algorithms.weight_compression import algorithm

    stock = vars(algorithm.WeightCompression).get(_COLLECTOR)
    if stock is None:
        yield
        return

    def collected(compression: Any, model: Any, graph: Any, statistic_points: Any, *args: Any) -> Any:
        is_read = any(getattr(compression, name, True) for name in _READERS)
        if is_read or not getattr(compression, "_gptq", False):
            return stock(compression, model, graph, statistic_points, *args)
        return None, statistic_points

    with replaced(algorithm.WeightCompression, _COLLECTOR, collected):
        yield


@contextlib.contextmanager
def statistics(
    provenance: Provenance, calibration: CalibrationRecord, precision: StatisticsPrecision, part: str = MODEL
) -> Iterator[Path]:
    """A directory for ``statistics_path``: complete and checked if it was collected before, else not there yet.

    Where the cache cannot be written it is a temporary one, and the next run collects again.
    What NNCF puts there is the same for every mode and method, so one collection serves every recipe of a model.

    Args:
        provenance: Of the model.
        calibration: The windows.
        precision: In which it is computed.
        part: The exporter's name of the graph.
    """
    key = {
        "files": [file.sha256 for file in provenance.files],
        "model_type": provenance.model_type,
        "token_ids": calibration.token_ids_sha256,
        "num_windows": calibration.num_windows,
        "precision": precision,
        "versions": installed_versions(VERSIONED),
        **({} if part == MODEL else {"part": part, "pictures": calibration.pictures_sha256}),
    }
    digest = content_key(key)
    kept = cache_dir() / "statistics" / digest
    hold(kept)
    if _intact(kept):
        yield kept
        return
    _remove_abandoned(kept)
    collecting = kept.with_name(f"{digest}.{os.getpid()}-{secrets.token_hex(4)}")
    if not _can_be_made(collecting):
        with tempfile.TemporaryDirectory(prefix="llmcompress-") as scratch:
            yield Path(scratch, "statistics")
        return
    try:
        yield collecting
        if collecting.is_dir():
            listing = [record.model_dump() for record in file_records(collecting, exclude=())]
            (collecting / LISTING).write_text(json.dumps(listing))
            shutil.rmtree(kept, ignore_errors=True)
            # Another run may have been first; its statistics are the same.
            with contextlib.suppress(OSError):
                collecting.rename(kept)
    finally:
        shutil.rmtree(collecting, ignore_errors=True)


def _can_be_made(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True)
        directory.rmdir()
    except OSError:
        return False
    return True


def _remove_abandoned(kept: Path) -> None:
    """Remove what killed runs collected for the same key."""
    for path in kept.parent.glob(f"{kept.name}.*-*"):
        if not psutil.pid_exists(int(path.suffix[1:].partition("-")[0])):
            shutil.rmtree(path, ignore_errors=True)


def _intact(directory: Path) -> bool:
    try:
        listing = json.loads((directory / LISTING).read_bytes())
        return bool(listing == [record.model_dump() for record in file_records(directory, exclude=(LISTING,))])
    except (OSError, ValueError, RecursionError, ArtifactError):
        return False
