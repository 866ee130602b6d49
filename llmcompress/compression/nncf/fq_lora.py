"""NNCF's quantization-aware training with absorbable low-rank adapters, ``CompressionFormat.FQ_LORA``.

NNCF compresses the torch model, from the weights alone, and puts a fake quantization behind each weight: of the weight
plus the product of two thin matrices. Both, and the ranges, are trained; the codes of the sum are what is written, so
that nothing of the adapters is left at run time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import nncf
import numpy as np
import torch
from nncf.torch.function_hook.hook_storage import decode_hook_name
from nncf.torch.function_hook.wrapper import get_hook_storage
from nncf.torch.quantization.layers import AsymmetricLoraQuantizer, SymmetricLoraQuantizer
from nncf.torch.quantization.quantize_functions import TuneRange
from numpy.typing import NDArray

from llmcompress.compression.nncf.runs import refusals_explained
from llmcompress.errors import ModelError
from llmcompress.graph.integer_weights import IntegerWeight
from llmcompress.graph.model import parameter_name
from llmcompress.spec import Recipe
from llmcompress.training.devices import autocast
from llmcompress.training.student import Learnable, Trained, fill

EXAMPLE_TOKENS = 32
"""By which NNCF traces the model."""

Quantizer: TypeAlias = AsymmetricLoraQuantizer | SymmetricLoraQuantizer


def add_adapters(
    recipe: Recipe, model: Any, weights: Mapping[str, IntegerWeight], names: Iterable[str], token_ids: NDArray[np.int64]
) -> list[Trained]:
    """Have NNCF compress a torch model with adapters, in place; nothing but these and the ranges requires a gradient.

    Args:
        recipe: By which the graph was compressed; its training has rank and seed.
        model: A transformers model in f32.
        weights: Of the compressed graph, by name.
        names: Of those that are trained.
        token_ids: int64 ``[num_windows, seq_len]``: NNCF traces the model with some of the first.

    Raises:
        ModelError: NNCF refuses the rank or the model, or compresses other weights in torch than in the graph.
    """
    compression, training = recipe.weights, recipe.training
    assert compression is not None
    assert training is not None
    by_parameter = {parameter_name(name): name for name in names}
    fill(model, weights, [name for name in weights if parameter_name(name) not in by_parameter])
    device = next(model.parameters()).device
    window = torch.from_numpy(token_ids[:1, :EXAMPLE_TOKENS].copy()).to(device)
    example = {"input_ids": window, "attention_mask": torch.ones_like(window)}
    explained = refusals_explained(
        where="training.method fq_lora", hint="take a smaller training.adapter_rank, or method: distillation"
    )
    with explained, torch.random.fork_rng():
        torch.manual_seed(training.seed)
        nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode(compression.mode),
            group_size=compression.effective_group_size,
            backup_mode=nncf.BackupMode.NONE,
            dataset=nncf.Dataset([example]),
            compression_format=nncf.CompressionFormat.FQ_LORA,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                lora_adapter_rank=training.adapter_rank,
                group_size_fallback_mode=nncf.GroupSizeFallbackMode(compression.group_size_fallback),
            ),
        )
    quantizers = _quantizers(model)
    if quantizers.keys() != by_parameter.keys():
        raise ModelError(
            f"NNCF puts adapters on {len(quantizers)} weights of {type(model).__name__}, and {len(by_parameter)} "
            f"of the graph are in {compression.mode}",
            where="training.method fq_lora",
            hint="write training.method: distillation",
        )
    parameters = dict(model.named_parameters())
    return [
        Trained(name, _learnables(quantizer), functools.partial(_learned, quantizer, parameters[each], weights[name]))
        for each, quantizer in sorted(quantizers.items())
        for name in (by_parameter[each],)
    ]


def _quantizers(model: Any) -> Mapping[str, Quantizer]:
    """NNCF's quantizers with adapters, by the names of the parameters that they quantize."""
    hooks = get_hook_storage(model).named_hooks()
    return {decode_hook_name(name)[1]: hook for name, hook in hooks if isinstance(hook, Quantizer)}


def _learnables(quantizer: Quantizer) -> tuple[Learnable, ...]:
    """Adapters in f32, since NNCF's bf16 loses most of a step, and ranges, whose rate is a share of themselves."""
    adapters = {
        name: torch.nn.Parameter(adapter.detach().float()) for name, adapter in quantizer.get_adapters().items()
    }
    for name, adapter in adapters.items():
        setattr(quantizer, name, adapter)
    quantizer.enable_gradients()
    found = []
    for name, parameter in quantizer.get_trainable_params().items():
        first = parameter.detach().clone()
        if name in adapters:
            found.append(Learnable("adapter", parameter, first.clone))
        else:
            found.append(Learnable("scale", parameter, first.clone, float(first.abs().mean())))
    return tuple(found)


def _learned(quantizer: Quantizer, weight: torch.Tensor, start: IntegerWeight) -> IntegerWeight:
    """The codes, scales and zero points that NNCF's ``strip`` would make, in the graph's layout."""
    with torch.no_grad(), autocast(weight.device):
        values = quantizer.quantize(weight).float().reshape(start.codes.shape)
        low, high = float(start.low), float(start.high)
        zero_points = None
        if isinstance(quantizer, AsymmetricLoraQuantizer):
            safe = quantizer.input_range.abs() + quantizer.eps
            lowest, extent = TuneRange.apply(quantizer.input_low, safe, quantizer.levels)
            scale = _away_from_zero(extent.float() / high)
            zero_points = (low - (lowest.float() / scale).round()).clamp(low, high)
        else:
            scale = _away_from_zero(quantizer.scale.float() / abs(low))
        codes = values / scale + (0.0 if zero_points is None else zero_points)
        codes = codes.round().clamp(low, high)
    return start._replace(
        codes=codes.cpu().numpy().astype(np.int16),
        scales=scale.cpu().numpy().astype(np.float16),
        zero_points=None if zero_points is None else zero_points.cpu().numpy().astype(np.int16),
    )


def _away_from_zero(scale: torch.Tensor) -> torch.Tensor:
    least = torch.finfo(torch.float32).eps
    return torch.where(scale.abs() < least, least, scale)
