"""A compressed model in memory in, its complete directory out."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.artifact import Staging, file_records, write_errors
from llmcompress.artifact.manifest import NOT_LISTED, file_record, sealed
from llmcompress.compression.run import CompressedModel
from llmcompress.compression.zeros import archive_share, sparse_speed
from llmcompress.data.disjoint import write_sequences
from llmcompress.loaders.environments import transformers_needed
from llmcompress.loaders.layout import ir_files
from llmcompress.loaders.source import Source, identity, save_code
from llmcompress.report.compression import CompressionReport, PartRecord
from llmcompress.report.file_names import RECIPE, model_files
from llmcompress.report.record import FileRecord, environment_record
from llmcompress.spec import Recipe, dump_recipe
from llmcompress.system.cache import content_key
from llmcompress.system.files import sync
from llmcompress.system.json_file import write_json
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov


class _Texts(NamedTuple):
    """What was written of a tokenizer."""

    key: str
    files: Mapping[str, bytes]
    """By their names in the artifact."""
    chat_template: Literal["equal", "none", "not checked"]


_written: list[_Texts] | None = None


@contextlib.contextmanager
def texts_converted_once() -> Iterator[None]:
    """Convert and compare a tokenizer once for the artifacts of one model that are written meanwhile."""
    global _written
    _written = []
    try:
        yield
    finally:
        _written = None


def write(compressed: CompressedModel, stage: Staging, *, progress: Reporter = silent) -> CompressionReport:
    """Write a compressed model, its tokenizer and its manifest, and put the directory in place.

    Raises:
        DoubtError: As ``save_with_codes``; nothing is put in place.
        ModelError: The tokenizer's conversion differs from the original.
        WriteError: The output could not be written.
    """
    import torch

    loaded, stages = compressed.loaded, compressed.stages
    graphs = {loaded.part: compressed.model, **loaded.parts}
    names = frozenset(name for part in graphs for name in model_files(part))
    with stages.stage("save"):
        coded = _save_graphs(graphs, compressed, stage, progress)
    with stages.stage("convert the tokenizer and hash"), ThreadPoolExecutor(2) as pool:
        saved = pool.submit(_model_records, stage.path, coded)
        # Else it would be waited for at the end, when there is nothing else to do.
        synced = [pool.submit(sync, stage.path / name) for name in sorted(names)]
        chat_template = _save_side_files(compressed, stage, progress)
        side_files = file_records(stage.path, exclude=NOT_LISTED | names)
        files = tuple(sorted((*saved.result(), *side_files), key=lambda file: file.path))
        with write_errors(stage.target):
            for each in synced:
                each.result()
    weights = {part: next(file for file in files if file.path == model_files(part)[1]) for part in graphs}
    bin_bytes = sum(file.size_bytes for file in weights.values())
    pruning, measured = compressed.pruning, stages.measured()
    if pruning is not None and (density := pruning.density) is not None:
        pruning = pruning.model_copy(update={"archive_share": archive_share(stage.path / weights[loaded.part].path)})
        largest = max((layer.shape for layer in compressed.layers if len(layer.shape) == 2), key=math.prod)
        speed = sparse_speed((largest[0], largest[1]), density)
        measured = measured.model_copy(update={"sparse_speed": speed})
    if compressed.depth_speed is not None:
        measured = measured.model_copy(update={"depth_speed": compressed.depth_speed})
    environment = environment_record(torch.get_num_threads(), loaded.versions)
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
        tokenizer="none" if compressed.tokenizer is None else "equal",
        chat_template=chat_template,
        layers=compressed.layers,
        parts=_part_records(compressed, weights),
        activations=compressed.activations,
        pruning=pruning,
        training=compressed.training,
        kept=compressed.kept,
        transformers=transformers_needed(loaded.source),
        files=files,
        measured=measured,
    )
    stage.publish(report)
    return sealed(report)


def _part_records(compressed: CompressedModel, weights: Mapping[str, FileRecord]) -> tuple[PartRecord, ...]:
    """Of a vision-language model each part, with the file of its weights."""
    if not compressed.parts:
        return ()
    layers = {compressed.loaded.part: compressed.layers, **compressed.parts}
    return tuple(
        PartRecord(name=name, size_bytes=file.size_bytes, sha256=file.sha256, layers=layers[name])
        for name, file in weights.items()
    )


def inputs(found: Source, recipe: Recipe) -> list[Path]:
    """The files and directories that an output is made from, and must not touch."""
    texts = (text.dataset_path() for text in recipe.texts)
    places = [] if found.is_gguf else [found.path]
    if found.container is not None:
        places += [found.container.path / name for name in found.container.files]
    return [*places, *(path for path in texts if path)]


def _save_graphs(
    graphs: Mapping[str, ov.Model], compressed: CompressedModel, stage: Staging, progress: Reporter
) -> FileRecord | None:
    """Save all graphs; of a .bin that was hashed on the way its record."""
    import openvino as ov

    from llmcompress.graph.model import number_nodes

    coded = None
    for number, (part, model) in enumerate(graphs.items()):
        progress(Progress("save", number, len(graphs)))
        number_nodes(model)
        path = stage.path / model_files(part)[0]
        with write_errors(stage.target):
            if part == compressed.loaded.part and compressed.late is not None:
                from llmcompress.compression.late_codes import save_with_codes

                coded = save_with_codes(model, compressed.late.weights, path, progress)
            else:
                ov.save_model(model, path, compress_to_fp16=False)
    progress(Progress("save", len(graphs), len(graphs)))
    return coded


def _model_records(directory: Path, known: FileRecord | None) -> tuple[FileRecord, ...]:
    """Hashed while the tokenizer is converted; other files of the directory are still being written."""
    # Not the directories in it, which the tokenizer's conversion makes and removes.
    with os.scandir(directory) as found:
        entries = {entry.name: entry for entry in found}
    names = [name for name in ir_files(entries) if known is None or name != known.path]
    records = (file_record(name, entries[name]) for name in names)
    return (*records, known) if known else tuple(records)


def _save_side_files(
    compressed: CompressedModel, stage: Staging, progress: Reporter
) -> Literal["equal", "none", "not checked"]:
    """Write all but the model and the manifest; returns how the converted chat template compares with the original."""
    from llmcompress.loaders.processor import check_processor, save_processor

    loaded = compressed.loaded
    with write_errors(stage.target):
        write_json(stage.path / "config.json", loaded.config)
        recipe = dump_recipe(compressed.recipe.portable())
        (stage.path / RECIPE).write_text(recipe, encoding="utf-8", newline="\n")
        if compressed.training_windows is not None:
            write_sequences(stage.path, compressed.training_windows.training.token_ids)
        if loaded.parts:
            save_processor(loaded.source, stage.path)
        if loaded.parts or loaded.source.runs_code:
            save_code(loaded.source, stage.path)
    verdict = _save_texts_once(compressed, stage, progress)
    if loaded.parts and compressed.tokenizer is not None:
        check_processor(loaded.source, stage.path)
    return verdict


def _save_texts_once(
    compressed: CompressedModel, stage: Staging, progress: Reporter
) -> Literal["equal", "none", "not checked"]:
    """As ``save_texts``; what was written of the same tokenizer before is written again where that is asked for."""
    loaded = compressed.loaded
    configs = loaded.config, loaded.generation_config
    key = content_key({"source": identity(loaded.source), "configs": configs, "none": compressed.tokenizer is None})
    if _written and _written[0].key == key:
        with write_errors(stage.target):
            for name, content in _written[0].files.items():
                (stage.path / name).write_bytes(content)
        return _written[0].chat_template
    before = set(stage.path.iterdir())
    verdict = save_texts(compressed.tokenizer, loaded.source, configs, stage, progress)
    added = [path for path in stage.path.iterdir() if path not in before]
    # A processor's files may have been there before, and templates lie in a folder.
    if _written is not None and not loaded.parts and all(path.is_file() for path in added):
        _written[:] = [_Texts(key, {path.name: path.read_bytes() for path in added}, verdict)]
    return verdict


def save_texts(
    tokenizer: Any | None,
    source: Source,
    configs: tuple[Mapping[str, Any], Mapping[str, Any] | None],
    stage: Staging,
    progress: Reporter,
) -> Literal["equal", "none", "not checked"]:
    """Write a tokenizer with its conversion, and the generation configuration that tells where a text ends.

    Args:
        tokenizer: A transformers tokenizer; None: only the configuration is written.
        source: Where it was loaded from.
        configs: The configuration as it is written next to the model, and the source's generation configuration.
        stage: Of the output.
        progress: Told of the three steps.

    Returns:
        How the converted chat template compares with the original.

    Raises:
        ModelError: The conversion differs from the original.
        WriteError: The output could not be written.
    """
    from llmcompress.loaders.chat_template import check_chat_template
    from llmcompress.loaders.generation import save_generation_config
    from llmcompress.loaders.tokenizer import check_tokenizer, save_tokenizer

    progress(Progress("convert the tokenizer", 0, 3))
    with write_errors(stage.target):
        save_generation_config(*configs, tokenizer, stage.path)
        if tokenizer is None:
            return "none"
        save_tokenizer(tokenizer, stage.path, source)
    progress(Progress("convert the tokenizer", 1, 3))
    check_tokenizer(tokenizer, stage.path)
    progress(Progress("convert the tokenizer", 2, 3))
    verdict = check_chat_template(tokenizer, stage.path)
    progress(Progress("convert the tokenizer", 3, 3))
    return verdict
