"""``nncf.quantize_with_accuracy_control``: operations go back to floating point until a metric keeps what it must."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llmcompress.errors import GateError
from llmcompress.evaluation.accuracy import SCALES, accuracy_metric
from llmcompress.graph.device import PINNED, compile_model
from llmcompress.graph.model import is_constant, is_weight, num_elements
from llmcompress.report.compression import AccuracyRecord, RevertRecord
from llmcompress.report.record import CalibrationRecord
from llmcompress.spec import AccuracyControl
from llmcompress.system.patching import replaced

if TYPE_CHECKING:
    import nncf
    import openvino as ov

    from llmcompress.data import CalibrationWindows
    from llmcompress.graph.joining import TextFeed

SMOOTHING = "/nncf_smooth_quant"
"""The end of the name that NNCF gives to the multiplication which SmoothQuant inserts."""
SCALE_BYTES = 4
MARGIN = 0.999
"""Of the allowed drop, for the search: the graph that is written rounds a little differently from the searched one."""


def quantize_with_accuracy_control(
    model: ov.Model,
    control: AccuracyControl,
    dataset: nncf.Dataset,
    validation: CalibrationWindows,
    arguments: dict[str, Any],
    feed: TextFeed,
) -> tuple[ov.Model, AccuracyRecord]:
    """Quantize a model, and revert what costs most until the metric on the held-out windows dropped by little enough.

    The search is NNCF's: groups of operations that share quantizers are ranked by what reverting each alone brings, and
    go in that order. All models are executed exactly, in f32; the drop that counts is that of the returned one.

    Args:
        model: A stateful decoder, the reference.
        control: What must be kept.
        dataset: For calibration.
        validation: Held out from it.
        arguments: Of ``nncf.quantize``, as ``quantize_arguments`` gives them.
        feed: Of the decoder.

    Raises:
        DataError: the metric cannot be computed for the reference.
        GateError: the drop stays too large, and the best model is not to be kept.
    """
    import nncf

    held_out = list(validation.token_ids)
    metric = accuracy_metric(control.metric, model, held_out, feed)
    given = {name: value for name, value in arguments.items() if name not in ("mode", "advanced_parameters")}
    restorer = nncf.quantization.advanced_parameters.AdvancedAccuracyRestorerParameters(
        ranking_subset_size=control.ranking_num_samples or control.num_samples,
        # More would compete for the same cores, and their number would depend on the machine.
        num_ranking_workers=1,
    )
    if control.max_num_iterations is not None:
        restorer.max_num_iterations = control.max_num_iterations
    with _watched() as watch:
        quantized = nncf.quantize_with_accuracy_control(
            model,
            dataset,
            nncf.Dataset(held_out),
            metric,
            max_drop=MARGIN * control.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            advanced_quantization_parameters=arguments["advanced_parameters"],
            advanced_accuracy_restorer_parameters=restorer,
            **given,
        )
    drop = watch.initial - metric(compile_model(quantized, "CPU", PINNED), held_out)[0]
    record = _record(quantized, control, validation.record, watch, drop)
    if not record.met and not control.keep_best:
        raise GateError(
            f"the best that was found loses {drop:.4g} in {control.metric}, where {control.max_drop:.4g} is allowed; "
            f"{sum(len(group.operations) for group in record.reverted)} operations went back to floating point",
            where="activations.accuracy_control",
            hint="allow more with max_drop or max_num_iterations, or set keep_best: true",
        )
    return quantized, record


class _Watch:
    """What NNCF tells only its log."""

    def __init__(self) -> None:
        self.initial = 0.0
        """The metric of the reference."""
        self.drops: list[float] = []
        """With everything quantized, then after each trial."""
        self.trials: list[Sequence[Any]] = []
        """NNCF's lists of the operations that were reverted; a group may be tried twice."""
        self.kept: list[Sequence[Any]] = []
        """Those of them that stayed so."""


@contextlib.contextmanager
def _watched() -> Iterator[_Watch]:
    """Follow NNCF's search, and let what it reverts be what it was before SmoothQuant.

    NNCF gives a reverted operation its first weight back and leaves the multiplication that SmoothQuant put before it,
    which belongs to the other weight: the operation would compute nonsense, and would never be chosen.
    """
    from nncf.openvino.quantization import quantize_model
    from nncf.quantization.algorithms.accuracy_control import algorithm, openvino_backend, ranker

    watch = _Watch()
    calculate, revert = algorithm.calculate_accuracy_drop, algorithm.revert_operations_to_floating_point_precision

    def calculated(initial: float, current: float, *rest: Any) -> tuple[bool, float]:
        terminate, drop = calculate(initial, current, *rest)
        watch.initial = initial
        # NNCF asks twice before the first trial.
        watch.drops[len(watch.trials) :] = [drop]
        return terminate, drop

    def restored(operations: Sequence[Any], *rest: Any) -> ov.Model:
        model = revert(operations, *rest)
        _without_smoothing(model, {node.node_name for node in operations})
        return model

    def tried(operations: Sequence[Any], *rest: Any) -> ov.Model:
        watch.trials.append(operations)
        return restored(operations, *rest)

    def reported(report: Any, max_num_iterations: int) -> None:
        watch.kept = [group.operations for group in report.removed_groups]

    def prepared(model: ov.Model) -> SimpleNamespace:
        return SimpleNamespace(model_for_inference=compile_model(model, "CPU", PINNED))

    name = "revert_operations_to_floating_point_precision"
    with (
        replaced(quantize_model, "calculate_accuracy_drop", calculated),
        replaced(algorithm, "calculate_accuracy_drop", calculated),
        replaced(algorithm, name, tried),
        replaced(ranker, name, restored),
        # NNCF would leave dynamic quantization on.
        replaced(openvino_backend, "OVPreparedModel", prepared),
        replaced(algorithm.QuantizationAccuracyRestorer, "_print_report", staticmethod(reported)),
    ):
        yield watch


def _without_smoothing(model: ov.Model, operations: set[str]) -> None:
    """Let operations take their inputs from before the multiplication that SmoothQuant inserted."""
    for op in model.get_ops():
        if op.get_friendly_name() not in operations:
            continue
        for port in op.inputs():
            source = port.get_source_output().get_node()
            if source.get_type_name() == "Multiply" and source.get_friendly_name().endswith(SMOOTHING):
                port.replace_source_output(source.input_value(0))


def _record(
    model: ov.Model, control: AccuracyControl, validation: CalibrationRecord, watch: _Watch, drop: float
) -> AccuracyRecord:
    by_name = {op.get_friendly_name(): op for op in model.get_ops()}
    after = {id(operations): found for operations, found in zip(watch.trials, watch.drops[1:], strict=True)}
    reverted = []
    before = watch.drops[0]
    for operations in watch.kept:
        names = tuple(sorted(node.node_name for node in operations))
        reverted.append(
            RevertRecord(
                operations=names,
                added_bytes=sum(_added_bytes(by_name[name]) for name in names),
                drop_before=before,
                drop_after=(before := after[id(operations)]),
            )
        )
    return AccuracyRecord(
        metric=control.metric,
        max_drop=control.max_drop,
        met=drop <= control.max_drop,
        validation=validation,
        reference=SCALES[control.metric].figure(watch.initial),
        drop_quantized=watch.drops[0],
        drop=drop,
        reverted=tuple(reverted),
    )


def _added_bytes(op: ov.Node) -> int:
    """What the weights of an operation take more than in 8 bits, with a scale for each output channel."""
    added = 0
    for port in op.inputs():
        node = port.get_source_output().get_node()
        if not is_constant(node):
            continue
        while node.get_input_size():
            node = node.input_value(0).get_node()
        if is_weight(node):
            added += node.get_byte_size() - num_elements(node) - SCALE_BYTES * int(node.get_output_shape(0)[0])
    return added
