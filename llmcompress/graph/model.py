"""What an ``ov.Model`` is: checks of the graph, and how much of it is still mapped from files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError, last_line
from llmcompress.report.file_names import MODEL, model_files

if TYPE_CHECKING:
    import openvino as ov

CONVERSION_MARKS = ("DisableConstantFolding_0", "can_be_folded", "dequantization_node_0")
_ELEMENTWISE = {"Add", "Convert", "Divide", "Multiply", "Subtract", "Tanh"}
QUANTIZED_SOURCE = ["llmcompress", "quantized_source"]
_SIXTEEN_BIT = "._openvino_orig_weight"
_HALF = re.compile(r"__module\.(?P<experts>.+\.experts)/prim::ListUnpack/VariadicSplit\.(?P<number>\d+)")
"""Of the stack of experts' gates and the layers that they gate."""
"""How the exporter names a linear layer's weight in a model that it traces in 16 bits."""
REQUIRED_INPUTS = ("attention_mask", "beam_idx")


def check_decoder(model: ov.Model, *, where: str, takes: str = "input_ids") -> None:
    """Refuse a graph that is not a stateful causal decoder with its past inside.

    Args:
        model: To be checked.
        where: For people.
        takes: The input that holds the text.

    Raises:
        ModelError: An input, the logits or the state is missing.
    """
    inputs = {name for port in model.inputs for name in port.get_names()}
    outputs = {name for port in model.outputs for name in port.get_names()}
    missing = [name for name in (takes, *REQUIRED_INPUTS) if name not in inputs]
    if "logits" not in outputs:
        missing.append("logits")
    if not model.get_variables():
        missing.append("the key-value cache as state")
    if missing:
        raise ModelError(
            f"the graph is no stateful causal decoder: it lacks {', '.join(missing)}",
            where=where,
            hint="export it as text-generation-with-past and stateful, or give the original checkpoint",
        )


def keep_alive(model: ov.Model, owners: object) -> None:
    """Tie the owners of a model's memory to the model's Python object; what shares the memory needs the same tie."""
    model._llmcompress_memory_owners = owners


def memory_owners(model: ov.Model) -> object:
    """What ``keep_alive`` tied to a model."""
    return getattr(model, "_llmcompress_memory_owners", None)


def forget_conversion(model: ov.Model) -> None:
    """Remove the marks of the conversion that saving to an IR drops.

    With them the plugin fuses a little differently: activations would differ in the last bits, and so would whatever
    is calibrated with them, from those of the same model read from its IR.
    """
    for op in model.get_ops():
        marks = op.get_rt_info()
        for name in CONVERSION_MARKS:
            if name in marks:
                del marks[name]


def set_runtime_options(model: ov.Model, options: Mapping[str, str]) -> None:
    """Put options, by OpenVINO's names, where a plugin reads them in a model."""
    for name, value in options.items():
        model.set_rt_info(value, ["runtime_options", name])


def unpin_cache(model: ov.Model) -> None:
    """Lift the exporter's hint that pins the cache to f16, which is for uncompressed models; Optimum does the same."""
    options = model.get_rt_info("runtime_options").value if model.has_rt_info("runtime_options") else {}
    if options.get("KV_CACHE_PRECISION") == "f16":
        del options["KV_CACHE_PRECISION"]
        model.set_rt_info(options, "runtime_options")


def number_nodes(model: ov.Model) -> None:
    """Give nodes, and a model, without a name of their own one that depends on the graph alone.

    OpenVINO numbers them ("Slice_144", "Convert_127.0", "Model3") over the whole process; the file must not tell what
    else was built in it.
    """
    if re.fullmatch(r"Model\d+", model.get_friendly_name()):
        model.set_friendly_name("Model")
    automatic = re.compile(r"\w+_\d+(\.\d+)?")
    for number, node in enumerate(model.get_ordered_ops()):
        name = f"{node.get_type_name()}_{number}"
        if automatic.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(name)
        for output in node.outputs():
            names = output.get_names()
            if any(automatic.fullmatch(old) for old in names):
                output.set_names({name if automatic.fullmatch(old) else old for old in names})


def nncf_records(model: ov.Model) -> dict[str, dict[str, Any]]:
    """What NNCF recorded in the graph of its last run of each kind: ``weight_compression`` and ``quantization``."""
    paths = {kind: ["nncf", kind] for kind in ("weight_compression", "quantization")}
    return {kind: model.get_rt_info(path).value for kind, path in paths.items() if model.has_rt_info(path)}


def mark_quantized_source(model: ov.Model, method: str) -> None:
    """Record in a graph that its weights came quantized, and by what."""
    model.set_rt_info(method, QUANTIZED_SOURCE)


def is_compressed(model: ov.Model) -> bool:
    """Whether NNCF has recorded an optimisation in the graph, or its source was quantized already."""
    return bool(nncf_records(model)) or model.has_rt_info(QUANTIZED_SOURCE)


def count_parameters(model: ov.Model) -> int:
    """Number of elements in the floating-point constants of an uncompressed graph."""
    return sum(num_elements(op) for op in model.get_ops() if is_weight(op))


def mapped_share(model: ov.Model) -> float:
    """Share of the weight bytes whose memory lies in a mapped file (0 where the system cannot tell)."""
    import psutil

    process = psutil.Process()
    try:
        maps = process.memory_maps(grouped=False)
    except (AttributeError, psutil.Error, OSError):
        return 0.0
    ranges = [
        tuple(int(end, 16) for end in region.addr.split("-"))
        for region in maps
        if region.path.endswith((".safetensors", ".bin")) or "/blobs/" in region.path
    ]
    total = mapped = 0
    for op in model.get_ops():
        if not is_weight(op):
            continue
        size = op.get_byte_size()
        total += size
        address = op.data.ctypes.data
        mapped += size if any(start <= address < end for start, end in ranges) else 0
    return mapped / total if total else 0.0


def num_elements(op: ov.Node) -> int:
    """Number of elements of a node's first output."""
    return math.prod(int(dimension) for dimension in op.get_output_shape(0))


def logits_result(model: ov.Model) -> ov.Node:
    """The graph's output of logits.

    Raises:
        ModelError: There is none.
    """
    for result in model.get_results():
        if "logits" in result.input_value(0).get_names() | result.output(0).get_names():
            return result
    raise ModelError("the graph has no output logits", where="model", hint="export it as text-generation-with-past")


def logits_at(result: ov.Node, chosen: Callable[[ov.Output], ov.Node]) -> ov.Output:
    """The logits at chosen positions, cut before the output head where it can be found.

    Args:
        result: What ``logits_result`` found.
        chosen: Takes the positions from a value that has them.
    """
    node = result.input_value(0).get_node()
    while node.get_type_name() in _ELEMENTWISE:
        varying = [source for port in node.inputs() if not is_constant(source := port.get_source_output().get_node())]
        if len(varying) != 1:
            break
        node = varying[0]
    if node.get_type_name() == "MatMul" and node.input_value(0).get_partial_shape().rank.get_length() == 3:
        node.input(0).replace_source_output(chosen(node.input_value(0)).output(0))
        value: ov.Output = result.input_value(0)
        return value
    return chosen(result.input_value(0)).output(0)


def slice_positions(value: ov.Output | ov.Node, first: ov.Node) -> ov.Node:
    """``value[:, first:]``, with ``first`` int64 ``[1]``."""
    from openvino import opset15 as ops

    end = ops.constant([2**31 - 1], dtype="int64")
    return ops.slice(value, first, end, ops.constant([1], dtype="int64"), ops.constant([1], dtype="int64"))


def take_rows(value: ov.Output | ov.Node, rows: ov.Node) -> ov.Node:
    """``value[rows]``, with ``rows`` int64 ``[n]``."""
    from openvino import opset15 as ops

    return ops.gather(value, rows, ops.constant(0, dtype="int64"))


def is_constant(node: ov.Node) -> bool:
    """Whether a value comes from constants alone, as a compressed weight does; what is read from the state does not."""
    if node.get_input_size() == 0:
        return bool(node.get_type_name() == "Constant")
    return node.get_type_name() != "ReadValue" and all(
        is_constant(port.get_source_output().get_node()) for port in node.inputs()
    )


def is_weight(op: ov.Node) -> bool:
    """Whether a node holds floating-point numbers, and more than one."""
    return op.get_type_name() == "Constant" and op.get_element_type().is_real() and num_elements(op) > 1


def read_ir(directory: Path, part: str = MODEL) -> ov.Model:
    """Read ``openvino_model.xml``, or another part of a model, and map its ``.bin``.

    Raises:
        ModelError: The files are damaged or incomplete.
    """
    import openvino as ov

    name = model_files(part)[0]
    try:
        return ov.Core().read_model(directory / name)
    except RuntimeError as error:
        raise ModelError(
            f"OpenVINO could not read the model: {last_line(error)}",
            where=f"{directory.name}/{name}",
            hint="export or copy the directory again; `llmcompress verify` names damaged files of our own artifacts",
        ) from error


def parameter_name(constant: str) -> str:
    """The name in the checkpoint's class of the weight that the exporter put into a constant."""
    if (half := _HALF.fullmatch(constant)) is not None:
        return f"{half['experts']}.gate_up_proj.{half['number']}"
    name = constant.removeprefix("self.")
    return name.removesuffix(_SIXTEEN_BIT) + ".weight" if name.endswith(_SIXTEEN_BIT) else name
