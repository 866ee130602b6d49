"""The reductions that turn a decoder into a scorer: what leaves the plugin is a few numbers per token, not its logits.

They come after the last matrix multiplication, which the CPU plugin leaves in f32 whatever precision the rest of the
graph is executed in. The output head is computed for scored positions alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from llmcompress.errors import ModelError
from llmcompress.graph.model import logits_at, logits_result, slice_positions, take_rows
from llmcompress.graph.paged import is_paged

if TYPE_CHECKING:
    import openvino as ov

Kind = Literal["nll", "logits", "divergence", "top_k", "at_top_k"]

TARGETS = "targets"
"""int64 [batch, tokens]: the token that follows each position."""
FIRST = "first_scored_position"
"""int64 [1]: positions before it get no logits; the outputs have [batch, tokens - first]."""
ROWS = "scored_rows"
"""int64 [n], of a paged graph: its rows that get logits; targets are [rows, 1] there, and the outputs have [n, 1]."""
REFERENCE_LOGITS = "reference_logits"
"""float32 [batch, tokens - first, vocabulary]."""
REFERENCE_IDS = "reference_ids"
"""int32 [batch, tokens - first, K]."""


def vocabulary_size(model: ov.Model) -> int:
    """Number of logits per position.

    Raises:
        ModelError: The graph leaves it open.
    """
    size = logits_result(model).input_value(0).get_partial_shape()[2]
    if size.is_dynamic:
        raise ModelError(
            "the number of logits is not fixed in the graph", where="logits", hint="export the model again"
        )
    return int(size.get_length())


def add_scores(model: ov.Model, kind: Kind, *, top_k: int = 0) -> None:
    """Put the reductions on a decoder's logits, in place.

    Args:
        model: Stateful or paged.
        kind: ``nll``: negative log-likelihood of the targets. ``logits``: the logits themselves, f32. ``divergence``:
            also the KL divergence from ``reference_logits`` and whether both prefer the same token. ``top_k``: also the
            K likeliest tokens and their log-probabilities, sorted. ``at_top_k``: also the log-probabilities at
            ``reference_ids``, and the likeliest token.
    """
    import openvino as ov
    from openvino import opset15 as ops

    result = logits_result(model)
    if is_paged(model):
        position = _parameter(ROWS, ov.Type.i64, [-1])
        scored = partial(take_rows, rows=position)
    else:
        position = _parameter(FIRST, ov.Type.i64, [1])
        scored = partial(slice_positions, first=position)
    parameters, outputs = [position], {}
    logits = ops.convert(logits_at(result, scored), ov.Type.f32)
    if kind == "logits":
        outputs["logits"] = logits
    else:
        targets = _parameter(TARGETS, ov.Type.i64, [-1, -1])
        parameters.append(targets)
        following = ops.unsqueeze(scored(targets), ops.constant(2))
        log_sum = _log_sum_exp(logits)
        outputs["nll"] = _at(log_sum, logits, following)
    if kind == "divergence":
        reference = _parameter(REFERENCE_LOGITS, ov.Type.f32, [-1, -1, -1])
        parameters.append(reference)
        reference_sum = _log_sum_exp(reference)
        outputs["reference_nll"] = _at(reference_sum, reference, following)
        outputs |= _divergence(logits, log_sum, reference, reference_sum)
        outputs["agrees"] = ops.convert(ops.equal(_top_id(logits), _top_id(reference)), ov.Type.f32)
    elif kind == "top_k":
        top = ops.topk(logits, ops.constant(top_k), 2, "max", "value", index_element_type="i32")
        outputs["log_probabilities"] = ops.subtract(top.output(0), log_sum)
        outputs["ids"] = ops.convert(top.output(1), ov.Type.i32)
    elif kind == "at_top_k":
        ids = _parameter(REFERENCE_IDS, ov.Type.i32, [-1, -1, -1])
        parameters.append(ids)
        outputs["log_probabilities"] = ops.subtract(ops.gather_elements(logits, ids, 2), log_sum)
        outputs["top_id"] = _top_id(logits)
    model.remove_result(result)
    model.add_parameters(parameters)
    for name, value in outputs.items():
        port = value.output(0)
        port.set_names({name})
        model.add_results([ops.result(port)])
    model.validate_nodes_and_infer_types()


def _parameter(name: str, element_type: ov.Type, shape: list[int]) -> ov.Node:
    from openvino import PartialShape
    from openvino import opset15 as ops

    node = ops.parameter(PartialShape(shape), element_type, name=name)
    node.output(0).set_names({name})
    return node


def _log_sum_exp(logits: ov.Node) -> ov.Node:
    from openvino import opset15 as ops

    axis = ops.constant([2])
    largest = ops.reduce_max(logits, axis, True)
    return ops.add(ops.log(ops.reduce_sum(ops.exp(ops.subtract(logits, largest)), axis, True)), largest)


def _at(log_sum: ov.Node, logits: ov.Node, following: ov.Node) -> ov.Node:
    from openvino import opset15 as ops

    return ops.squeeze(ops.subtract(log_sum, ops.gather_elements(logits, following, 2)), ops.constant(2))


def _divergence(logits: ov.Node, log_sum: ov.Node, reference: ov.Node, reference_sum: ov.Node) -> dict[str, ov.Node]:
    """KL(reference || candidate) in two forms.

    With p the reference's probabilities, d the difference of the logits and m = sum(p d), it is
    ``log(sum(p exp(d - m)))``: near 1 under the logarithm, so f32 keeps an absolute error of about 1e-7, where the
    difference of two log-sums of size 10 keeps 1e-6. That difference, ``kl_coarse``, is for models so far apart that
    the exponential overflows.
    """
    from openvino import opset15 as ops

    axis = ops.constant([2])
    probabilities = ops.exp(ops.subtract(reference, reference_sum))
    difference = ops.subtract(logits, reference)
    mean = ops.reduce_sum(ops.multiply(probabilities, difference), axis, True)
    spread = ops.multiply(probabilities, ops.exp(ops.subtract(difference, mean)))
    # The rounded probabilities do not sum to 1; what both sums share falls out.
    ratio = ops.divide(ops.reduce_sum(spread, axis, True), ops.reduce_sum(probabilities, axis, True))
    coarse = ops.subtract(ops.subtract(log_sum, reference_sum), mean)
    return {
        "kl": ops.squeeze(ops.log(ratio), ops.constant(2)),
        "kl_coarse": ops.squeeze(coarse, ops.constant(2)),
    }


def _top_id(logits: ov.Node) -> ov.Node:
    """The likeliest token; of equally likely ones, which rounded logits have, the first, as greedy decoding takes."""
    from openvino import opset15 as ops

    top = ops.topk(logits, ops.constant(1), 2, "max", "value", index_element_type="i32")
    return ops.squeeze(top.output(1), ops.constant(2))
