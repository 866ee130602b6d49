"""``nncf.compress_weights``: data-free and data-aware weight compression of an ``ov.Model``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.compression.nncf.graph_reading import reading_sped_up
from llmcompress.compression.nncf.runs import (
    Samples,
    mark_as_optimized,
    nncf_scope,
    progress_reported,
    refusals_explained,
)
from llmcompress.compression.nncf.statistics import lean_statistics
from llmcompress.graph.integer_weights import Rescaling
from llmcompress.graph.model import keep_alive, memory_owners
from llmcompress.report.compression import Engine
from llmcompress.spec import WeightCompression
from llmcompress.spec.modes import GptqOrder
from llmcompress.system.environment import threads_of_torch
from llmcompress.system.memory import return_large_blocks
from llmcompress.system.patching import replaced
from llmcompress.system.progress import Reporter, silent

if TYPE_CHECKING:
    import nncf
    import openvino as ov

    from llmcompress.system.file_memory import FileMemory

PLAIN_OPTIONS = {"group_size", "ratio", "all_layers", "awq", "scale_estimation", "gptq", "lora_correction"}
RECORD = ["nncf", "weight_compression"]
RULES = "rules"
"""Where the graph says the rules for single weights, next to what NNCF records."""
OWN_SETTINGS = {"statistics": "compressed", "gptq_order": "columns"}
"""The same for what NNCF's GPTQ has no choice of, with what it does."""
# NNCF reads a ratio of 0 as "not given"; the smallest positive number keeps every layer at the backup precision.
NO_PRIMARY_LAYERS = sys.float_info.min


class Compressed(NamedTuple):
    """What was done to the weights of a graph."""

    by_kernels: frozenset[str]
    """Names of those that our kernels have made."""
    rescaled: dict[str, Rescaling]
    """What AWQ did to weights, by their names."""


def compress_weights(
    model: ov.Model,
    weights: WeightCompression,
    samples: Samples | None = None,
    *,
    statistics_path: Path | None = None,
    engine: Engine = "llmcompress",
    file_memory: FileMemory | None = None,
    progress: Reporter = silent,
) -> Compressed:
    """Compress in place, byte for byte as stock NNCF does with the same options; GPTQ up to the rounding of its sums.

    Args:
        model: An uncompressed stateful decoder.
        weights: What to do.
        samples: What it is calibrated with; None for a data-free method.
        statistics_path: Directory of NNCF's activation statistics: read when it exists, written when it does not.
        engine: Whose arithmetic makes the codes: our kernels', where they cover a weight, or NNCF's for every one.
        file_memory: Where our kernels' codes and scaled weights wait for the model to be saved, and activations for the
            next layers; by default in ordinary memory.
        progress: Told of every step.

    Raises:
        ModelError: NNCF cannot apply these settings to this graph.
        RecipeError: The installed NNCF does not collect statistics in the precision asked for, or its GPTQ does not
            take a layer, or a rule takes no weight.
    """
    import nncf

    dataset = None if samples is None else samples.dataset()
    arguments = nncf_arguments(weights, num_windows=0 if samples is None else len(samples))
    if statistics_path is not None:
        advanced = arguments.get("advanced_parameters") or nncf.AdvancedCompressionParameters()
        arguments["advanced_parameters"] = dataclasses.replace(advanced, statistics_path=str(statistics_path))
    explained = refusals_explained(
        where=f"weights.mode {weights.mode}",
        hint="change the recipe's weights, or name the layers in weights.ignored_scope",
    )
    ours: set[str] = set()
    rescaled: dict[str, Rescaling] = {}
    with contextlib.ExitStack() as stack:
        for each in (
            explained,
            progress_reported(progress),
            _compiled_once(),
            reading_sped_up(),
            _statistics_collected(weights, engine, file_memory, progress),
            _lowered(ours, engine, file_memory, weights.gptq_order),
            _gptq_changed(weights),
            _rules_applied(weights),
            _scales_recorded(weights, rescaled),
        ):
            stack.enter_context(each)
        nncf.compress_weights(model, dataset=dataset, **arguments)
    if file_memory is not None:
        keep_alive(model, (memory_owners(model), file_memory))
    _correct_record(model, weights, statistics_path)
    return Compressed(frozenset(ours), rescaled)


def _statistics_collected(
    weights: WeightCompression, engine: Engine, file_memory: FileMemory | None, progress: Reporter
) -> contextlib.AbstractContextManager[None]:
    if engine == "nncf" and weights.statistics_precision == "f32":
        return contextlib.nullcontext()
    return lean_statistics(weights.statistics_precision, file_memory, progress)


def nncf_arguments(weights: WeightCompression, *, num_windows: int) -> dict[str, Any]:
    """The keyword arguments of ``nncf.compress_weights`` for a recipe.

    What a recipe leaves at its default is left out: NNCF's 8-bit modes refuse even the default of most options.
    """
    import nncf

    arguments: dict[str, Any] = {"mode": nncf.CompressWeightsMode(weights.mode)}
    for name in sorted(weights.model_fields_set & PLAIN_OPTIONS):
        if getattr(weights, name) != type(weights).model_fields[name].default:
            arguments[name] = getattr(weights, name)
    if weights.ratio == 0:
        arguments["ratio"] = NO_PRIMARY_LAYERS
    if weights.sensitivity_metric is not None:
        arguments["sensitivity_metric"] = nncf.SensitivityMetric(weights.sensitivity_metric)
    if weights.backup_mode is not None:
        arguments["backup_mode"] = nncf.BackupMode(weights.backup_mode)
    if not weights.ignored_scope.is_empty:
        arguments["ignored_scope"] = nncf_scope(weights.ignored_scope)
    if num_windows:
        arguments["subset_size"] = num_windows
    advanced = _advanced_parameters(weights)
    if advanced is not None:
        arguments["advanced_parameters"] = advanced
    return arguments


def _advanced_parameters(weights: WeightCompression) -> nncf.AdvancedCompressionParameters | None:
    import nncf
    import numpy as np
    from nncf.tensor import TensorDataType

    given = weights.advanced.model_dump(exclude_defaults=True)
    if not given and weights.group_size_fallback == "error":
        return None
    advanced = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode(weights.group_size_fallback)
    )
    if "codebook" in given:
        given["codebook"] = np.array(given["codebook"], dtype=np.float32)
    adaptive = given.get("adaptive_codebook_params", {})
    if "value_type" in adaptive:
        adaptive["value_type"] = TensorDataType(adaptive["value_type"])
    for name, value in given.items():
        nested = dataclasses.replace(getattr(advanced, name), **value) if isinstance(value, dict) else value
        advanced = dataclasses.replace(advanced, **{name: nested})
    return advanced


def _correct_record(model: ov.Model, weights: WeightCompression, statistics_path: Path | None) -> None:
    """Record what was asked: no cache path of this machine, no stand-in for a ratio of 0."""
    mark_as_optimized(model)
    if statistics_path is not None:
        advanced = str(model.get_rt_info([*RECORD, "advanced_parameters"]).value)
        model.set_rt_info(advanced.replace(repr(str(statistics_path)), "None"), [*RECORD, "advanced_parameters"])
    if weights.ratio == 0:
        model.set_rt_info("0.0", [*RECORD, "ratio"])
    _record_own(model, weights)


def record_methods(model: ov.Model, weights: WeightCompression) -> None:
    """Record GPTQ of the original model's activations, where weights that it has made were put into the graph."""
    model.set_rt_info("True", [*RECORD, "gptq"])
    # What NNCF notes where there is data and no layers are to be chosen.
    model.set_rt_info("max_activation_variance", [*RECORD, "sensitivity_metric"])
    _record_own(model, weights)


def _record_own(model: ov.Model, weights: WeightCompression) -> None:
    for name, by_nncf in OWN_SETTINGS.items():
        if (value := getattr(weights, name)) != by_nncf:
            model.set_rt_info(value, [*RECORD, name])
    if weights.rules:
        rules = json.dumps([rule.model_dump(exclude_none=True) for rule in weights.rules])
        model.set_rt_info(rules, [*RECORD, RULES])


@contextlib.contextmanager
def _gptq_changed(weights: WeightCompression) -> Iterator[None]:
    if not weights.gptq:
        yield
        return
    from llmcompress.compression.nncf.gptq import layers_checked, of_the_original

    with layers_checked(), of_the_original() if weights.statistics == "original" else contextlib.nullcontext():
        yield


def _rules_applied(weights: WeightCompression) -> contextlib.AbstractContextManager[None]:
    if not weights.rules:
        return contextlib.nullcontext()
    from llmcompress.compression.nncf.layer_rules import rules_applied

    return rules_applied(weights.rules)


def _scales_recorded(
    weights: WeightCompression, rescaled: dict[str, Rescaling]
) -> contextlib.AbstractContextManager[None]:
    if not weights.awq:
        return contextlib.nullcontext()
    from llmcompress.compression.nncf.awq import scales_recorded

    return scales_recorded(rescaled)


@contextlib.contextmanager
def _lowered(ours: set[str], engine: Engine, file_memory: FileMemory | None, gptq_order: GptqOrder) -> Iterator[None]:
    """Let our kernels make the scales and codes; the names of the weights that they made are added to ``ours``."""
    if engine == "nncf":
        yield
        return
    from llmcompress.compression.nncf.awq import awq_search
    from llmcompress.compression.nncf.gptq import Gptq
    from llmcompress.compression.nncf.scale_estimation import ScaleEstimation
    from llmcompress.compression.nncf.weight_codes import Lowering, own_constants

    num_threads = threads_of_torch()
    lowering, gptq = Lowering(num_threads, file_memory), Gptq(num_threads, gptq_order)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lowering.installed())
        stack.enter_context(ScaleEstimation(num_threads).installed())
        stack.enter_context(awq_search(num_threads))
        stack.enter_context(gptq.installed())
        stack.enter_context(own_constants(file_memory))
        yield
    ours |= (lowering.names | gptq.chosen) - gptq.left


@contextlib.contextmanager
def _compiled_once() -> Iterator[None]:
    """Let NNCF compile its small quantization models once for each kind of weight instead of once for each weight.

    It compiles them again because results live in the inference request that made them; with a request of its own for
    every weight they stay apart, and the arithmetic is the same. Where NNCF has moved the names, nothing is changed.
    """
    return_large_blocks()
    from nncf.openvino.optimized_functions import models
    from nncf.quantization.algorithms.weight_compression import openvino_backend

    infer = getattr(models, "_infer_ov_model", None)
    if infer is None or not hasattr(openvino_backend, "disable_results_caching"):
        yield
        return

    def infer_apart(parameters: Any, compiled: ov.CompiledModel, inputs: Any) -> Any:
        compiled._infer_request = None
        return infer(parameters, compiled, inputs)

    def cached(cache: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    with (
        replaced(models, "_infer_ov_model", infer_apart),
        replaced(openvino_backend, "disable_results_caching", cached),
    ):
        yield
