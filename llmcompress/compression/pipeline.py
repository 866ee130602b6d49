"""A source and a recipe in, one complete, verified directory out."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.artifact import Staging, file_records, staging, write_errors
from llmcompress.artifact.manifest import NOT_LISTED, entries, file_record
from llmcompress.compression.contract import check_target
from llmcompress.compression.forecast import forecast, require_fits
from llmcompress.compression.layers import layer_table
from llmcompress.compression.statistics_cache import statistics, uses_statistics
from llmcompress.environment import environment_record, quiet_libraries
from llmcompress.errors import ModelError, RecipeError, UsageError
from llmcompress.loaders.architecture import check_architecture
from llmcompress.loaders.checking import weights_checked
from llmcompress.loaders.graph import is_compressed
from llmcompress.loaders.json_file import write_json
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.source import Source, fetch_weights, longest_context, resolve
from llmcompress.progress import Progress, Reporter, silent
from llmcompress.recipe import Recipe, dump_recipe, load_recipe
from llmcompress.report import CompressionReport, FileRecord
from llmcompress.stages import Stages

if TYPE_CHECKING:
    import openvino as ov

    from llmcompress.data import Windows

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
        recipe: A packaged recipe's name, a YAML file, or a ``Recipe``.
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
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    _refuse_unavailable(recipe)
    if isinstance(source, LoadedModel):
        _refuse_loading_options(source, revision, trust_remote_code, allow_nonfinite)
        found = source.source
    else:
        found = resolve(source, revision=revision, trust_remote_code=trust_remote_code, offline=offline)
    with (
        staging(output_dir, overwrite=overwrite, inputs=_inputs(found, recipe)) as stage,
        weights_checked(allow_nonfinite=allow_nonfinite, progress=progress) as check,
    ):
        checked = None
        if not isinstance(source, LoadedModel):
            if found.kind == "checkpoint":
                # The weights are here already; their check takes the time of the libraries' import.
                checked = check(fetch_weights(found))
            with stages.stage("forecast"):
                progress(Progress("forecast", 0, 1))
                _refuse_quantized(found, recipe)
                require_fits(forecast(found, recipe, stage.target))
                progress(Progress("forecast", 1, 1))
            with stages.stage("fetch"):
                found = fetch_weights(found, progress=progress)
                if found.layout == "checkpoint" and checked is None:
                    checked = check(found)
        with stages.stage("tokenize"):
            original = _tokenizer(found) if tokenizer or recipe.calibration else None
            windows = _windows(found, recipe, original, offline)
        with stages.stage("load and trace"), write_errors(stage.target):
            if isinstance(source, LoadedModel):
                loaded = source.clone()
            else:
                loaded = load(
                    found,
                    allow_nonfinite=allow_nonfinite,
                    tokenizer=False,
                    scratch_dir=stage.scratch_dir(),
                    checked=checked,
                    progress=progress,
                )
        with stages.stage("compress"):
            model = _compressed(loaded, recipe, windows, progress)
            layers = layer_table(model, recipe.weights.mode if recipe.weights else None)
            check_target(recipe, layers)
        with stages.stage("save"):
            _save_model(model, recipe, stage, progress)
            del model
        with stages.stage("convert the tokenizer and hash"), ThreadPoolExecutor(1) as pool:
            model_files = pool.submit(_model_records, stage.path)
            conversions = _save_side_files(loaded, recipe, original if tokenizer else None, stage, progress)
            side_files = file_records(stage.path, exclude=NOT_LISTED | MODEL_FILES)
            files = tuple(sorted((*model_files.result(), *side_files), key=lambda file: file.path))
        bin_bytes = next(file.size_bytes for file in files if file.path == MODEL_BIN)
        environment = environment_record(_num_threads())
        report = CompressionReport(
            llmcompress_version=environment.versions["llmcompress"],
            provenance=loaded.provenance,
            recipe=recipe.portable(),
            calibration=windows.record if windows else None,
            environment=environment,
            num_parameters=loaded.num_parameters,
            bits_per_weight=bin_bytes * 8 / loaded.num_parameters,
            size_bytes=sum(file.size_bytes for file in files),
            mapped_share=loaded.mapped_share,
            tokenizer=conversions.tokenizer,
            chat_template=conversions.chat_template,
            layers=layers,
            files=files,
            measured=stages.measured(),
        )
        stage.publish(report)
    return report


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


def _refuse_unavailable(recipe: Recipe) -> None:
    if recipe.method not in {"none", "weights"}:
        raise RecipeError(
            f"method {recipe.method} is not carried out by this version; none and weights are",
            where=f"recipe {recipe.name}",
            hint="take a recipe that compresses weights: llmcompress recipes",
        )


def _refuse_quantized(found: Source, recipe: Recipe) -> None:
    if found.layout == "ir":
        return
    architecture = check_architecture(found.config, trust_remote_code=found.trust_remote_code)
    if architecture.quantization == "keep" and recipe.method != "none":
        raise ModelError(
            f"the checkpoint is already quantized and recipe {recipe.name} would quantize it again",
            where=found.id or found.path.name,
            hint="convert it as it is with --recipe none, or give the original checkpoint",
        )


def _inputs(found: Source, recipe: Recipe) -> list[Path]:
    data = recipe.calibration.dataset_path() if recipe.calibration else None
    return [found.path, *([data] if data else [])]


def _tokenizer(found: Source) -> Any:
    from llmcompress.loaders.tokenizer import load_tokenizer

    return load_tokenizer(found.path, trust_remote_code=found.trust_remote_code)


def _windows(found: Source, recipe: Recipe, tokenizer: Any, offline: bool) -> Windows | None:
    if recipe.calibration is None:
        return None
    from llmcompress.data import calibration_windows

    return calibration_windows(recipe.calibration, tokenizer, offline=offline, max_seq_len=longest_context(found))


def _compressed(loaded: LoadedModel, recipe: Recipe, windows: Windows | None, progress: Reporter) -> ov.Model:
    model = loaded.model
    if recipe.weights is None:
        return model
    if is_compressed(model):
        raise ModelError(
            "the model is already compressed; compressing it again would add to its error unseen",
            where=loaded.source.id or loaded.source.path.name,
            hint="give the original checkpoint",
        )
    from llmcompress.compression.weights import compress_weights

    with contextlib.ExitStack() as stack:
        path = None
        if windows is not None and uses_statistics(recipe.weights):
            path = stack.enter_context(statistics(loaded.provenance, windows.record))
        return compress_weights(
            model,
            recipe.weights,
            windows.token_ids if windows else None,
            statistics_path=path,
            progress=progress,
        )


def _save_model(model: ov.Model, recipe: Recipe, stage: Staging, progress: Reporter) -> None:
    import openvino as ov

    from llmcompress.loaders.graph import number_nodes

    progress(Progress("save", 0, 1))
    for name, value in recipe.runtime.properties().items():
        model.set_rt_info(value, ["runtime_options", name])
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


def _save_side_files(
    loaded: LoadedModel, recipe: Recipe, tokenizer: Any | None, stage: Staging, progress: Reporter
) -> Conversions:
    from llmcompress.loaders.chat_template import check_chat_template
    from llmcompress.loaders.generation import save_generation_config
    from llmcompress.loaders.tokenizer import check_tokenizer, save_tokenizer

    progress(Progress("convert the tokenizer", 0, 3))
    with write_errors(stage.target):
        write_json(stage.path / "config.json", loaded.config)
        (stage.path / "recipe.yaml").write_text(dump_recipe(recipe.portable()), encoding="utf-8", newline="\n")
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
