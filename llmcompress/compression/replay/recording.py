"""A graph is kept: made a second time of other values, compared with the artifact, and tried on the artifact's source.

What both graphs share is the skeleton. Codes, scales and zero points come from weights by the kernels, other constants
from tensors of the checkpoint; what comes from neither has to be the same in both. Then the artifact's own .bin is made
from the skeleton, and only where every byte is the same is the entry put in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.compression.replay.content import TensorMemory, content, mapped
from llmcompress.compression.replay.describing import NotKeptError, compress_noted, describe
from llmcompress.compression.replay.hashing import begin_hashing, end_hashing
from llmcompress.compression.replay.key import GraphKey, configuration, graph_key, why_not
from llmcompress.compression.replay.skeleton import (
    Keeping,
    KeptGraph,
    Skeleton,
    note_not_kept,
    read_graph,
    why_not_kept,
    write_graph,
)
from llmcompress.compression.replay.stand_ins import substitutes
from llmcompress.compression.replay.texts import TextsVerdict, keep_texts, read_texts_of, texts_in, texts_key
from llmcompress.compression.replay.tracing import Origins
from llmcompress.compression.replay.unseen import described_uncompressed, keep_uncompressed
from llmcompress.graph.model import number_nodes, set_runtime_options
from llmcompress.graph.xml_file import saved_xml, without_offsets, xml_constants
from llmcompress.loaders.checkpoint import Given, clone_model, convert_checkpoint
from llmcompress.loaders.source import Source, side_files, source_checkpoint
from llmcompress.report.compression import CompressionReport, Engine
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML
from llmcompress.spec import Recipe
from llmcompress.system.json_file import read_json
from llmcompress.system.memory import peak_rss_bytes
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import openvino as ov

STAGE = "keep the graph"

_log = logging.getLogger(__name__)


class _ChangedError(Exception):
    """Something that was looked at is no longer there."""


class FinishedRun(NamedTuple):
    """What a run made."""

    source: Source
    """Its files are here."""
    recipe: Recipe
    engine: Engine
    report: CompressionReport
    artifact: Path
    tokenizer: bool
    """Whether its conversion was asked for."""

    def hash_of(self, name: str) -> str:
        """Of a file of the artifact, as the run wrote it."""
        return next(file.sha256 for file in self.report.files if file.path == name)


def keep_run(made: FinishedRun, progress: Reporter, *, in_background: bool = False) -> str:
    """Keep the graph and the tokenizer of an artifact that is in place; interrupted or failed, no entry is left.

    Args:
        made: The run.
        progress: Told of three steps.
        in_background: By one thread; noted with the entry.

    Returns:
        Why the graph is not kept; empty where it is.
    """
    reason = why_not(made.source, made.recipe, made.engine)
    if reason:
        return reason
    began, processor_began = time.perf_counter(), time.process_time()
    progress(Progress(STAGE, 0, 3))
    try:
        if read_texts_of(made.source, tokenizer=made.tokenizer) is None:
            verdict = TextsVerdict(
                key=texts_key(made.source, tokenizer=made.tokenizer),
                tokenizer=made.report.tokenizer,
                chat_template=made.report.chat_template,
                sha256={},
            )
            keep_texts(texts_in(made.artifact, verdict))
        tensors = mapped(source_checkpoint(made.source))
        key = graph_key(made.source, configuration(made.source, made.recipe, made.engine), tensors)
        if read_graph(key.folder, key._asdict()) is not None:
            return ""
        if (known := why_not_kept(key.folder)) is not None:
            return known
        with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder:
            found = _graphs(made, key, Path(folder), progress)
            _verify(found.graph, made, tensors, 1 if in_background else made.report.environment.num_threads, progress)
        keeping = Keeping(
            duration_s=time.perf_counter() - began,
            processor_s=time.process_time() - processor_began,
            peak_rss_bytes=peak_rss_bytes(os.getpid()),
            in_background=in_background,
        )
        write_graph(key.folder, found.graph, keeping)
        keep_uncompressed(found.uncompressed, found.graph, made.recipe, keeping)
    except (KeyboardInterrupt, SystemExit):
        # The artifact is in place: the run has done what it was asked for.
        reason = "it was interrupted"
    except NotKeptError as error:
        reason = str(error)
        with contextlib.suppress(OSError):
            note_not_kept(key.folder, reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next run goes the whole way
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = ""
    finally:
        progress(Progress(STAGE, 3, 3))
    if reason:
        _log.info("%s: no graph is kept: %s", made.source.name, reason)
    return reason


class _Made(NamedTuple):
    """What becomes an entry."""

    graph: KeptGraph
    """As the recipe left it."""
    uncompressed: KeptGraph
    """As the exporter left it."""


def _graphs(made: FinishedRun, key: GraphKey, folder: Path, progress: Reporter) -> _Made:
    """What was made, as a skeleton, and what it was made of."""
    import numpy as np

    tensors = mapped(source_checkpoint(made.source), private=True)
    others = substitutes(tensors, content(tensors))
    traced = Origins(others)
    model = _converted(made.source, others, folder)
    progress(Progress(STAGE, 1, 3))
    origins = {
        op.data.ctypes.data: traced.of(op.data, op.get_element_type().get_type_name())
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().is_real() and op.get_byte_size()
    }
    config = (made.artifact / "config.json").read_bytes()
    if "_name_or_path" in read_json(made.artifact / "config.json"):
        raise NotKeptError("the configuration names where it came from")
    # What would be let go would leave its address to something else.
    before = clone_model(model)
    uncompressed = described_uncompressed(before, origins, made.report, key, config)
    coded = compress_noted(model, made.recipe, origins)
    set_runtime_options(model, made.report.runtime_options)
    number_nodes(model)
    xml = (made.artifact / MODEL_XML).read_bytes()
    if hashlib.sha256(xml).hexdigest() != made.hash_of(MODEL_XML):
        raise _ChangedError("the artifact is another one by now")
    if without_offsets(saved_xml(model)) != without_offsets(xml):
        raise NotKeptError("the graph is another one for other values")
    described = describe(model, xml, coded, origins, np.memmap(made.artifact / MODEL_BIN, np.uint8, "r"))
    del before
    skeleton = Skeleton(
        key={**key._asdict()},
        report=made.report,
        constants=described.constants,
        weights=coded.weights,
        sha256={},
    )
    return _Made(KeptGraph(skeleton, xml, described.literals, config), uncompressed)


def _converted(source: Source, tensors: Mapping[str, object], folder: Path) -> ov.Model:
    """Convert other values as the source was converted; the directory has no weights that could be read past them."""
    import shutil

    directory, scratch = folder / "source", folder / "scratch"
    directory.mkdir()
    scratch.mkdir()
    for name in side_files(source):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source.path / name, directory / name)
    return convert_checkpoint(directory, scratch, given=Given(tensors=tensors))  # type: ignore[arg-type]


def _verify(graph: KeptGraph, made: FinishedRun, tensors: TensorMemory, num_threads: int, progress: Reporter) -> None:
    """Make the artifact's .bin from what was kept, and compare it by its hash."""
    from llmcompress.compression.replay.streaming import stream

    progress(Progress(STAGE, 2, 3))
    hashes = begin_hashing(tensors)
    try:
        with tempfile.TemporaryFile(dir=made.artifact.parent) as file:
            done = stream(graph, tensors, hashes, file, num_threads, durable=False)
    finally:
        end_hashing(hashes)
    before = {each.path: each.sha256 for each in made.report.provenance.weight_files}
    offsets = [constant.offset for constant in xml_constants(graph.xml)]
    if done.sha256 != made.hash_of(MODEL_BIN) or list(done.offsets) != offsets:
        raise NotKeptError("what the kept graph gives differs from the artifact")
    if any(before.get(each.path) != each.sha256 for each in done.sources if each.path.endswith(".safetensors")):
        raise _ChangedError("the checkpoint changed")
