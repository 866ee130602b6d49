"""A language model that takes embeddings, joined with what makes them of token ids: a decoder of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmcompress.errors import ModelError
from llmcompress.graph.model import keep_alive, memory_owners

if TYPE_CHECKING:
    import openvino as ov

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
    from openvino import opset13 as ops

    model = language_model.clone()
    ids = ops.parameter(ov.PartialShape([-1, -1]), ov.Type.i64, name="input_ids")
    parameters = [ids]
    for old in model.get_parameters():
        name = old.output(0).get_any_name()
        if name in _OWN or (name == "position_ids" and old.get_partial_shape().rank.get_length() == 2):
            parameters.append(old)
            continue
        if name == "position_ids":
            positions = ops.parameter(ov.PartialShape([-1, -1]), old.get_element_type(), name=name)
            parameters.append(positions)
            rows = [ops.unsqueeze(positions, ops.constant(0))] * old.get_partial_shape()[0].get_length()
            value = ops.concat(rows, 0).output(0)
        else:
            value = _of_text(name, old, ids, parts, where)
        old.output(0).replace(value)
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
