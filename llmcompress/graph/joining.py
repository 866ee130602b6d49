"""A language model that takes embeddings, and what makes them of token ids: joined to a decoder of text, or apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError
from llmcompress.graph.device import PINNED, compile_model, decoder_inputs, input_names
from llmcompress.graph.model import keep_alive, memory_owners, read_ir
from llmcompress.graph.recurrence import find_recurrence
from llmcompress.report.file_names import LANGUAGE_MODEL, model_files

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

    TextFeed = Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]]
    """Token ids int64 ``[tokens]`` -> what a decoder is fed to read them in one call."""

TEXT = "text_embeddings_model"
PER_LAYER = "text_embeddings_per_layer_model"
_OWN = ("attention_mask", "beam_idx")


def text_decoder(language_model: ov.Model, parts: Mapping[str, ov.Model], *, where: str) -> ov.Model:
    """The graph that reads text alone, fed as Optimum's ``OVModelForVisualCausalLM`` feeds its parts without a picture.

    Positions are the same in all rows of those that tell height and width; what marks pictures is zero.

    Args:
        language_model: Takes ``inputs_embeds``; it is copied, and its weights stay shared.
        parts: The others, by the exporter's names.
        where: For people.

    Raises:
        ModelError: It takes something else that text alone does not give.
    """
    import openvino as ov

    model = language_model.clone()
    parameters, values = _made_of_text(model, parts, where)
    for old in model.get_parameters():
        name = old.output(0).get_any_name()
        if name in values:
            old.output(0).replace(values[name])
        else:
            parameters.append(old)
    for parameter in parameters:
        # What takes the place of an input takes its names too.
        if parameter.get_friendly_name() in ("input_ids", "position_ids"):
            parameter.output(0).set_names({parameter.get_friendly_name()})
    joined = ov.Model(model.get_results(), model.get_sinks(), parameters, language_model.get_friendly_name())
    if language_model.has_rt_info("runtime_options"):
        joined.set_rt_info(language_model.get_rt_info("runtime_options").value, "runtime_options")
    joined.validate_nodes_and_infer_types()
    keep_alive(joined, [memory_owners(graph) for graph in (language_model, *parts.values())])
    return joined


def read_decoder(directory: Path) -> ov.Model:
    """Read what reads text in a directory: its model, or its language model joined with what embeds text.

    Raises:
        ModelError: The files are damaged or incomplete; or as ``text_decoder``.
    """
    if not (directory / model_files(LANGUAGE_MODEL)[0]).is_file():
        return read_ir(directory)
    there = [part for part in (TEXT, PER_LAYER) if (directory / model_files(part)[0]).is_file()]
    parts = {part: read_ir(directory, part) for part in there}
    return text_decoder(read_ir(directory, LANGUAGE_MODEL), parts, where=directory.name)


def text_feed(model: ov.Model, parts: Mapping[str, ov.Model] | None = None, *, where: str = "") -> TextFeed:
    """What feeds a decoder that stays as it is: a text model's, or a language model by the parts that embed its text.

    Args:
        model: The decoder.
        parts: What else there is of a vision-language model, by the exporter's names; of a text model nothing.
        where: For people.

    Raises:
        ModelError: As ``text_decoder``.
    """
    import openvino as ov
    from openvino import opset13 as ops

    recurrence = find_recurrence(model)
    names = input_names(model)
    if not parts:
        return lambda token_ids: decoder_inputs(token_ids[None], 0, names, recurrence)
    taken, values = _made_of_text(model, parts, where)
    for parameter in taken:
        parameter.output(0).set_names({parameter.get_friendly_name()})
    feeder = ov.Model([ops.result(value) for value in values.values()], taken, "feeder")
    compiled = compile_model(feeder, "CPU", PINNED)
    asked = input_names(feeder)
    keep_alive(compiled, [memory_owners(part) for part in parts.values()])

    def feed(token_ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        given = decoder_inputs(token_ids[None], 0, names | asked, recurrence)
        made = compiled({name: given[name] for name in asked})
        others = {name: value for name, value in given.items() if name in names}
        return {**others, **{name: made[number] for number, name in enumerate(values)}}

    return feed


def _made_of_text(
    model: ov.Model, parts: Mapping[str, ov.Model], where: str
) -> tuple[list[ov.op.Parameter], dict[str, ov.Output]]:
    """Of token ids and positions: these as parameters, and what is made of them, by the names of a model's inputs."""
    import openvino as ov
    from openvino import opset13 as ops

    ids = ops.parameter(ov.PartialShape([-1, -1]), ov.Type.i64, name="input_ids")
    parameters, values = [ids], {}
    for old in model.get_parameters():
        name = old.output(0).get_any_name()
        if name in _OWN or (name == "position_ids" and old.get_partial_shape().rank.get_length() == 2):
            continue
        if name == "position_ids":
            positions = ops.parameter(ov.PartialShape([-1, -1]), old.get_element_type(), name=name)
            parameters.append(positions)
            rows = [ops.unsqueeze(positions, ops.constant(0))] * old.get_partial_shape()[0].get_length()
            values[name] = ops.concat(rows, 0).output(0)
        else:
            values[name] = _of_text(name, old, ids, parts, where)
    return parameters, values


def _of_text(name: str, old: ov.Node, ids: ov.Node, parts: Mapping[str, ov.Model], where: str) -> ov.Output:
    """What an input of a language model is where there is no picture."""
    from openvino import opset13 as ops

    source = {"inputs_embeds": TEXT, "per_layer_inputs": PER_LAYER}.get(name, "")
    if source in parts:
        graph = parts[source].clone()
        (taken,) = graph.get_parameters()
        taken.output(0).replace(ids.output(0))
        value: ov.Output = graph.get_results()[0].input_value(0)
        return value
    if name in ("token_type_ids", "visual_pos_masks"):
        return ops.convert(ops.not_equal(ids, ids), old.get_element_type()).output(0)
    if name == "deepstack_visual_embeds":
        layers, width = (old.get_partial_shape()[axis].get_length() for axis in (0, 2))
        tokens = ops.reduce_prod(ops.shape_of(ids), ops.constant([0]), True)
        shape = ops.concat([ops.constant([layers]), tokens, ops.constant([width])], 0)
        return ops.broadcast(ops.constant(0.0, old.get_element_type()), shape).output(0)
    raise ModelError(
        f"its language model takes {name}, which text alone does not give",
        where=where,
        hint="openvino_genai.VLMPipeline and Optimum's OVModelForVisualCausalLM run it",
    )
