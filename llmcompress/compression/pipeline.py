"""A source and a recipe in, one complete, verified directory out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmcompress.artifact import Staging, file_records, staging, write_errors
from llmcompress.artifact.manifest import NOT_LISTED, entries, file_record
from llmcompress.compression.in_memory import CompressedModel, compress_in_memory
from llmcompress.environment import environment_record, quiet_libraries
from llmcompress.errors import UsageError
from llmcompress.loaders.json_file import write_json
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.recommended import recommended_recipe
from llmcompress.loaders.source import Source, resolve
from llmcompress.progress import Progress, Reporter, silent
from llmcompress.recipe import RECOMMENDED, Recipe, dump_recipe, load_recipe
from llmcompress.report import CompressionReport, FileRecord
from llmcompress.stages import Stages

if TYPE_CHECKING:
    import openvino as ov

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
MODEL_FILES = frozenset({MODEL_XML, MODEL_BIN})


class Conversions(NamedTuple):
    """How the converted tokenizer and the chat template compare with the originals."""

    tokenizer: Literal["equal", "none"]
    chat_template: Literal["equal", "none", "not checked"]


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
    tokenizer: bool = True,
    progress: Reporter = silent,
) -> CompressionReport:
    """Compress a model by a recipe into one complete directory for OpenVINO.

    Args:
        source: Hub id, checkpoint directory, OpenVINO IR directory, or what ``load`` returned: its graph is copied,
            so that one loaded model serves many recipes.
        recipe: A packaged recipe's name, a YAML file, a ``Recipe``, or ``optimum-default`` (``optimum-default-8bit``)
            for what Optimum recommends for this model.
        output_dir: Appears complete, by one rename, or not at all.
        revision: Branch, tag or commit of a Hub source.
        trust_remote_code: Run Python code that the repository brings.
        offline: Use local files and caches only.
        overwrite: Replace an existing artifact, in one step.
        allow_nonfinite: Go on when a weight is NaN or infinite.
        tokenizer: Convert the tokenizer and compare it with the original; without it GenAI cannot open the output.
        progress: Told of every stage.

    Returns:
        The manifest that was written as ``llmcompress.json``.

    Raises:
        UsageError: The output exists, overlaps the input, or the source is neither a path nor a Hub id.
        RecipeError: The recipe is wrong or cannot be applied to this model.
        ResourceError: Memory or disk will not suffice.
        ModelError: The source is damaged, incomplete, unsupported or already compressed; or the tokenizer's
            conversion differs from the original.
        DataError: The calibration data cannot be used.
        HubError: The Hub could not give it.
        SecurityError: The source would need pickle files or foreign code.
        WriteError: The output could not be written.
        LockedError: Another run writes the same output.
    """
    quiet_libraries()
    stages = Stages()
    # What Optimum recommends depends on the model; any other recipe is read before the model is looked for.
    if not isinstance(recipe, Recipe) and recipe not in RECOMMENDED:
        recipe = load_recipe(recipe)
    if isinstance(source, LoadedModel):
        _refuse_loading_options(source, revision, trust_remote_code, allow_nonfinite)
        found = source.source
    else:
        found = resolve(source, revision=revision, trust_remote_code=trust_remote_code, offline=offline)
    if not isinstance(recipe, Recipe):
        recipe = recommended_recipe(found, str(recipe))
    with staging(output_dir, overwrite=overwrite, inputs=inputs(found, recipe)) as stage:
        compressed = compress_in_memory(
            source if isinstance(source, LoadedModel) else found,
            recipe,
            scratch_dir=stage.scratch_dir(),
            target=stage.target,
            offline=offline,
            allow_nonfinite=allow_nonfinite,
            tokenizer=tokenizer,
            stages=stages,
            progress=progress,
        )
        return write(compressed, stage, progress=progress)


def write(compressed: CompressedModel, stage: Staging, *, progress: Reporter = silent) -> CompressionReport:
    """Write a compressed model, its tokenizer and its manifest, and put the directory in place.

    Raises:
        ModelError: The tokenizer's conversion differs from the original.
        WriteError: The output could not be written.
    """
    loaded, stages = compressed.loaded, compressed.stages
    with stages.stage("save"):
        _save_model(compressed.model, stage, progress)
    with stages.stage("convert the tokenizer and hash"), ThreadPoolExecutor(1) as pool:
        model_files = pool.submit(_model_records, stage.path)
        conversions = _save_side_files(compressed, stage, progress)
        side_files = file_records(stage.path, exclude=NOT_LISTED | MODEL_FILES)
        files = tuple(sorted((*model_files.result(), *side_files), key=lambda file: file.path))
    bin_bytes = next(file.size_bytes for file in files if file.path == MODEL_BIN)
    environment = environment_record(_num_threads())
    report = CompressionReport(
        llmcompress_version=environment.versions["llmcompress"],
        provenance=loaded.provenance,
        recipe=compressed.recipe.portable(),
        calibration=compressed.calibration,
        environment=environment,
        num_parameters=loaded.num_parameters,
        bits_per_weight=bin_bytes * 8 / loaded.num_parameters,
        size_bytes=sum(file.size_bytes for file in files),
        mapped_share=loaded.mapped_share,
        tokenizer=conversions.tokenizer,
        chat_template=conversions.chat_template,
        layers=compressed.layers,
        activations=compressed.activations,
        files=files,
        measured=stages.measured(),
    )
    stage.publish(report)
    return report


def inputs(found: Source, recipe: Recipe) -> list[Path]:
    """The files and directories that an output is made from, and must not touch."""
    data = recipe.calibration.dataset_path() if recipe.calibration else None
    return [found.path, *([data] if data else [])]


def _refuse_loading_options(
    loaded: LoadedModel, revision: str | None, trust_remote_code: bool, allow_nonfinite: bool
) -> None:
    options = {"revision": revision, "trust_remote_code": trust_remote_code, "allow_nonfinite": allow_nonfinite}
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(
            f"{' and '.join(given)} given for a model that is loaded already",
            where=loaded.source.id or loaded.source.path.name,
            hint="give such options to llmcompress.load",
        )


def _save_model(model: ov.Model, stage: Staging, progress: Reporter) -> None:
    import openvino as ov

    from llmcompress.loaders.graph import number_nodes

    progress(Progress("save", 0, 1))
    number_nodes(model)
    with write_errors(stage.target):
        ov.save_model(model, stage.path / MODEL_XML, compress_to_fp16=False)
    progress(Progress("save", 1, 1))


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _model_records(directory: Path) -> tuple[FileRecord, ...]:
    """Hashed while the tokenizer is converted; other files of the directory are still being written."""
    return tuple(file_record(name, entry) for name, entry in entries(directory) if name in MODEL_FILES)


def _save_side_files(compressed: CompressedModel, stage: Staging, progress: Reporter) -> Conversions:
    from llmcompress.loaders.chat_template import check_chat_template
    from llmcompress.loaders.generation import save_generation_config
    from llmcompress.loaders.tokenizer import check_tokenizer, save_tokenizer

    loaded, tokenizer = compressed.loaded, compressed.tokenizer
    progress(Progress("convert the tokenizer", 0, 3))
    with write_errors(stage.target):
        write_json(stage.path / "config.json", loaded.config)
        recipe = dump_recipe(compressed.recipe.portable())
        (stage.path / "recipe.yaml").write_text(recipe, encoding="utf-8", newline="\n")
        save_generation_config(loaded.config, loaded.generation_config, tokenizer, stage.path)
        if tokenizer is None:
            return Conversions("none", "none")
        save_tokenizer(tokenizer, stage.path)
    progress(Progress("convert the tokenizer", 1, 3))
    check_tokenizer(tokenizer, stage.path)
    progress(Progress("convert the tokenizer", 2, 3))
    verdict = check_chat_template(tokenizer, stage.path)
    progress(Progress("convert the tokenizer", 3, 3))
    return Conversions("equal", verdict)
