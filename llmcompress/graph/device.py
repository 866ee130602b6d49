"""Compiling a model for a device, and what the device really does with it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError, UsageError, last_line
from llmcompress.graph.recurrence import Recurrence, find_recurrence, keep_recurrence
from llmcompress.spec.evaluation import Precision
from llmcompress.spec.runtime import RuntimeProfile
from llmcompress.system.environment import cpu_name

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

PINNED = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
    "KEY_CACHE_PRECISION": "f32",
    "VALUE_CACHE_PRECISION": "f32",
}
"""Exact execution on the CPU: the error of the weights alone."""

PINNED_ELSEWHERE = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f16",
}
"""The same for other devices, whose cache is f16 where it is not quantized."""

REPORTED = (
    "EXECUTION_DEVICES",
    "INFERENCE_PRECISION_HINT",
    "EXECUTION_MODE_HINT",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "KV_CACHE_PRECISION",
    "KEY_CACHE_PRECISION",
    "VALUE_CACHE_PRECISION",
    "KEY_CACHE_GROUP_SIZE",
    "VALUE_CACHE_GROUP_SIZE",
    "NUM_STREAMS",
    "INFERENCE_NUM_THREADS",
)
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "uint8_t": "u8", "int8_t": "i8"}


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have, before anything slow.

    Raises:
        UsageError: No such device on this machine.
    """
    import openvino as ov

    available = ov.Core().available_devices
    if device.split(".")[0].split(":")[0] not in {name.split(".")[0] for name in available} | {"AUTO", "HETERO"}:
        raise UsageError(
            f"there is no device {device}; this machine has {', '.join(available)}",
            where="device",
            hint="llmcompress doctor lists devices and drivers",
        )


def properties_of(device: str, precision: Precision, profile: RuntimeProfile | None = None) -> dict[str, str]:
    """The properties that a precision and a profile ask of a device; what it does not know of a precision is left out.

    Raises:
        UsageError: The device, such as AUTO, cannot be pinned.
    """
    import openvino as ov

    if profile is not None and profile.cpu != cpu_name():
        _log.warning("runtime profile %s was found on %s, this is %s", profile.name, profile.cpu, cpu_name())
    if precision == "as_used":
        return profile.as_properties() if profile is not None else {}
    try:
        known = set(ov.Core().get_property(device, "SUPPORTED_PROPERTIES"))
    except RuntimeError as error:
        raise UsageError(f"it cannot be asked for its properties: {last_line(error)}", where=device) from None
    pinned = PINNED if device.startswith("CPU") else PINNED_ELSEWHERE
    if "INFERENCE_PRECISION_HINT" not in known:
        raise UsageError(
            "it does not take the properties that exact execution needs",
            where=device,
            hint="name the device itself, such as CPU or GPU",
        )
    return {name: value for name, value in pinned.items() if name in known}


def compile_model(model: ov.Model, device: str, properties: dict[str, str]) -> ov.CompiledModel:
    """Compile for a device.

    Raises:
        UsageError: The device refuses the model or a property.
    """
    import openvino as ov

    try:
        compiled = ov.Core().compile_model(model, device, properties)
    except RuntimeError as error:
        raise UsageError(f"the device refuses it: {last_line(error)}", where=device, hint="try `device=CPU`") from error
    keep_recurrence(compiled, find_recurrence(model))
    return compiled


def input_names(model: ov.Model | ov.CompiledModel) -> set[str]:
    """Names of the inputs that a model has."""
    return {name for port in model.inputs for name in port.get_names()}


def decoder_inputs(
    token_ids: NDArray[np.int64], past: int, names: Collection[str], recurrence: Recurrence | None = None
) -> dict[str, NDArray[Any]]:
    """What a stateful decoder is fed in one call, of the inputs it has.

    Args:
        token_ids: int64 ``[batch, tokens]``, nothing padded on the left.
        past: Tokens that its cache holds already.
        names: Of its inputs.
        recurrence: Of a graph that has it.

    Raises:
        ModelError: A recurrence that goes on token by token is given several after a past.
    """
    import numpy as np

    size, count = token_ids.shape
    num_seen = past + count
    positions = cache_positions = np.arange(past, past + count, dtype=np.int64)
    if recurrence is not None:
        if past and count > 1:
            raise ModelError(
                f"the graph goes on from its state token by token, and {count} tokens after {past} were given",
                where="the recurrent layers",
                hint="give a prompt from its beginning, without `depth`",
            )
        # To the graph all positions beyond the kernel are the same.
        num_seen, cache_positions = count, np.arange(recurrence.kernel - 1 if past else 0, recurrence.kernel)
    values: dict[str, NDArray[Any]] = {
        "input_ids": np.ascontiguousarray(token_ids, dtype=np.int64),
        "attention_mask": np.ones((size, num_seen), dtype=np.int64),
        "position_ids": np.tile(positions, (size, 1)),
        "cache_position": cache_positions,
        "beam_idx": np.arange(size, dtype=np.int32),
    }
    return {name: value for name, value in values.items() if name in names}


def effective_properties(compiled: ov.CompiledModel, names: Collection[str] = REPORTED) -> dict[str, str]:
    """What the compiled model really uses, of the properties that change its results or its speed."""
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    return {name: _text(compiled.get_property(name)) for name in names if name in known}


def executed_precisions(compiled: ov.CompiledModel) -> Counter[tuple[str, str]]:
    """Number of operations that the plugin executes, by its name for their type and the precision it computes in."""
    infos = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return Counter((str(info["layerType"].value), str(info["runtimePrecision"].value)) for info in infos)


def differences(candidate: dict[str, str], reference: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Properties in which two models differ, as ``(candidate, reference)``."""
    names = sorted(candidate.keys() | reference.keys())
    pairs = {name: (candidate.get(name, "none"), reference.get(name, "none")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _text(value: object) -> str:
    import openvino as ov

    if isinstance(value, ov.Type):
        return str(value.get_type_name())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    text = str(getattr(value, "name", value))
    return _SHORT.get(text, text)
