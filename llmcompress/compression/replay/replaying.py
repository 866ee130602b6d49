"""A checkpoint by the kept graph of another one: the same directory that the whole way would write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from llmcompress.artifact import Staging, file_records, write_errors
from llmcompress.artifact.manifest import NOT_LISTED, sealed
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.forecast.prediction import SIDE_FILES_BYTES
from llmcompress.compression.replay.content import TensorMemory, mapped
from llmcompress.compression.replay.hashing import SourceHashes, begin_hashing, end_hashing
from llmcompress.compression.replay.key import (
    KIND,
    GraphKey,
    configuration,
    graph_key,
    is_any_kept,
    why_not,
    without_recipe,
)
from llmcompress.compression.replay.skeleton import KeptGraph, read_graph
from llmcompress.compression.replay.texts import (
    KeptTexts,
    TextsVerdict,
    keep_texts,
    read_texts_of,
    texts_in,
    texts_key,
)
from llmcompress.compression.replay.unseen import find_unseen
from llmcompress.errors import InterruptedRunError, LlmcompressError
from llmcompress.graph.xml_file import with_offsets
from llmcompress.loaders.adapter import warn_of_adapter
from llmcompress.loaders.checking import CheckedWeights
from llmcompress.loaders.fetching import fetch_side_files, fetch_weights
from llmcompress.loaders.generation import read_generation_config
from llmcompress.loaders.loaded_model import checkpoint_provenance, parameters_of
from llmcompress.loaders.other_libraries import refuse_other_libraries
from llmcompress.loaders.scan import check_hashes
from llmcompress.loaders.source import Source, file_names, source_checkpoint
from llmcompress.loaders.tensors import Checkpoint, refuse_empty
from llmcompress.report.compression import CompressionReport, Engine
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML, RECIPE
from llmcompress.report.record import FileRecord, Stages, environment_record
from llmcompress.spec import Recipe, dump_recipe
from llmcompress.system.cache import cache_dir
from llmcompress.system.environment import leave_out_torch
from llmcompress.system.files import free_bytes
from llmcompress.system.library_call import warnings_counted
from llmcompress.system.progress import Reporter


class Replay(NamedTuple):
    """A checkpoint, and all that is kept of its configuration."""

    source: Source
    recipe: Recipe
    tensors: TensorMemory
    hashes: SourceHashes
    """Of its files, begun."""
    key: GraphKey
    graph: KeptGraph
    texts: KeptTexts | None
    """None: the tokenizer is converted now."""
    tokenizer: bool
    """Whether its conversion is asked for."""


def find_replay(
    source: Source, recipe: Recipe, engine: Engine, *, tokenizer: bool, progress: Reporter
) -> Replay | None:
    """Look whether all that a run would find out is kept; None: no, or something is wrong, which the whole way tells.

    The weights of a Hub source are fetched where a graph of its configuration is kept.
    """
    try:
        configured = _kept_configuration(source, recipe, engine)
        if configured is None:
            return None
        found = fetch_weights(source, progress=progress)
        refuse_other_libraries(found)
        checkpoint = source_checkpoint(found)
        refuse_empty(checkpoint)
        return _of_files(found, checkpoint, configured, recipe, tokenizer=tokenizer, progress=progress)
    except InterruptedRunError:
        raise
    except (LlmcompressError, OSError, ValueError):
        return None


def may_replay(source: Source, recipe: Recipe, engine: Engine) -> bool:
    """Whether a graph is kept of a source's configuration; its weights are not looked at."""
    try:
        return _kept_configuration(source, recipe, engine) is not None
    except InterruptedRunError:
        raise
    except (LlmcompressError, OSError, ValueError):
        return False


def _kept_configuration(source: Source, recipe: Recipe, engine: Engine) -> Mapping[str, Any] | None:
    """The part of a key that is known without the weights; None where no graph is kept of it."""
    if why_not(source, recipe, engine) or not (cache_dir() / KIND).is_dir():
        return None
    if source.files is not None:
        source = fetch_side_files(source)
    configured = configuration(source, recipe, engine)
    return configured if is_any_kept(configured) or is_any_kept(without_recipe(configured)) else None


def _of_files(
    source: Source,
    checkpoint: Checkpoint,
    configured: Mapping[str, Any],
    recipe: Recipe,
    *,
    tokenizer: bool,
    progress: Reporter,
) -> Replay | None:
    """What is kept of a checkpoint that is here; its files are being hashed then."""
    tensors = mapped(checkpoint)
    with ExitStack() as stack:
        hashes = begin_hashing(tensors)
        stack.callback(end_hashing, hashes)
        key = graph_key(source, configured, tensors)
        graph = read_graph(key.folder, key._asdict()) or find_unseen(key, recipe, progress)
        texts = read_texts_of(source, tokenizer=tokenizer)
        if graph is None:
            return None
        stack.pop_all()
        return Replay(source, recipe, tensors, hashes, key, graph, texts, tokenizer)


def replay(found: Replay, stage: Staging, stages: Stages, progress: Reporter) -> CompressionReport | None:
    """Write the directory and put it in place; None: the kept graph leaves a doubt, and nothing is written.

    Raises:
        WriteError: The output could not be written.
        HubError: A file has another hash than the Hub states.
    """
    try:
        return _replayed(found, stage, stages, progress)
    finally:
        end_hashing(found.hashes)


def _replayed(found: Replay, stage: Staging, stages: Stages, progress: Reporter) -> CompressionReport | None:
    from llmcompress.compression.replay.streaming import stream

    size = sum(constant.size for constant in found.graph.skeleton.constants)
    if free_bytes(stage.target) < size + SIDE_FILES_BYTES:
        return None
    num_threads = found.graph.skeleton.report.environment.num_threads
    warn_of_adapter(file_names(found.source), found.source.name)
    try:
        with stages.stage("compress by the kept graph"), write_errors(stage.target):
            with (stage.path / MODEL_BIN).open("xb+") as file:
                made = stream(found.graph, found.tensors, found.hashes, file, num_threads, progress)
            check_hashes(made.sources, found.source.expected_sha256, found.source.path)
            xml = with_offsets(found.graph.xml, made.offsets)
            (stage.path / MODEL_XML).write_bytes(xml)
            (stage.path / "config.json").write_bytes(found.graph.config)
            recipe = dump_recipe(found.recipe.portable())
            (stage.path / RECIPE).write_text(recipe, encoding="utf-8", newline="\n")
    except DoubtError:
        shutil.rmtree(stage.path)
        stage.path.mkdir()
        return None
    with stages.stage("convert the tokenizer and hash"):
        texts = found.texts or _new_texts(found, stage, progress)
        _write_texts(texts, stage)
        model_bin = FileRecord(path=MODEL_BIN, size_bytes=made.num_bytes, sha256=made.sha256)
        others = file_records(stage.path, exclude=NOT_LISTED | {MODEL_BIN})
        files = tuple(sorted((model_bin, *others), key=lambda file: file.path))
        report = _report(found._replace(texts=texts), made.sources, files)
    measured = stages.measured().model_copy(update={"replayed": True})
    report = report.model_copy(update={"measured": measured})
    stage.publish(report)
    return sealed(report)


def _write_texts(texts: KeptTexts, stage: Staging) -> None:
    with write_errors(stage.target):
        for name, content in texts.files.items():
            (stage.path / name).parent.mkdir(exist_ok=True)
            (stage.path / name).write_bytes(content)


def _new_texts(found: Replay, stage: Staging, progress: Reporter) -> KeptTexts:
    """Convert a tokenizer that was not seen yet, and keep what came of it, unless it has to be warned of.

    Raises: as ``require_tokenizer`` and ``save_texts``.
    """
    from llmcompress.compression.output import save_texts
    from llmcompress.loaders.tokenizer import require_tokenizer

    # What is left to be done needs no model.
    leave_out_torch("pandas", "scipy")
    source, others = found.source, stage.path.with_name("texts")
    with write_errors(stage.target):
        others.mkdir()
    with warnings_counted() as warned:
        tokenizer = require_tokenizer(fetch_side_files(source), needed=found.tokenizer)
        configs = json.loads(found.graph.config), read_generation_config(source.path)
        chat_template = save_texts(tokenizer, source, configs, replace(stage, path=others), progress)
    verdict = TextsVerdict(
        key=texts_key(source, tokenizer=found.tokenizer),
        tokenizer="none" if tokenizer is None else "equal",
        chat_template=chat_template,
        sha256={},
    )
    texts = texts_in(others, verdict)
    if not warned:
        with suppress(OSError):
            keep_texts(texts)
    return texts


def _report(found: Replay, sources: tuple[FileRecord, ...], files: tuple[FileRecord, ...]) -> CompressionReport:
    """The manifest that the whole way would write: what is the checkpoint's own takes the place of the first one's."""
    assert found.texts is not None
    first = found.graph.skeleton.report
    hashed: Future[tuple[FileRecord, ...]] = Future()
    hashed.set_result(sources)
    checked = CheckedWeights(found.tensors.checkpoint, hashed)
    num_parameters = parameters_of(found.tensors.checkpoint)
    bin_bytes = next(file.size_bytes for file in files if file.path == MODEL_BIN)
    own: Mapping[str, Any] = {
        "provenance": checkpoint_provenance(found.source, checked),
        "recipe": found.recipe.portable(),
        "environment": environment_record(first.environment.num_threads),
        "num_parameters": num_parameters,
        "bits_per_weight": bin_bytes * 8 / num_parameters,
        "size_bytes": sum(file.size_bytes for file in files),
        "tokenizer": found.texts.verdict.tokenizer,
        "chat_template": found.texts.verdict.chat_template,
        "files": files,
    }
    return first.model_copy(update=dict(own))
