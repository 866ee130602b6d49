"""``nncf.quantize``: the arguments for quantizing activations and weights of a decoder."""

from __future__ import annotations

from typing import Any

from llmcompress.recipe import Quantization

FP8_MODES = {"fp8_e4m3": "FP8_E4M3", "fp8_e5m2": "FP8_E5M2"}


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
    scope = quantization.ignored_scope
    return {
        "mode": nncf.QuantizationMode[fp8] if fp8 else None,
        "preset": nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
        "subset_size": num_windows,
        "fast_bias_correction": quantization.fast_bias_correction,
        "model_type": nncf.ModelType.TRANSFORMER,
        "ignored_scope": nncf.IgnoredScope(
            names=list(scope.names), patterns=list(scope.patterns), types=list(scope.types)
        ),
        "advanced_parameters": advanced,
    }
