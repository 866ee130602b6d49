"""`llmcompress demo`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcompress.cli.console import layers_table, print_labelled, print_report, stdout, table, write_line
from llmcompress.cli.options import Json, Verbose
from llmcompress.cli.progress import run_watched
from llmcompress.report.text import duration_text, rate_text, size_text
from llmcompress.system.command_line import command_line

if TYPE_CHECKING:
    from llmcompress.cli.demo_run import DemoReport


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the compressed models are written.")
    ] = Path("llmcompress-demo"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """[bold]Examples[/bold]
    llmcompress demo
    llmcompress demo -o /tmp/demo
    """
    from llmcompress.cli.demo_run import run as run_demo

    options = {"output_dir": output.absolute()}
    report = run_watched(run_demo, options, verbose=verbose, stage="load the libraries")
    print_report(report, lambda made: _print(made, output), as_json=as_json)


def _print(report: DemoReport, output: Path) -> None:
    from llmcompress.cli.demo_run import HELD_OUT

    numbers = ["Size", "Bits/weight", "Time", "Perplexity", "KL", "Top-1", "Decode tokens/s", "Peak memory"]
    sizes = table(["Recipe"], numbers)
    sizes.columns[0].style = "bold"
    sizes.add_column("Verdict")
    for variant in report.variants:
        made, lost = variant.report, variant.evaluation.divergence
        sizes.add_row(
            made.recipe.name,
            size_text(made.size_bytes),
            f"{made.bits_per_weight:.2f}",
            duration_text(made.measured.duration_s),
            f"{variant.evaluation.model.perplexity.perplexity.value:.4g}",
            f"{lost.kl_divergence.value:.2g}" if lost else "",
            f"{lost.top1_agreement.value:.1%}" if lost else "",
            rate_text(variant.speed.cases[0].decode_tokens_per_s),
            size_text(variant.speed.peak_rss_bytes),
            variant.evaluation.verdict or "the reference",
        )
    text = report.variants[0].evaluation.text
    stdout().print(sizes)
    write_line(f"Measured on {text.num_scored_tokens:,} tokens of held-out text through the OpenVINO runtime.\n")
    for variant in report.variants:
        print_labelled(variant.report.recipe.name, ": what its weights became")
        stdout().print(layers_table(variant.report.layers))
        write_line("")
    print_labelled("Question: ", report.prompt)
    for variant in report.variants:
        print_labelled(f"{variant.report.recipe.name}: ", variant.answer)
    write_line("")
    print_labelled("Written to ", str(output))
    first, last = (Path(report.variants[index].directory).name for index in (0, -1))
    options = ["--reference", str(output / first), "--dataset", str(HELD_OUT.dataset), "--seq-len", "256"]
    evaluate = command_line(["llmcompress", "eval"], [str(output / last)], [*options, "--split-damage"])
    print_labelled("Next: ", evaluate)
