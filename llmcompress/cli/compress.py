"""`llmcompress compress`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from llmcompress.cli.compression_report import print_compression
from llmcompress.cli.console import is_quiet, print_report, tell
from llmcompress.cli.next_steps import after_compress
from llmcompress.cli.options import (
    AllowLinks,
    AllowNonfinite,
    Json,
    MaxContext,
    MergeAdapter,
    ModelFile,
    Offline,
    Overrides,
    Overwrite,
    Revision,
    Source,
    TextOnly,
    TrustRemoteCode,
    Verbose,
    in_panels,
)
from llmcompress.cli.progress import run_watched
from llmcompress.errors import LlmcompressError, UsageError

if TYPE_CHECKING:
    from llmcompress.spec import Access, Recipe
    from llmcompress.system.progress import Reporter


_PANELS = {
    "Recipe": "recipe overrides budget engine requantize",
    "Output": "output_dir overwrite no_tokenizer save_checkpoint graph_cache dry_run",
}


@in_panels(_PANELS)
def compress(
    source: Source,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="A packaged recipe, a YAML file, or optimum-default. keep, where SOURCE is quantized already.",
        ),
    ] = None,
    overrides: Overrides = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where it is written. Default: ./MODEL-RECIPE-ov"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only predict size, memory and disk, from config.json alone.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    overwrite: Overwrite = False,
    allow_nonfinite: AllowNonfinite = False,
    allow_links: AllowLinks = False,
    merge_adapter: MergeAdapter = False,
    max_context: MaxContext = None,
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
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Compress a checkpoint that is quantized already again.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="TIME", help="Time for the recipe's training, such as 30m: it decides num_steps."
        ),
    ] = None,
    save_checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--save-checkpoint", metavar="DIR", help="Keep what the recipe's pruning leaves, as transformers saves it."
        ),
    ] = None,
    graph_cache: Annotated[
        bool | None,
        typer.Option(
            "--graph-cache/--no-graph-cache",
            help="Keep the graph for the next checkpoint of this configuration before the command ends, or use none "
            "that is kept. Default: it is kept in the background.",
        ),
    ] = None,
    file: ModelFile = None,
    text_only: TextOnly = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """SOURCE is a Hub id, a checkpoint, a GGUF or ONNX file, an OpenVINO IR directory, or with --merge-adapter a LoRA.

    [bold]Examples[/bold]
    llmcompress compress meta-llama/Llama-3.2-1B-Instruct -r int4
    llmcompress compress ./checkpoint -r int4-sym --set weights.group_size=64
    llmcompress compress ./checkpoint -r int4-awq-se -o out --dry-run
    llmcompress compress Qwen/Qwen2.5-1.5B-Instruct -r optimum-default
    llmcompress compress model.Q4_K_M.gguf -o out
    """
    opened = (
        revision, trust_remote_code, offline, allow_nonfinite, allow_links, merge_adapter, max_context, requantize,
        file, text_only,
    )  # fmt: skip
    found: list[_Request] = []

    def find() -> _Request:
        if not found:
            found.append(
                _find(_Words(source, recipe, tuple(overrides or ()), budget, output_dir, overwrite, verbose), opened)
            )
        return found[0]

    if dry_run:
        from llmcompress.cli.dry_run import predict

        asked = find()
        request = {
            "source": source,
            "recipe": asked.recipe,
            "output_dir": asked.output_dir.absolute(),
            "access": asked.access,
        }
        request |= {"engine": engine, "tokenizer": not no_tokenizer}
        predict(request, as_json=as_json, verbose=verbose)
        return
    if recipe is None or recipe.startswith("optimum-"):
        # A worker is asked for the recipe, and shows stages of its own.
        find()

    def options() -> dict[str, object]:
        asked = find()
        return {
            "source": source,
            "recipe": asked.recipe,
            # The worker may not share what the shell calls the working directory.
            "output_dir": asked.output_dir.absolute(),
            "overwrite": overwrite,
            "tokenizer": not no_tokenizer,
            "engine": engine,
            "save_checkpoint": None if save_checkpoint is None else save_checkpoint.absolute(),
            "graph_cache": graph_cache,
            **asked.access._asdict(),
        }

    from llmcompress.compression.request import requested

    try:
        report = run_watched(requested, options, verbose=verbose, first_import="llmcompress.compression.compress")
    except LlmcompressError:
        # A worker that was killed could not clean up.
        if found:
            from llmcompress.artifact import remove_leftovers

            remove_leftovers(found[0].output_dir)
        raise
    _, place, access = find()
    print_report(
        report,
        lambda made: print_compression(made, source, place, stages=verbose),
        as_json=as_json,
        brief=lambda _: str(place),
    )
    if not as_json and not is_quiet():
        after_compress(report, source, place, access)


class _Words(NamedTuple):
    """What was written on the command line."""

    source: str
    recipe: str | None
    overrides: tuple[str, ...]
    budget: str | None
    output_dir: Path | None
    overwrite: bool
    verbose: bool


class _Request(NamedTuple):
    """What is to be done, and where."""

    recipe: Recipe
    output_dir: Path
    access: Access


def _find(words: _Words, opened: tuple[Any, ...]) -> _Request:
    """Read the recipe, and refuse a place that cannot be written; ``opened`` are the fields of ``Access``."""
    from llmcompress.artifact.placement import checked_output
    from llmcompress.spec import RECOMMENDED, Access, load_recipe

    access, overrides = Access(*opened), list(words.overrides)
    recipe = words.recipe or _default_recipe(words.source, access, verbose=words.verbose)
    if recipe in RECOMMENDED:
        chosen = _recommended(words.source, recipe, overrides, access, verbose=words.verbose)
    else:
        chosen = load_recipe(recipe, overrides)
    if words.budget is not None:
        chosen = _within(chosen, words.budget)
    output_dir = words.output_dir or Path(default_output_name(words.source, chosen.name))
    # Before the work, and before a dry run too.
    inputs = [words.source] if Path(words.source).is_dir() else []
    checked_output(output_dir, inputs, overwrite=words.overwrite)
    return _Request(chosen, output_dir, access)


def default_output_name(source: str, recipe_name: str) -> str:
    """Return the name of the output directory, `MODEL-RECIPE-ov`, for a Hub id or a local directory."""
    path = Path(source)
    base = path.resolve().name if path.exists() else source.rstrip("/").rsplit("/", 1)[-1]
    base = base.rpartition(".")[0] if base.lower().endswith((".gguf", ".onnx")) else base
    return f"{base or 'model'}-{recipe_name}-ov"


def _default_recipe(source: str, access: Access, *, verbose: bool) -> str:
    """The recipe where none is given: there is one for what is quantized already."""
    path = Path(source)
    known = path.exists() or source.count("/") == 1
    stage = "read the configuration"
    if known and run_watched(is_quantized, {"source": source, "access": access}, verbose=verbose, stage=stage):
        return "keep"
    raise UsageError(
        "missing option '--recipe' / '-r'" + (", and the model is not quantized already" if known else ""),
        where="llmcompress compress",
        hint="llmcompress recipes lists them" if known else "llmcompress compress --help",
    )


def _within(recipe: Recipe, budget: str) -> Recipe:
    """The recipe with a time in place of the number of steps that its training has."""
    from llmcompress.spec import override_recipe
    from llmcompress.spec.tuning import parse_duration_s

    seconds = parse_duration_s(budget)
    if recipe.training is None:
        raise UsageError(
            f"it decides the steps of a training, and recipe {recipe.name} has none",
            where="--budget",
            hint="take a recipe that learns bits, such as int4-distilled, or leave it out",
        )
    return override_recipe(recipe, [f"training.budget_s={seconds}", "training.num_steps=null"])


def is_quantized(source: str, access: Access, progress: Reporter) -> bool:
    """Whether a source is a checkpoint whose codes can be kept; reads no weight. For a worker."""
    from llmcompress.loaders.quantized.declaration import check_quantization
    from llmcompress.loaders.resolving import resolve

    found = resolve(source, access, vision=True)
    return found.layout == "checkpoint" and check_quantization(found.config)[0] == "keep"


def _recommended(source: str, name: str, overrides: list[str], access: Access, *, verbose: bool) -> Recipe:
    """What Optimum recommends for the model; says on stderr which entry that is."""
    from rich.text import Text

    recipe = run_watched(
        recommend,
        {"source": source, "name": name, "overrides": overrides, "access": access},
        verbose=verbose,
        stage="look up Optimum's settings",
    )
    tell(Text.assemble((f"{name}: ", "bold"), recipe.description or ""))
    return recipe


def recommend(source: str, name: str, overrides: list[str], access: Access, progress: Reporter) -> Recipe:
    """Find the source and what Optimum recommends for it; reads no weight. For a worker."""
    from llmcompress.loaders.recommended import recommended_recipe
    from llmcompress.loaders.resolving import resolve

    return recommended_recipe(resolve(source, access, vision=True), name, overrides)
