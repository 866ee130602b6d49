"""The metric that accuracy control goes by: a compiled decoder and held-out windows in, one number out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import DataError
from llmcompress.evaluation.graph import FIRST, REFERENCE_LOGITS, TARGETS, add_scores, vocabulary_size
from llmcompress.evaluation.statistics import exact_kl
from llmcompress.graph.device import PINNED, compile_model
from llmcompress.graph.joining import text_feed

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

    from llmcompress.graph.joining import TextFeed

    Window = NDArray[np.int64]
    """``[seq_len]``"""
    AccuracyMetric = Callable[[ov.CompiledModel, Iterable[Window]], tuple[float, list[float]]]
    """A compiled decoder and windows -> the metric over all and of each alone, as ``scale`` has it."""


class Scale(NamedTuple):
    """A figure in its unit as NNCF takes it, higher is better, and back."""

    metric: Callable[[float], float]
    figure: Callable[[float], float]


# Of the perplexity the figure that goes in is the mean negative log-likelihood. NNCF divides by the reference's metric:
# a divergence of 0 would not do.
SCALES = {
    "kl_divergence": Scale(lambda kl: 1 - kl, lambda metric: 1 - metric),
    "perplexity": Scale(lambda nll: -math.exp(nll) if nll < 700 else -math.inf, lambda metric: -metric),
    "top1_agreement": Scale(lambda share: share, lambda metric: metric),
}


def accuracy_metric(
    name: str, reference: ov.Model, windows: Sequence[Window], feed: TextFeed | None = None
) -> AccuracyMetric:
    """A function that says how good a compiled decoder is on some of the windows, and on each of them alone.

    Higher is better: minus the perplexity, 1 minus the KL divergence from the reference in nats per token, or the
    share of tokens whose likeliest next token is the reference's. Each window goes through in one call from an empty
    cache, every token after its first is scored. The reference runs once, in f32.

    Args:
        name: ``perplexity``, ``kl_divergence`` or ``top1_agreement``.
        reference: A stateful decoder.
        windows: int64 ``[seq_len]`` each, all of one length; for the divergence the reference's logits of all are
            kept, float32 ``[seq_len - 1, vocabulary]`` each.
        feed: Of a decoder that does not take token ids.

    Raises:
        DataError: The reference gives numbers that are not finite.
        UsageError: The CPU refuses the reference.
    """
    import numpy as np

    compiled, feed = compile_model(reference, "CPU", PINNED), feed or text_feed(reference)
    score = _scorer(vocabulary_size(reference), "divergence" if name == "kl_divergence" else "nll")
    references: dict[bytes, NDArray[np.float32]] = {}
    for number, window in enumerate(windows, 1):
        logits = _logits(compiled, feed(window[:-1]))
        if not np.isfinite(logits).all():
            raise DataError(
                f"{name} cannot be computed: the uncompressed model gives NaN or infinite logits on held-out window "
                f"{number} of {len(windows)}",
                where="accuracy_control",
                hint="check the model with `llmcompress eval`, and the text for tokens that it does not know",
            )
        references[window.tobytes()] = logits if name == "kl_divergence" else logits.argmax(axis=1)

    def values(model: ov.CompiledModel, window: Window) -> float:
        logits = _logits(model, feed(window[:-1]))
        known = references[window.tobytes()]
        if name == "top1_agreement":
            return float((logits.argmax(axis=1) == known).mean())
        if name == "kl_divergence":
            value = float(np.mean(exact_kl(score(logits, window, {REFERENCE_LOGITS: known[None]}))))
        else:
            value = float(np.mean(score(logits, window, {})["nll"]))
        return value if math.isfinite(value) else math.inf

    def metric(model: ov.CompiledModel, chosen: Iterable[Window]) -> tuple[float, list[float]]:
        found = [values(model, window) for window in chosen]
        as_metric = SCALES[name].metric
        return as_metric(float(np.mean(found))), [as_metric(value) for value in found]

    return metric


GIVEN = "given_logits"


def _logits(compiled: ov.CompiledModel, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """``[tokens, vocabulary]``; a request of its own has an empty cache."""
    found = compiled.create_infer_request().infer(inputs)["logits"]
    logits: NDArray[np.float32] = found[0]
    return logits


def _scorer(
    vocabulary: int, kind: Literal["nll", "divergence"]
) -> Callable[[NDArray[Any], Window, dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """The reductions of the evaluation, on logits that are given; what a kind takes more is given as well."""
    import numpy as np
    import openvino as ov
    from openvino import opset15 as ops

    given = ops.parameter(ov.PartialShape([1, -1, vocabulary]), ov.Type.f32)
    given.output(0).set_names({GIVEN, "logits"})
    model = ov.Model([ops.result(given)], [given], "scores")
    add_scores(model, kind)
    request = compile_model(model, "CPU", PINNED).create_infer_request()

    def score(logits: NDArray[Any], window: Window, more: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        inputs = {GIVEN: logits[None], TARGETS: window[None, 1:], FIRST: np.zeros(1, dtype=np.int64), **more}
        return {next(iter(port.get_names())): values[0] for port, values in request.infer(inputs).items()}

    return score
