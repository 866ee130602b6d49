"""`llmcompress demo`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcompress.cli.options import Json, Verbose

if TYPE_CHECKING:
    from llmcompress.demo import DemoReport


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the compressed models are written.")
    ] = Path("llmcompress-demo"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compress the small model that comes with this package and let each version answer one question.

    [bold]Examples[/bold]
    llmcompress demo
    llmcompress demo -o /tmp/demo
    """
    from llmcompress.cli.bars import watching
    from llmcompress.cli.console import print_json
    from llmcompress.demo import DemoReport
    from llmcompress.progress import Progress
    from llmcompress.supervisor import run_supervised

    with watching(verbose=verbose) as watch:
        watch.report(Progress("load the libraries", 0, 0))
        report = run_supervised(
            "llmcompress.demo:run", {"output_dir": output.absolute()}, progress=watch.report, logs=watch.log
        )
    assert isinstance(report, DemoReport)
    if as_json:
        print_json(report)
    else:
        _print(report, output)


def _print(report: DemoReport, output: Path) -> None:
    import shlex

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from llmcompress.cli.console import duration_text, size_text, stdout
    from llmcompress.cli.report_view import layers_table

    console = stdout()
    sizes = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    sizes.add_column("Recipe", style="bold")
    for name in ("Size", "Bits per weight", "Time"):
        sizes.add_column(name, justify="right")
    for variant in report.variants:
        made = variant.report
        sizes.add_row(
            made.recipe.name,
            size_text(made.size_bytes),
            f"{made.bits_per_weight:.2f}",
            duration_text(made.measured.duration_s),
        )
    console.print(sizes)
    console.print()
    for variant in report.variants:
        console.print(Text.assemble((variant.report.recipe.name, "bold"), ": what its weights became"))
        console.print(layers_table(variant.report.layers))
        console.print()
    console.print(Text.assemble(("Question: ", "bold"), report.prompt))
    for variant in report.variants:
        console.print(Text.assemble((f"{variant.report.recipe.name}: ", "bold"), variant.answer))
    console.print()
    console.print(Text.assemble(("Written to ", "bold"), str(output)), soft_wrap=True)
    last = Path(report.variants[-1].directory).name
    console.print(
        Text.assemble(("Next: ", "bold"), f"llmcompress verify {shlex.quote(str(output / last))}"), soft_wrap=True
    )
