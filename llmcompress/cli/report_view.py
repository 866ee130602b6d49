"""A compression report for people."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, stdout
from llmcompress.weight_kinds import group_size_text, weight_kinds
from llmcompress.wording import count_text, duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from llmcompress.report import AccuracyRecord, ActivationRecord, CompressionReport
    from llmcompress.weight_kinds import Layer

_TOKENIZER = {"equal": "converted, compared equal", "none": "left out; GenAI cannot open the output"}
_CHAT_TEMPLATE = {
    "equal": "compared equal",
    "none": "the source has none",
    "not checked": "not compared; that needs openvino-genai: pip install 'llmcompress[genai]'",
}


def print_report(report: CompressionReport, *, source: str, output_dir: Path, stages: bool) -> None:
    """Print what was made, how big it is, what each weight became, what it took, and what to do next."""
    from rich.text import Text

    before = sum(
        record.size_bytes for record in report.provenance.files if record.path.endswith((".safetensors", ".bin"))
    )
    sizes = f"{size_text(before)} -> {size_text(report.size_bytes)}"
    if before:
        sizes += f" ({report.size_bytes / before:.0%})"
    revision = f" @ {report.provenance.revision[:12]}" if report.provenance.revision else ""
    recipe = report.recipe.name + (f": {report.recipe.description}" if report.recipe.description else "")
    model = f"{report.provenance.architecture}, {count_text(report.num_parameters)} parameters"
    console = stdout()
    activations = {}
    accuracy = None
    if report.activations is not None:
        activations["Activations"] = _activations_text(report.activations)
        accuracy = report.activations.accuracy
    if accuracy is not None:
        activations["Accuracy control"] = _accuracy_text(accuracy)
    console.print(
        facts_table(
            {
                "Model": f"{output_dir.name}  ({model})",
                "Source": f"{source}{revision}  ({report.provenance.dtype})",
                "Recipe": recipe,
                "Size": sizes,
                "Bits per weight": f"{report.bits_per_weight:.2f}",
                **activations,
                "Tokenizer": _TOKENIZER[report.tokenizer],
                "Chat template": _CHAT_TEMPLATE[report.chat_template],
                "Time": duration_text(report.measured.duration_s),
                "Peak memory": size_text(report.measured.peak_rss_bytes),
            }
        )
    )
    console.print()
    console.print(layers_table(report.layers))
    if accuracy is not None and accuracy.reverted:
        console.print()
        console.print(_reverted_table(accuracy))
    if stages:
        console.print()
        console.print(_stages_table(report))
    console.print()
    console.print(Text.assemble(("Written to ", "bold"), str(output_dir)), soft_wrap=True)
    console.print(
        Text.assemble(("Next: ", "bold"), f"llmcompress verify {shlex.quote(str(output_dir))}"), soft_wrap=True
    )


def _activations_text(activations: ActivationRecord) -> str:
    counts = ", ".join(
        f"{count.num_quantized} of {count.num_quantized + count.num_in_float} {count.type}"
        for count in activations.operations
    )
    total = sum(activations.executed.values())
    executed = f"{activations.device} executes {activations.num_executed_low} of {total} in 8 bits"
    return f"{activations.mode}: {counts}; {executed}"


def _accuracy_text(accuracy: AccuracyRecord) -> str:
    num_operations = sum(len(group.operations) for group in accuracy.reverted)
    kept = "kept" if accuracy.met else "NOT kept"
    return (
        f"{kept}: {accuracy.metric} lost {accuracy.drop:.4g} of {accuracy.max_drop:.4g} allowed, "
        f"{accuracy.drop_quantized:.4g} with everything quantized; {num_operations} operations back in floating point "
        f"({accuracy.validation.num_windows} held-out windows of {accuracy.validation.dataset})"
    )


def _reverted_table(accuracy: AccuracyRecord) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Back in floating point", overflow="fold")
    for name in ("Costs", "Lost before", "Lost after"):
        table.add_column(name, justify="right")
    for group in accuracy.reverted:
        names = ", ".join(name.removeprefix("__module.").split("/")[0] for name in group.operations)
        before, after = (f"{drop:.4g}" for drop in (group.drop_before, group.drop_after))
        table.add_row(names or "quantizers alone", size_text(group.added_bytes), before, after)
    return table


def layers_table(layers: Iterable[Layer]) -> Table:
    """Return a table with one row for each kind of weight: format, group size, how many, parameters, bytes."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Weights")
    table.add_column("Group size")
    for name in ("Layers", "Parameters", "Share", "Size"):
        table.add_column(name, justify="right")
    for kind in weight_kinds(layers):
        table.add_row(
            kind.mode,
            group_size_text(kind.group_size),
            str(kind.num_layers),
            count_text(kind.num_parameters),
            f"{kind.share:.1%}",
            size_text(kind.size_bytes),
        )
    return table


def _stages_table(report: CompressionReport) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("Stage")
    table.add_column("Time", justify="right")
    table.add_column("Peak memory at its end", justify="right")
    for stage in report.measured.stages:
        table.add_row(stage.stage, duration_text(stage.duration_s), size_text(stage.peak_rss_bytes))
    return table
