"""A source and a recipe in, one complete, verified directory out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from llmcompress.artifact import Staging, staging
from llmcompress.artifact.placement import checked_output
from llmcompress.compression.compressible import require_compressible
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.forecast import Forecast, forecast, require_fits
from llmcompress.compression.output import inputs, write
from llmcompress.compression.preparation import CompressOptions
from llmcompress.compression.pruned import save_pruned
from llmcompress.compression.replay.keeping import keep_in_background
from llmcompress.compression.replay.key import GraphCache, GraphCacheOption, cache_use
from llmcompress.compression.replay.recording import FinishedRun, keep_run
from llmcompress.compression.replay.replaying import find_replay, replay
from llmcompress.compression.run import compress_in_memory
from llmcompress.data.texts import fetch_text
from llmcompress.errors import UsageError
from llmcompress.loaders.environments import (
    TransformersLayer,
    is_at_hand,
    is_known,
    needed_layer,
    on_layer,
    versions_for,
)
from llmcompress.loaders.fetching import fetch_listed
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.quantized.declaration import check_quantization, is_repacked
from llmcompress.loaders.recommended import recommended_recipe
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source, identity
from llmcompress.report.compression import CompressionReport, Engine
from llmcompress.report.record import Stages
from llmcompress.spec import RECOMMENDED, Access, Recipe, load_recipe
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import PACKAGES_THAT_DECIDE_SCORES, quiet_libraries
from llmcompress.system.files import short_name
from llmcompress.system.library_call import ProgressOption, library_call, reporter, warnings_counted
from llmcompress.system.memory import objects_uncollected
from llmcompress.system.progress import Progress, Reporter, silent

_log = logging.getLogger(__name__)


@library_call
def compress(
    source: str | Path | LoadedModel,
    recipe: str | Path | Recipe,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    allow_links: bool = False,
    merge_adapter: bool = False,
    max_context: int | None = None,
    tokenizer: bool = True,
    engine: Engine = "llmcompress",
    requantize: bool = False,
    file: str | None = None,
    text_only: bool = False,
    save_checkpoint: str | Path | None = None,
    graph_cache: GraphCacheOption = None,
    progress: ProgressOption = "auto",
) -> CompressionReport:
    """Compress a model by a recipe into one complete directory for OpenVINO.

    Args:
        source: Hub id, checkpoint directory, GGUF or ONNX file, OpenVINO IR directory, or what ``load`` returned: its
            graph is copied, so that one loaded model serves many recipes.
        recipe: A packaged recipe's name, a YAML file, a ``Recipe``, or ``optimum-default`` (``optimum-default-8bit``)
            for what Optimum recommends for this model.
        output_dir: Appears complete, by one rename, or not at all.
        revision: Branch, tag or commit of a Hub source.
        trust_remote_code: Run Python code that the repository brings.
        offline: Use local files and caches only.
        overwrite: Replace an existing artifact, in one step.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        allow_links: Follow links that leave a source's directory.
        merge_adapter: Load the base model of an adapter's directory and merge the adapter into it (the extra
            ``adapters``).
        max_context: Tokens that the model's positions reach, where its configuration states another context.
        tokenizer: Convert the tokenizer and compare it with the original; without it GenAI cannot open the output.
        engine: Whose arithmetic makes the codes of weights: our kernels' where they cover a weight, or NNCF's for every
            one. The model is the same bytes, by GPTQ up to the rounding of its sums; its manifest says by which each
            layer was made.
        requantize: Compress a checkpoint that is quantized already again: its floats are computed from its codes.
        file: The GGUF or ONNX file that is meant, of a directory or repository that holds several.
        text_only: Take the language model of a vision-language checkpoint alone, as a causal language model.
        save_checkpoint: Where the pruned checkpoint is kept too, as transformers saves it, before its weights are
            compressed; nothing may be there.
        graph_cache: Use the graph of another checkpoint of this configuration where one is kept, and keep this one:
            the same bytes in a fraction of the time. ``background``: a process that outlives this call keeps it. False:
            neither; None: as ``LLMCOMPRESS_GRAPH_CACHE`` says, without it use what is kept, and keep nothing.
        progress: Told of every stage.

    Returns:
        The manifest that was written as ``llmcompress.json``.

    Raises:
        UsageError: The output exists, overlaps the input, or the source is neither a path nor a Hub id; or there is
            no such engine.
        RecipeError: The recipe is wrong or cannot be applied to this model.
        ResourceError: Memory or disk will not suffice.
        ModelError: The source is damaged, incomplete, unsupported or already compressed; or the tokenizer's
            conversion differs from the original.
        DataError: The calibration data cannot be used.
        HubError: The Hub could not give it.
        SecurityError: The source would need pickle files or foreign code.
        WriteError: The output could not be written.
        LockedError: Another run writes the same output.
        GateError: Accuracy control cannot keep what it must, and the best model is not to be kept.
    """
    progress = reporter(progress)
    if engine not in get_args(Engine):
        raise UsageError(f"engine: got {engine!r}; accepted: {', '.join(get_args(Engine))}", hint="write one of these")
    quiet_libraries()
    stages = Stages()
    # What Optimum recommends depends on the model; any other recipe is read before the model is looked for.
    if not isinstance(recipe, Recipe) and recipe not in RECOMMENDED:
        recipe = load_recipe(recipe)
    access = Access(
        revision,
        trust_remote_code,
        offline,
        allow_nonfinite,
        allow_links,
        merge_adapter,
        max_context,
        requantize,
        file,
        text_only,
    )
    if isinstance(source, LoadedModel):
        _refuse_loading_options(source, access)
        found = source.source
    else:
        found = resolve(source, access, vision=True)
    if not isinstance(recipe, Recipe):
        recipe = recommended_recipe(found, str(recipe))
    kept = None if save_checkpoint is None else _checkpoint_place(save_checkpoint, recipe, found)
    output = OutputOptions(Path(output_dir), overwrite, tokenizer, engine, kept, cache_use(graph_cache))
    if isinstance(source, LoadedModel):
        return compress_found(source, recipe, output, access, stages=stages, progress=progress)
    layer = needed_layer(found)
    if layer is None:
        return compress_found(found, recipe, output, access, stages=stages, progress=progress)
    access = prepare_for_layer(layer, found, [recipe], output, access, progress)
    how = {"recipe": recipe, "output": output, "access": access}
    return on_layer(layer, compress_found, found, how, offline=offline, progress=progress)


def predict(
    source: Source, recipe: Recipe, output_dir: Path | None, *, engine: Engine = "llmcompress", offline: bool = False
) -> Forecast:
    """As ``forecast``; of a model that only another version of transformers can build, on the layer that has it.

    Raises: as ``forecast`` and ``on_layer``.
    """
    layer = needed_layer(source)
    if layer is None or is_known(source):
        return forecast(source, recipe, output_dir, engine=engine)
    how = {"recipe": recipe, "output_dir": output_dir, "engine": engine}
    return on_layer(layer, forecast_found, source, how, offline=offline, fetch=fetch_listed)


def forecast_found(
    source: Source, recipe: Recipe, output_dir: Path | None, engine: Engine, *, progress: Reporter
) -> Forecast:
    """As ``forecast``, for a worker."""
    return forecast(source, recipe, output_dir, engine=engine)


class OutputOptions(NamedTuple):
    """Where the output goes, and how it is made."""

    directory: Path
    overwrite: bool = False
    tokenizer: bool = True
    engine: Engine = "llmcompress"
    checkpoint: Path | None = None
    """Where what a pruning leaves is kept."""
    graphs: GraphCache = GraphCache()


def compress_found(
    source: Source | LoadedModel,
    recipe: Recipe,
    output: OutputOptions,
    access: Access,
    *,
    stages: Stages | None = None,
    progress: Reporter = silent,
) -> CompressionReport:
    """Compress what was found or loaded, by the transformers of this process; raises as ``compress``."""
    found = source.source if isinstance(source, LoadedModel) else source
    stages = stages or Stages()
    graphs = output.graphs if isinstance(source, Source) else GraphCache()
    with staging(output.directory, overwrite=output.overwrite, inputs=inputs(found, recipe)) as stage:
        if graphs.uses and (report := _by_kept_graph(found, recipe, output, stage, stages, progress)) is not None:
            return report
        options = CompressOptions(
            stage.scratch_dir(), stage.target, access, output.tokenizer, output.engine, late_codes=True
        )
        with warnings_counted() as warned:
            compressed = compress_in_memory(source, recipe, options, stages, progress)
            try:
                report = write(compressed, stage, progress=progress)
            except DoubtError:
                assert compressed.late is not None
                options, source = options._replace(late_codes=False), compressed.late.original
                compressed = compress_in_memory(source, recipe, options, stages, progress)
                report = write(compressed, stage, progress=progress)
        if output.checkpoint is not None:
            save_pruned(compressed.loaded.source.path, output.checkpoint)
        found = compressed.loaded.source
        del compressed
    if graphs.keeps:
        made = FinishedRun(found, recipe, output.engine, report, stage.target, output.tokenizer)
        _keep(made, graphs, warned, progress)
    return report


def compress_by_kept_graph(
    source: Source, recipe: Recipe, output: OutputOptions, *, progress: Reporter = silent
) -> CompressionReport | None:
    """Compress what was found by the graph that is kept of its configuration; None: there is none, nothing is written.

    Raises: as ``compress``.
    """
    with staging(output.directory, overwrite=output.overwrite, inputs=inputs(source, recipe)) as stage:
        return _by_kept_graph(source, recipe, output, stage, Stages(), progress)


def _by_kept_graph(
    source: Source, recipe: Recipe, output: OutputOptions, stage: Staging, stages: Stages, progress: Reporter
) -> CompressionReport | None:
    """What the whole way would write; None: nothing is kept of such a checkpoint, or a doubt is left."""
    with objects_uncollected():
        kept = find_replay(source, recipe, output.engine, tokenizer=output.tokenizer, progress=progress)
        return None if kept is None else replay(kept, stage, stages, progress)


def _keep(made: FinishedRun, graphs: GraphCache, warned: Sequence[str], progress: Reporter) -> None:
    """Keep the graph of a run; say why not where that was asked for."""
    if warned:
        reason = "its warnings would be missing where the graph is used"
    elif graphs.in_background:
        reason = keep_in_background(made, progress)
    else:
        reason = keep_run(made, progress)
    if reason and graphs.is_asked:
        _log.warning("%s: the graph is not kept: %s", made.source.name, reason)


def _checkpoint_place(directory: str | Path, recipe: Recipe, found: Source) -> Path:
    if recipe.pruning is None:
        raise UsageError(
            f"`save_checkpoint` keeps what a pruning leaves, and recipe {recipe.name} has none",
            where=str(directory),
            hint="leave it out, or take a recipe with pruning",
        )
    return checked_output(directory, inputs(found, recipe), overwrite=False)


def prepare_for_layer(
    layer: TransformersLayer,
    found: Source,
    recipes: Sequence[Recipe],
    output: OutputOptions | None,
    access: Access,
    progress: Reporter,
) -> Access:
    """Do what takes the Hub, which is out of reach on a layer, and refuse before anything large is fetched.

    Args:
        layer: What converts it.
        found: The source, whose weights ``on_layer`` fetches.
        recipes: What it will be compressed by: their texts are fetched.
        output: Where it will go; None: its place is looked at later.
        access: How the source was found.
        progress: Told of the stages.

    Returns:
        How the files that are here by then are to be read.

    Raises: as ``compress``.
    """
    # A directory is looked at on the layer, by its own transformers.
    if found.files is not None or found.config.get("auto_map") or not is_at_hand(layer, offline=access.offline):
        for recipe in recipes:
            require_compressible(found, recipe, requantize=access.requantize, offline=access.offline)
            if output is not None:
                predicted = predict(found, recipe, output.directory, engine=output.engine, offline=access.offline)
                require_fits(predicted)
    for recipe in recipes:
        for text in recipe.texts:
            progress(Progress("read the texts", 0, 0))
            fetch_text(text, offline=access.offline)
    return access._replace(offline=True)


def _refuse_loading_options(loaded: LoadedModel, access: Access) -> None:
    given = [
        name
        for name in (
            "revision",
            "trust_remote_code",
            "allow_nonfinite",
            "allow_links",
            "merge_adapter",
            "file",
            "text_only",
        )
        if getattr(access, name)
    ]
    if given:
        raise UsageError(
            f"{' and '.join(given)} given for a model that is loaded already",
            where=loaded.source.id or loaded.source.path.name,
            hint="give such options to llmcompress.load",
        )


def reference_ir(
    source: str,
    *,
    vision: bool = False,
    progress: Reporter = silent,
    **access: Any,
) -> str:
    """Return what to run in place of a source: itself where it is an OpenVINO IR, else the directory of one.

    A checkpoint is converted without compression, once; one that is quantized already keeps its codes. A Hub source is
    known by its commit, a directory by its files' names, sizes and times of change.

    Args:
        source: Hub id or path.
        vision: As of ``resolve``.
        progress: Told of every stage.
        access: Fields of ``Access``.

    Raises: what ``resolve`` and ``compress`` raise.
    """
    quiet_libraries()
    found = resolve(source, Access(**access), vision=vision)
    if found.layout == "ir":
        return found.id or str(found.path)
    key = content_key({"source": identity(found), "versions": versions_for(found, PACKAGES_THAT_DECIDE_SCORES)})
    keeps = is_repacked(found.config) and check_quantization(found.config)[0] == "keep"
    recipe = "keep" if keeps else "none"
    # The last part is what reports call the model.
    name = short_name((found.adapter or found).name.rsplit("/", 1)[-1])
    output = cache_dir() / "reference-ir" / key / f"{name}-{recipe}-ov"
    hold(output.parent)
    if not output.exists():
        compress(source, recipe, output, progress=progress, **access)
    return str(output)
