"""``nncf.quantize``: activations and weights of an ``ov.Model`` in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcompress.compression.nncf_runs import (
    mark_as_optimized,
    model_inputs,
    nncf_scope,
    progress_reported,
    refusals_explained,
)
from llmcompress.errors import DataError
from llmcompress.loaders.graph import keep_alive, memory_owners
from llmcompress.progress import Reporter, silent
from llmcompress.recipe import Quantization
from llmcompress.runtime import PINNED, compile_model

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov

FP8_MODES = {"fp8_e4m3": "FP8_E4M3", "fp8_e5m2": "FP8_E5M2"}


def quantize_activations(
    model: ov.Model, quantization: Quantization, token_ids: np.ndarray, *, progress: Reporter = silent
) -> ov.Model:
    """Quantize, exactly as stock NNCF does with the same options, and return a new model.

    Args:
        model: A stateful decoder; weights that are compressed already keep their format.
        quantization: What to do, without accuracy control.
        token_ids: Calibration windows, int64 ``[num_windows, seq_len]``; the cache is emptied before each.

    Raises:
        ModelError: NNCF cannot apply these settings to this graph.
        DataError: the model gives numbers that are not finite on the first window.
    """
    import nncf

    samples = list(model_inputs(model, token_ids))
    _check_finite(model, samples[0])
    arguments = quantize_arguments(quantization, num_windows=len(samples))
    explained = refusals_explained(
        where=f"activations.mode {quantization.mode}",
        hint="change the recipe's activations, or name the operations in activations.ignored_scope",
    )
    with explained, progress_reported(progress):
        quantized = nncf.quantize(model, nncf.Dataset(samples), **arguments)
    # What stays in floating point is still the memory of the source.
    keep_alive(quantized, memory_owners(model))
    mark_as_optimized(quantized)
    return quantized


def _check_finite(model: ov.Model, sample: dict[str, np.ndarray]) -> None:
    """NNCF would take ranges of NaN without a word."""
    import numpy as np

    request = compile_model(model, "CPU", PINNED).create_infer_request()
    logits = request.infer(sample)["logits"]
    if not np.isfinite(logits).all():
        raise DataError(
            "the model gives NaN or infinite logits on the first calibration window: no ranges can be measured",
            where="calibration",
            hint="check the model with `llmcompress eval`, and the text for tokens that it does not know",
        )


def quantize_arguments(quantization: Quantization, *, num_windows: int) -> dict[str, Any]:
    """The keyword arguments of ``nncf.quantize``, as Optimum gives them: for a transformer, without overflow fix.

    Args:
        quantization: What to do; accuracy control is another function of NNCF's.
        num_windows: Calibration windows that there are.
    """
    import nncf

    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE)
    if quantization.smooth_quant_alpha is not None:
        advanced.smooth_quant_alphas.matmul = quantization.smooth_quant_alpha
    fp8 = FP8_MODES.get(quantization.mode)
    symmetric = fp8 is not None or quantization.preset == "performance"
    return {
        "mode": nncf.QuantizationMode[fp8] if fp8 else None,
        "preset": nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
        "subset_size": num_windows,
        "fast_bias_correction": quantization.fast_bias_correction,
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf_scope(quantization.ignored_scope),
        "advanced_parameters": advanced,
    }
