"""The commands, put together. What a command needs is imported when it runs, so `--help` answers at once."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmcompress.cli.bench import bench
from llmcompress.cli.cache import cache
from llmcompress.cli.card import card
from llmcompress.cli.compare import compare
from llmcompress.cli.compress import compress
from llmcompress.cli.demo import demo
from llmcompress.cli.doctor import doctor
from llmcompress.cli.evaluate import evaluate
from llmcompress.cli.push import push
from llmcompress.cli.recipes import recipes
from llmcompress.cli.run_plan import run
from llmcompress.cli.tune import tune
from llmcompress.cli.verify import verify

_EXIT_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 usage or recipe, 3 resources, 4 bad input, 5 Hub or network, 6 security, "
    "7 quality gate, 8 write failed, 9 locked, 10 killed for memory, 130/143 interrupted."
)


def command() -> Any:
    """Return the whole command line as one command object of typer's parser."""
    app = typer.Typer(
        name="llmcompress",
        add_completion=False,
        # click suggests the nearest command itself.
        suggest_commands=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=_EXIT_CODES,
    )
    app.callback()(_root)
    for name, function in (
        ("compress", compress),
        ("eval", evaluate),
        ("bench", bench),
        ("tune", tune),
        ("compare", compare),
        ("card", card),
        ("run", run),
        ("verify", verify),
        ("push", push),
        ("doctor", doctor),
        ("demo", demo),
    ):
        app.command(name)(function)
    app.add_typer(recipes, name="recipes")
    app.add_typer(cache, name="cache")
    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        import llmcompress
        from llmcompress.cli.console import write_line

        write_line(f"llmcompress {llmcompress.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Compress a language model for OpenVINO, with the record of how it was made."""
