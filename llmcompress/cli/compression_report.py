"""What a compression made, for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, layers_table, print_blocks, print_labelled, table, write_line
from llmcompress.report.text import count_text, duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.table import Table

    from llmcompress.report.compression import (
        AccuracyRecord,
        ActivationRecord,
        CompressionReport,
        KeptRecord,
        LayerRecord,
    )
    from llmcompress.report.pruning import PruningRecord
    from llmcompress.report.record import Measured
    from llmcompress.report.training import TrainingRecord

_EXPANDED = ("f16", "bf16", "f32")
"""Precisions of weights that are held in memory as floats."""
_F32_ROUNDING = 1e-6
"""Scales that are computed in f32 differ by less."""

_TOKENIZER = {"equal": "converted, compared equal", "none": "left out; GenAI cannot open the output"}
_CHAT_TEMPLATE = {
    "equal": "compared equal",
    "none": "the source has none",
    "not checked": "not compared; that needs openvino-genai: pip install 'llmcompress[genai]'",
}


def print_compression(report: CompressionReport, source: str, output_dir: Path, *, stages: bool) -> None:
    """Print what was made, how big it is, what each weight became, what it took, and what to do next."""
    before = report.provenance.weight_bytes
    sizes = f"{size_text(before)} -> {size_text(report.size_bytes)}"
    if before:
        sizes += f" ({report.size_bytes / before:.0%})"
    revision = f" @ {report.provenance.revision[:12]}" if report.provenance.revision else ""
    whole = report.provenance.language_model_of
    part = f", the language model of {whole}" if whole else ""
    recipe = report.recipe.name + (f": {report.recipe.description}" if report.recipe.description else "")
    model = f"{report.provenance.architecture}, {count_text(report.num_parameters)} parameters"
    facts = {
        "Model": f"{output_dir.name}  ({model})",
        "Source": f"{source}{revision}  ({report.provenance.dtype}{part})",
        "Recipe": recipe,
        "Size": sizes,
        "Bits per weight": f"{report.bits_per_weight:.2f}",
    }
    if report.kept is not None:
        facts["Kept"] = _kept_text(report.kept, report.layers)
    accuracy = report.activations.accuracy if report.activations else None
    if report.activations is not None:
        facts["Activations"] = _activations_text(report.activations)
    if accuracy is not None:
        facts["Accuracy control"] = _accuracy_text(accuracy)
    if report.pruning is not None:
        facts["Pruning"] = _pruning_text(report.pruning, report.measured)
    if report.training is not None:
        facts["Training"] = _training_text(report.training)
    facts |= {
        "Tokenizer": _TOKENIZER[report.tokenizer],
        "Chat template": _CHAT_TEMPLATE[report.chat_template],
        "Time": duration_text(report.measured.duration_s) + (", by a kept graph" if report.measured.replayed else ""),
        "Peak memory": size_text(report.measured.peak_rss_bytes),
    }
    print_blocks(
        facts_table(facts),
        layers_table(report.layers),
        _parts_table(report) if report.parts else None,
        _reverted_table(accuracy) if accuracy and accuracy.reverted else None,
        _stages_table(report) if stages else None,
    )
    write_line("")
    print_labelled("Written to ", str(output_dir))


def _kept_text(kept: KeptRecord, layers: Iterable[LayerRecord]) -> str:
    """What was kept of a quantized source, and what this machine makes of it."""
    formats = Counter(layer.stored_as for layer in layers if layer.stored_as)
    counts = ", ".join(f"{count:,} of {name}" for name, count in formats.items())
    expanded = {mode: precision for mode, precision in kept.executed.items() if precision in _EXPANDED}
    rounding = kept.max_relative_rounding
    exactness = f"every weight at most {rounding:.2g} off" if rounding else "every weight exactly"
    text = f"{counts}; " + (f"scales to within {rounding:.1g}" if 0 < rounding < _F32_ROUNDING else exactness)
    for mode, precision in expanded.items():
        text += f"; this {kept.device} expands {mode} to {precision} in memory: -r int8 --requantize takes less"
    return text if expanded else f"{text}, and compressed in this {kept.device}'s memory"


def _activations_text(activations: ActivationRecord) -> str:
    counts = ", ".join(
        f"{count.num_quantized} of {count.num_quantized + count.num_in_float} {count.type}"
        for count in activations.operations
    )
    total = sum(activations.executed.values())
    executed = f"{activations.device} executes {activations.num_executed_low} of {total} in 8 bits"
    return f"{activations.mode}: {counts}; {executed}"


def _training_text(training: TrainingRecord) -> str:
    """How it went, and by how much the held-out text got nearer to the original."""
    changed = "" if training.changed_codes is None else f"{training.changed_codes:.1%} of the codes changed"
    if not training.curves:
        return f"{training.method}: {changed}"
    before = sum(curve.points[0].validation for curve in training.curves) / len(training.curves)
    gained = sum(curve.gain for curve in training.curves if curve.kept_step) / len(training.curves)
    loss = "KL divergence" if training.loss == "kl_divergence" else "output error of a layer"
    if not training.num_improved:
        return f"{training.method}: held-out {loss} {before:.4g}, no gain beyond noise; the start was written"
    share = "" if training.method != "blocks" else f"{training.num_improved} of {len(training.curves)} layers, "
    more = f" ({share}{changed})" if changed else ""
    return f"{training.method}: held-out {loss} {before:.4g} -> {before - gained:.4g}{more}"


def _zeros_text(pruning: PruningRecord, measured: Measured) -> str:
    """What zeros are good for here, as it was measured."""
    archive = "" if pruning.archive_share is None else f", {pruning.archive_share:.0%} of the size in an archive"
    if measured.sparse_speed is None:
        return archive
    return f" (one layer alone runs {measured.sparse_speed.ratio:.2f} times as fast here{archive})"


def _pruning_text(pruning: PruningRecord, measured: Measured) -> str:
    """What went, and how far that alone took the model from the original."""
    share = 1 - pruning.num_parameters / pruning.num_parameters_before
    if pruning.density is not None:
        what = f"{1 - pruning.density:.0%} of the decoder layers' weights are zero{_zeros_text(pruning, measured)}"
    elif pruning.layers:
        speed = "" if measured.depth_speed is None else f", for {measured.depth_speed.ratio:.2f} times the decode speed"
        numbers = ", ".join(map(str, pruning.layers))
        what = f"decoder layers {numbers} dropped, {share:.1%} of the parameters{speed}"
    else:
        what = f"{share:.1%} of the parameters dropped"
    if pruning.kl_divergence is None:
        return f"{pruning.method}: {what}"
    healed = "" if pruning.kl_divergence_healed is None else f" -> {pruning.kl_divergence_healed:.4g} healed"
    return f"{pruning.method}: {what}; KL divergence {pruning.kl_divergence:.4g}{healed}, before compression"


def _accuracy_text(accuracy: AccuracyRecord) -> str:
    num_operations = sum(len(group.operations) for group in accuracy.reverted)
    kept = "kept" if accuracy.met else "NOT kept"
    return (
        f"{kept}: {accuracy.metric} lost {accuracy.drop:.4g} of {accuracy.max_drop:.4g} allowed, "
        f"{accuracy.drop_quantized:.4g} with everything quantized; {num_operations} operations back in floating point "
        f"({accuracy.validation.num_windows} held-out windows of {accuracy.validation.dataset})"
    )


def _reverted_table(accuracy: AccuracyRecord) -> Table:
    reverted = table(["Back in floating point"], ["Costs", "Lost before", "Lost after"])
    for group in accuracy.reverted:
        names = ", ".join(name.removeprefix("__module.").split("/")[0] for name in group.operations)
        before, after = (f"{drop:.4g}" for drop in (group.drop_before, group.drop_after))
        reverted.add_row(names or "quantizers alone", size_text(group.added_bytes), before, after)
    return reverted


def _parts_table(report: CompressionReport) -> Table:
    from llmcompress.report.compression import formats_text

    parts = table(["Part", "Weights"], ["Size"])
    for part in report.parts:
        parts.add_row(part.name, formats_text(part.layers), size_text(part.size_bytes))
    return parts


def _stages_table(report: CompressionReport) -> Table:
    stages = table(["Stage"], ["Time", "Peak memory at its end"])
    for stage in report.measured.stages:
        stages.add_row(stage.stage, duration_text(stage.duration_s), size_text(stage.peak_rss_bytes))
    return stages
