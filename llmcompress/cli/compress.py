"""`llmcompress compress`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcompress.cli.options import AllowNonfinite, Json, Offline, Overwrite, Revision, Source, TrustRemoteCode, Verbose

if TYPE_CHECKING:
    from llmcompress.compression.forecast import Forecast
    from llmcompress.progress import Reporter
    from llmcompress.recipe import Recipe
    from llmcompress.report import Engine


def compress(
    source: Source,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            show_default=False,
            help="A packaged recipe, a YAML file, or optimum-default.",
        ),
    ],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Override one field; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", show_default=False, help="Default: ./MODEL-RECIPE-ov"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only predict size, memory and disk, from config.json alone.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    overwrite: Overwrite = False,
    allow_nonfinite: AllowNonfinite = False,
    no_tokenizer: Annotated[
        bool, typer.Option("--no-tokenizer", help="Write no converted tokenizer; GenAI then cannot open the output.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="llmcompress|nncf",
            help="Whose arithmetic makes the weights; without data the bytes are the same.",
        ),
    ] = "llmcompress",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compress a checkpoint into one complete, verified OpenVINO directory.

    SOURCE is a Hub id, a checkpoint directory, or an OpenVINO IR directory.

    [bold]Examples[/bold]
    llmcompress compress meta-llama/Llama-3.2-1B-Instruct -r int4
    llmcompress compress ./checkpoint -r int4-sym --set weights.group_size=64
    llmcompress compress ./checkpoint -r int4-awq-se -o out --dry-run
    llmcompress compress Qwen/Qwen2.5-1.5B-Instruct -r optimum-default
    """
    from llmcompress.recipe import RECOMMENDED, load_recipe

    access: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code, "offline": offline}
    if recipe in RECOMMENDED:
        chosen = _recommended(source, recipe, override or [], access, verbose=verbose)
    else:
        chosen = load_recipe(recipe, override or ())
    output_dir = output if output is not None else Path(default_output_name(source, chosen.name))
    if dry_run:
        _forecast(source, chosen, output_dir, access, engine, as_json=as_json, verbose=verbose)
        return
    from llmcompress.artifact import remove_leftovers
    from llmcompress.cli.bars import run_watched
    from llmcompress.cli.console import print_json
    from llmcompress.cli.report_view import print_report
    from llmcompress.errors import LlmcompressError
    from llmcompress.report import CompressionReport

    options = {
        "source": source,
        "recipe": chosen,
        # The worker may not share what the shell calls the working directory.
        "output_dir": output_dir.absolute(),
        "overwrite": overwrite,
        "allow_nonfinite": allow_nonfinite,
        "tokenizer": not no_tokenizer,
        "engine": engine,
        **access,
    }
    try:
        report = run_watched("llmcompress.pipeline:compress", options, verbose=verbose)
    except LlmcompressError:
        # A worker that was killed could not clean up.
        remove_leftovers(output_dir)
        raise
    assert isinstance(report, CompressionReport)
    if as_json:
        print_json(report)
    else:
        print_report(report, source=source, output_dir=output_dir, stages=verbose)


def default_output_name(source: str, recipe_name: str) -> str:
    """Return the name of the output directory, `MODEL-RECIPE-ov`, for a Hub id or a local directory."""
    path = Path(source)
    base = path.resolve().name if path.exists() else source.rstrip("/").rsplit("/", 1)[-1]
    return f"{base or 'model'}-{recipe_name}-ov"


def _recommended(source: str, name: str, overrides: list[str], access: dict[str, Any], *, verbose: bool) -> Recipe:
    """What Optimum recommends for the model; says on stderr which entry that is."""
    from rich.text import Text

    from llmcompress.cli.bars import run_watched
    from llmcompress.cli.console import stderr
    from llmcompress.recipe import Recipe

    recipe = run_watched(
        "llmcompress.cli.compress:recommend",
        {"source": source, "name": name, "overrides": overrides, "access": access},
        verbose=verbose,
        stage="look up Optimum's settings",
    )
    assert isinstance(recipe, Recipe)
    stderr().print(Text.assemble((f"{name}: ", "bold"), recipe.description or ""), soft_wrap=True)
    return recipe


def recommend(source: str, name: str, overrides: list[str], access: dict[str, Any], progress: Reporter) -> Recipe:
    """Find the source and what Optimum recommends for it; reads no weight. For a worker."""
    from llmcompress.loaders.recommended import recommended_recipe
    from llmcompress.loaders.source import resolve

    return recommended_recipe(resolve(source, **access), name, overrides)


def _forecast(
    source: str,
    recipe: Recipe,
    output_dir: Path,
    access: dict[str, Any],
    engine: str,
    *,
    as_json: bool,
    verbose: bool,
) -> None:
    from llmcompress.cli.bars import run_watched
    from llmcompress.cli.console import print_json
    from llmcompress.cli.forecast_view import print_forecast
    from llmcompress.compression.forecast import Forecast
    from llmcompress.errors import ResourceError

    forecast = run_watched(
        "llmcompress.cli.compress:forecast_source",
        {"source": source, "recipe": recipe, "output_dir": output_dir.absolute(), "access": access, "engine": engine},
        verbose=verbose,
    )
    assert isinstance(forecast, Forecast)
    if as_json:
        print_json(forecast)
    else:
        print_forecast(forecast, source=source, recipe_name=recipe.name)
    if not forecast.fits:
        raise ResourceError(
            "this machine has not enough free memory or disk for it",
            where=source,
            hint="close other programs, free disk space, or take a machine with more of what is short above",
        )


def forecast_source(
    source: str, recipe: Recipe, output_dir: Path, access: dict[str, Any], engine: Engine, progress: Reporter
) -> Forecast:
    """Find the source and predict what compressing it will take; reads no weight. For a worker."""
    from llmcompress.compression.forecast import forecast
    from llmcompress.loaders.source import resolve

    return forecast(resolve(source, **access), recipe, output_dir, engine=engine)
