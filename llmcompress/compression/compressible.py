"""Whether a source can be compressed by a recipe, and whether its target takes what became of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llmcompress.compression.layers import EXECUTED_AS, LOW_PRECISIONS
from llmcompress.compression.nncf.statistics import check_statistics_precision
from llmcompress.compression.parts import require_parts
from llmcompress.compression.pruned import require_prunable_source
from llmcompress.errors import ModelError, RecipeError, UsageError
from llmcompress.graph.device import compile_model, executed_precisions
from llmcompress.graph.model import is_compressed, read_ir
from llmcompress.loaders.convertible import require_convertible
from llmcompress.loaders.quantized.declaration import check_quantization, is_repacked
from llmcompress.loaders.source import Source
from llmcompress.report.compression import Engine, LayerRecord
from llmcompress.report.file_names import MODEL_XML
from llmcompress.spec import Recipe
from llmcompress.spec.recipe import NPU_GROUP_SIZES

if TYPE_CHECKING:
    import openvino as ov


NPU_MODES = ("int4_sym", "int8_sym", "int8_asym", "f16", "bf16", "f32")


FLOAT8 = {"fp8_e4m3": "f8e4m3", "fp8_e5m2": "f8e5m2"}


def check_executed(recipe: Recipe) -> None:
    """Refuse quantized activations that the recipe's target, where this machine has it, computes in floating point.

    Tried on one small layer. Without a named target the recipe may be for another machine.

    Raises:
        RecipeError: The device refuses them, or gains nothing by them.
    """
    import openvino as ov

    device = recipe.target.upper()
    available = {name.split(".")[0] for name in ov.Core().available_devices}
    if recipe.activations is None or device not in available:
        return
    mode = recipe.activations.mode
    try:
        executed = executed_precisions(compile_model(_quantized_layer(mode), device, {}))
        found = {precision for kind, precision in executed if kind in EXECUTED_AS}
        problem = f"computes in {', '.join(sorted(found))} what is quantized so" if not found & LOW_PRECISIONS else ""
    except UsageError as error:
        problem = f"refuses such a layer: {error.message}"
    if problem:
        raise RecipeError(
            f"mode {mode} is not what target {recipe.target} runs: the {device} of this machine {problem}",
            where=f"recipe {recipe.name}: activations.mode",
            hint="take another mode, or write target: any to make it for another machine",
        )


def _quantized_layer(mode: str) -> ov.Model:
    """A linear layer as NNCF quantizes it."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    def quantized(value: ov.Node) -> ov.Node:
        if mode in FLOAT8:
            return ops.fake_convert(value, ops.constant([1.0], ov.Type.f32), destination_type=FLOAT8[mode])
        low, high = ops.constant(np.float32(-1)), ops.constant(np.float32(127 / 128))
        return ops.fake_quantize(value, low, high, low, high, 256)

    activations = ops.parameter(ov.PartialShape([-1, 64]), ov.Type.f32)
    weights = ops.constant(np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64))
    product = ops.matmul(quantized(activations), quantized(weights), False, True)
    return ov.Model([ops.result(product)], [activations], "layer")


def check_target(recipe: Recipe, layers: tuple[LayerRecord, ...]) -> None:
    """Refuse a graph that the recipe's target does not run.

    The NPU plugin takes 4-bit weights that are symmetric, in groups of 128 or per channel; other low-bit formats end
    in its compiler.

    Raises:
        RecipeError: Names the layers that break the contract.
    """
    if recipe.target != "npu":
        return
    broken = [
        f"{layer.name} ({layer.mode}, group size {layer.group_size})"
        for layer in layers
        if layer.mode not in NPU_MODES or (layer.mode == "int4_sym" and layer.group_size not in NPU_GROUP_SIZES)
    ]
    if broken:
        raise RecipeError(
            f"target npu takes int4_sym in groups of 128 or per channel, and int8; "
            f"{len(broken)} layers are otherwise: {', '.join(broken[:5])}",
            where=f"recipe {recipe.name}",
            hint="set weights.mode=int4_sym and weights.group_size=-1 for this model",
        )


def require_compressible(
    source: Source, recipe: Recipe, *, requantize: bool = False, here: bool = True, offline: bool = False
) -> None:
    """Refuse what compressing ``source`` by ``recipe`` would refuse later. A run and its prediction both begin here.

    Args:
        source: As resolved; its weights need not be fetched.
        recipe: What to do.
        requantize: A checkpoint that is quantized already may be quantized again.
        here: The work is done on this machine.
        offline: Nothing may be installed for it.

    Raises:
        LayerMissingError: As ``require_convertible``.
        ModelError: No causal language model, none that the exporter converts, compressed already, or damaged.
        SecurityError: It would need pickle files or foreign code.
        HubError: A small file could not be had.
        RecipeError: This machine does not execute the recipe, or it keeps codes and there are none.
        UsageError: ``requantize`` where nothing would be quantized again.
    """
    require_convertible(source, offline=offline)
    require_parts(source, recipe)
    require_trainable(source, recipe)
    require_prunable_source(source, recipe)
    require_kept_or_allowed(source, recipe, requantize=requantize)
    if source.layout == "ir" and (source.path / MODEL_XML).is_file():
        refuse_compressed(read_ir(source.path), source, recipe)
    if here:
        require_executable(recipe)


def require_engine(recipe: Recipe, engine: Engine) -> None:
    """Refuse what only our kernels do where all arithmetic is to be NNCF's.

    Raises:
        RecipeError: Names the setting.
    """
    if engine == "nncf" and any(weights.gptq_order != "columns" for weights in recipe.weight_passes):
        raise RecipeError(
            "NNCF's GPTQ goes by columns",
            where=f"recipe {recipe.name}: weights.gptq_order",
            hint="write columns, or leave out `engine`",
        )


def require_trainable(source: Source, recipe: Recipe) -> None:
    """Refuse to train on what is no checkpoint.

    Raises:
        RecipeError: Says so.
    """
    if recipe.training is not None and source.layout == "ir":
        raise RecipeError(
            "training compares with the original in torch, and an OpenVINO model is none",
            where=f"recipe {recipe.name}: training",
            hint="give the checkpoint that it was converted from, or a recipe without training",
        )
    if recipe.training is not None and is_repacked(source.config):
        raise RecipeError(
            "training compares with the original in torch, where this quantized checkpoint cannot be opened",
            where=f"recipe {recipe.name}: training",
            hint="give the original checkpoint, or a recipe without training",
        )


def require_kept_or_allowed(source: Source, recipe: Recipe, *, requantize: bool) -> None:
    """Refuse to quantize a checkpoint again unasked, and what has no effect on one that is not quantized.

    Raises:
        ModelError: It is quantized already and the recipe would quantize it again.
        RecipeError: The recipe keeps codes, and there are none.
        UsageError: ``requantize`` where nothing would be quantized again.
    """
    quantized = source.layout == "checkpoint" and check_quantization(source.config)[0] == "keep"
    if recipe.method == "keep" and not quantized:
        raise RecipeError(
            f"method keep is for a checkpoint that is quantized already; {source.name} is none",
            where=f"recipe {recipe.name}: method",
            hint="take recipe none to convert it as it is, or another one to compress it",
        )
    again = quantized and recipe.quantizes
    if requantize and not again:
        raise UsageError(
            "`requantize` has no effect: "
            + (f"recipe {recipe.name} quantizes nothing" if quantized else "the source is not quantized already"),
            where=source.name,
            hint="remove it",
        )
    if again and not requantize:
        raise ModelError(
            f"the checkpoint is already quantized and recipe {recipe.name} would quantize it again",
            where=source.name,
            hint="convert it as it is with `recipe=keep`, allow it with `requantize`, or give the original checkpoint",
        )


def require_executable(recipe: Recipe) -> None:
    """Refuse a recipe that this machine does not execute; raises as ``check_executed``."""
    check_executed(recipe)
    check_statistics_precision(recipe)


def refuse_compressed(model: ov.Model, source: Source, recipe: Recipe) -> None:
    """Refuse to compress a graph twice.

    Raises:
        ModelError: It is compressed already.
    """
    if recipe.method != "none" and is_compressed(model):
        raise ModelError(
            "the model is already compressed; compressing it again would add to its error unseen",
            where=source.name,
            hint="give the original checkpoint",
        )


def can_be_late(recipe: Recipe, engine: Engine) -> bool:
    """Whether nothing but the .bin needs the codes that a recipe gives, and each depends on its own weight alone."""
    if not hasattr(os, "posix_fallocate") or engine != "llmcompress":
        return False
    if recipe.method != "weights" or recipe.texts or recipe.training or recipe.pruning:
        return False
    return not any(each.awq or any(rule.method for rule in each.rules) for each in recipe.weight_passes)
