"""The commands, put together. One is imported when it is asked for, so `--help` answers at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as cached
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from llmcompress.cli.console import be_quiet
from llmcompress.cli.flags import name_flags
from llmcompress.cli.options import PRINTED, SOURCES

_EXIT_CODES = (
    "Exit codes: 0 done, 1 unexpected, 2 usage or recipe, 3 resources, 4 bad input, 5 Hub or network, 6 security, "
    "7 quality gate, 8 write failed, 9 locked, 10 killed for memory, 130/143 interrupted."
)


# Each docstring is the first sentence of the command's help, and all that the list of commands shows.


def _compress() -> Callable[..., None]:
    """Compress a checkpoint into one complete, verified OpenVINO directory."""
    from llmcompress.cli.compress import compress

    return compress


def _eval() -> Callable[..., None]:
    """Measure what a model lost, on the OpenVINO runtime: perplexity, KL divergence, agreement, and a verdict."""
    from llmcompress.cli.evaluate import evaluate

    return evaluate


def _bench() -> Callable[..., None]:
    """Measure how fast OpenVINO models generate and how much memory they take."""
    from llmcompress.cli.bench import bench

    return bench


def _tune() -> Callable[..., None]:
    """Find the runtime's settings that make an artifact faster on this device, and what each of them costs."""
    from llmcompress.cli.tune import tune

    return tune


def _search() -> Callable[..., None]:
    """Give each weight the format that costs least under a size or a KL divergence, proven against one for all."""
    from llmcompress.cli.search import search

    return search


def _chat() -> Callable[..., None]:
    """Talk to a model, or to two at once: what was compressed, next to its original."""
    from llmcompress.cli.chat import chat

    return chat


def _compare() -> Callable[..., None]:
    """Print one table of everything that was measured: size, quality, speed, memory."""
    from llmcompress.cli.compare import compare

    return compare


def _card() -> Callable[..., None]:
    """Write the model card of an output: its README.md, from the manifest and the reports of eval and bench alone."""
    from llmcompress.cli.card import card

    return card


def _run() -> Callable[..., None]:
    """Make, measure and ship every artifact of a plan: models by recipes, each in OUTPUT/MODEL/RECIPE."""
    from llmcompress.cli.run_plan import run

    return run


def _verify() -> Callable[..., None]:
    """Hash every file of an output again and name each deviation from its manifest."""
    from llmcompress.cli.verify import verify

    return verify


def _push() -> Callable[..., None]:
    """Publish an output on the Hugging Face Hub in one commit, with its evidence."""
    from llmcompress.cli.push import push

    return push


def _doctor() -> Callable[..., None]:
    """Look for libraries that do not fit together, and show what this machine offers."""
    from llmcompress.cli.doctor import doctor

    return doctor


def _demo() -> Callable[..., None]:
    """Compress the small model that comes with this package, measure what that cost, and let each version answer."""
    from llmcompress.cli.demo import demo

    return demo


def _recipes() -> typer.Typer:
    """List the packaged recipes, each with when to take it."""
    from llmcompress.cli.recipes import recipes

    return recipes


def _cache() -> typer.Typer:
    """Intermediate results that later runs use again: how large they are, and their removal."""
    from llmcompress.cli.cache import cache

    return cache


COMMANDS: dict[str, Callable[[], Callable[..., None] | typer.Typer]] = {
    load.__name__.removeprefix("_"): load
    for load in (
        _compress, _search, _eval, _bench, _tune, _chat, _compare, _card, _run, _verify, _push, _doctor, _demo,
        _recipes, _cache,
    )
}  # fmt: skip


_DOCS = {
    "compress": "docs/recipes.md",
    "recipes": "docs/recipes.md",
    "eval": "docs/evaluate.md",
    "bench": "docs/tune.md",
    "tune": "docs/tune.md",
    "chat": "docs/getting-started.md",
    "compare": "docs/compare.md",
    "card": "docs/cards.md",
    "push": "docs/hub.md",
    "run": "docs/plans.md",
    "search": "docs/searching.md",
    "verify": "docs/hub.md",
}
"""Where a command is described, if not in what a newcomer reads first."""

_PEERS = {
    "compress": "quantize quantise quant convert export optimize optimise ptq main_export build make",
    "eval": "evaluate evaluation perplexity ppl accuracy lm_eval lm-eval score",
    "bench": "benchmark perf latency throughput llm_bench llama-bench speed",
    "search": "autobits mixed-precision auto",
    "tune": "autotune",
    "chat": "run-model generate infer inference talk prompt ask",
    "compare": "diff report summary",
    "card": "readme model-card modelcard",
    "run": "sweep batch plan",
    "verify": "check validate",
    "push": "upload publish push_to_hub push-to-hub",
    "doctor": "env info version diagnose",
    "demo": "example quickstart",
    "recipes": "recipe list list-recipes",
    "cache": "clean clear prune",
}
"""Names that other tools have for what a command does, with spaces between."""


@cached
def load_command(name: str) -> Any:
    """Import a command and return it as typer's parser runs it."""
    summary = COMMANDS[name].__doc__ or ""
    loaded = COMMANDS[name]()
    if not isinstance(loaded, typer.Typer):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
        app.command(name)(loaded)
        loaded = app
    command = typer.main.get_command(loaded)
    command.name = name
    command.help = f"{summary}\n\n{command.help or ''}"
    for each in (command, *getattr(command, "commands", {}).values()):
        each.epilog = f"Docs: {_DOCS.get(name, 'docs/getting-started.md')}"
        each.params.append(_quiet_option())
        # What is the same everywhere comes last.
        each.params.sort(key=_panel_order)
    return command


def _panel_order(parameter: Any) -> int:
    panel = getattr(parameter, "rich_help_panel", None)
    return (SOURCES, PRINTED).index(panel) if panel in (SOURCES, PRINTED) else -1


def _quiet_option() -> TyperOption:
    """What every command has and no function takes: what prints asks the console."""

    def hear(context: Any, option: Any, given: bool) -> None:
        if given:
            be_quiet()

    return TyperOption(
        param_decls=["quiet", "--quiet", "-q"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=hear,
        rich_help_panel=PRINTED,
        help="Show no progress, and the essential result alone.",
    )


class _Commands(TyperGroup):
    """Knows its commands by name and summary, and loads the one that is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        meant = [name for name, peers in _PEERS.items() if args[0].lower() in peers.split()]
        if meant and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant[0]!r}?")
        name, _, rest = super().resolve_command(ctx, args)
        if name is None:
            # Completion goes on with a name that there is not.
            return None, None, rest
        loaded = load_command(name)
        name_flags(loaded)
        for each in (loaded, *getattr(loaded, "commands", {}).values()):
            each.get_help_option(ctx).rich_help_panel = PRINTED
        return name, loaded, rest


def command() -> Any:
    """Return the whole command line as one command object of typer's parser."""
    app = typer.Typer(
        name="llmcompress",
        cls=_Commands,
        # click suggests the nearest command itself.
        suggest_commands=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=f"{_EXIT_CODES}\n\nDocs: README.md and docs/ of the source.",
    )
    app.callback()(_root)
    group: Any = typer.main.get_command(app)
    group.commands = {name: TyperCommand(name, help=load.__doc__) for name, load in COMMANDS.items()}
    return group


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
