"""``nncf.quantize``: activations and weights of an ``ov.Model`` in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcompress.compression.nncf.accuracy_control import quantize_with_accuracy_control
from llmcompress.compression.nncf.runs import (
    Samples,
    mark_as_optimized,
    nncf_scope,
    progress_reported,
    refusals_explained,
)
from llmcompress.errors import DataError
from llmcompress.graph.device import PINNED, compile_model
from llmcompress.graph.model import keep_alive, memory_owners
from llmcompress.report.compression import AccuracyRecord
from llmcompress.spec import Quantization
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.data import CalibrationWindows

FP8_MODES = {"fp8_e4m3": "FP8_E4M3", "fp8_e5m2": "FP8_E5M2"}


def quantize_activations(
    model: ov.Model,
    quantization: Quantization,
    samples: Samples,
    held_out: CalibrationWindows | None,
    *,
    progress: Reporter = silent,
) -> tuple[ov.Model, AccuracyRecord | None]:
    """Quantize, without accuracy control exactly as stock NNCF does with the same options, and return a new model.

    Args:
        model: A stateful decoder; weights that are compressed already keep their format.
        quantization: What to do.
        samples: For calibration; the cache is emptied before each.
        held_out: From these, for accuracy control.

    Returns:
        The model, and what accuracy control did.

    Raises:
        ModelError: NNCF cannot apply these settings to this graph.
        DataError: the model gives numbers that are not finite.
        GateError: accuracy control cannot keep what it must.
    """
    import nncf

    from llmcompress.compression.nncf.quantization_memory import little_memory

    _check_finite(model, samples, progress)
    arguments = quantize_arguments(quantization, num_windows=len(samples))
    explained = refusals_explained(
        where=f"activations.mode {quantization.mode}",
        hint="change the recipe's activations, or name the operations in activations.ignored_scope",
    )
    dataset, control, accuracy = samples.dataset(), quantization.accuracy_control, None
    with explained, progress_reported(progress), little_memory(model):
        if control is None:
            quantized = nncf.quantize(model, dataset, **arguments)
        else:
            assert held_out is not None
            given = dataset, held_out, arguments, samples.feed
            quantized, accuracy = quantize_with_accuracy_control(model, control, *given)
    # What stays in floating point is still the memory of the source.
    keep_alive(quantized, memory_owners(model))
    mark_as_optimized(quantized)
    return quantized, accuracy


def _check_finite(model: ov.Model, samples: Samples, progress: Reporter) -> None:
    """NNCF would take ranges of NaN without a word."""
    import numpy as np

    compiled = compile_model(model, "CPU", PINNED)
    for number, sample in enumerate(samples, 1):
        logits = compiled.create_infer_request().infer(sample)["logits"]
        if not np.isfinite(logits).all():
            raise DataError(
                f"the model gives NaN or infinite logits on calibration window {number} of {len(samples)}: no ranges "
                "can be measured",
                where="calibration",
                hint="check the model with `llmcompress eval`, and the text for tokens that it does not know",
            )
        progress(Progress("check the activations", number, len(samples)))


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
