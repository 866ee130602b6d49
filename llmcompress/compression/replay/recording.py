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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.compression.replay.content import TensorMemory, content, mapped, same_bytes
from llmcompress.compression.replay.key import GraphKey, configuration, graph_key, why_not
from llmcompress.compression.replay.skeleton import (
    CodedWeight,
    ConstantValues,
    KeptGraph,
    Skeleton,
    SkeletonConstant,
    XmlConstant,
    note_not_kept,
    read_graph,
    why_not_kept,
    with_offsets,
    write_graph,
    xml_constants,
)
from llmcompress.compression.replay.stand_ins import substitutes
from llmcompress.compression.replay.texts import TextsVerdict, keep_texts, read_texts_of, texts_in, texts_key
from llmcompress.compression.replay.tracing import Origins
from llmcompress.graph.integer_weights import SCALE, ZERO_POINT
from llmcompress.graph.model import number_nodes, set_runtime_options
from llmcompress.loaders.checkpoint import Given, clone_model, convert_checkpoint
from llmcompress.loaders.source import Source, side_files, source_checkpoint
from llmcompress.report.compression import CompressionReport, Engine
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML
from llmcompress.spec import Recipe
from llmcompress.system.json_file import read_json
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

STAGE = "keep the graph"

_log = logging.getLogger(__name__)


class NotKeptError(Exception):
    """A graph cannot be kept, and not the next time either."""


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


def keep_run(made: FinishedRun, progress: Reporter) -> str:
    """Keep the graph and the tokenizer of an artifact that is in place; interrupted or failed, no entry is left.

    Returns:
        Why the graph is not kept; empty where it is.
    """
    reason = why_not(made.source, made.recipe, made.engine)
    if reason:
        return reason
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
            graph = _graph(made, key, Path(folder), progress)
            _verify(graph, made, tensors, progress)
        write_graph(key.folder, graph)
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


def _graph(made: FinishedRun, key: GraphKey, folder: Path, progress: Reporter) -> KeptGraph:
    """What was made, as a skeleton."""
    tensors = mapped(source_checkpoint(made.source), private=True)
    others = substitutes(tensors, content(tensors))
    origins = Origins(others)
    model = _converted(made.source, others, folder)
    progress(Progress(STAGE, 1, 3))
    plain = {
        op.data.ctypes.data: origins.of(op.data, op.get_element_type().get_type_name())
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().is_real() and op.get_byte_size()
    }
    # What would be let go would leave its address to something else.
    uncompressed = clone_model(model)
    weights = _compressed(model, made.recipe, plain)
    set_runtime_options(model, made.report.runtime_options)
    number_nodes(model)
    xml = (made.artifact / MODEL_XML).read_bytes()
    if hashlib.sha256(xml).hexdigest() != made.hash_of(MODEL_XML):
        raise _ChangedError("the artifact is another one by now")
    constants = xml_constants(xml)
    if with_offsets(_saved_xml(model, folder), [0] * len(constants)) != with_offsets(xml, [0] * len(constants)):
        raise NotKeptError("the graph is another one for other values")
    found = _Sources({op.get_friendly_name(): op for op in model.get_ops() if op.get_type_name() == "Constant"}, plain)
    import numpy as np

    stored = np.memmap(made.artifact / MODEL_BIN, np.uint8, "r")
    literals = bytearray()
    kept = [found.source(constant, weights, stored, literals) for constant in constants]
    del uncompressed
    skeleton = Skeleton(
        key={**key._asdict()},
        report=made.report,
        constants=tuple(kept),
        weights=tuple(weight for _, weight in weights.values()),
        sha256={},
    )
    config = (made.artifact / "config.json").read_bytes()
    if "_name_or_path" in read_json(made.artifact / "config.json"):
        raise NotKeptError("the configuration names where it came from")
    return KeptGraph(skeleton, xml, bytes(literals), config)


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


def _compressed(
    model: ov.Model, recipe: Recipe, plain: Mapping[int, ConstantValues | None]
) -> dict[str, tuple[int, CodedWeight]]:
    """Compress a graph as a recipe does, without its codes; the weights that have some, by their constants' names."""
    from llmcompress.compression.nncf.noted_codes import NotCoveredError, NotedWeight, codes_noted
    from llmcompress.compression.replay.values import plain_format

    names = {op.data.ctypes.data: op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "Constant"}
    noted: list[NotedWeight] = []
    if not recipe.weight_passes:
        return {}
    try:
        with codes_noted(noted):
            for weights in recipe.weight_passes:
                compress_weights(model, weights)
    except NotCoveredError as error:
        raise NotKeptError(f"NNCF computes {error}") from None
    found: dict[str, tuple[int, CodedWeight]] = {}
    for weight in noted:
        values = plain.get(weight.address)
        if values is None:
            raise NotKeptError(f"nothing says of which tensors {names.get(weight.address)} is made")
        coded = CodedWeight(
            values=values,
            group_size=weight.groups.size,
            num_columns=weight.groups.num_columns,
            num_groups=weight.num_groups,
            format=plain_format(weight.codes),
        )
        found[names[weight.address]] = len(found), coded
    return found


def _saved_xml(model: ov.Model, folder: Path) -> bytes:
    """The .xml of a graph whose .bin nobody needs."""
    import openvino as ov

    (folder / MODEL_BIN).symlink_to(os.devnull)
    ov.save_model(model, folder / MODEL_XML, compress_to_fp16=False)
    return (folder / MODEL_XML).read_bytes()


class _Sources:
    """Where the constants of a compressed graph come from."""

    def __init__(self, nodes: Mapping[str, ov.Node], plain: Mapping[int, ConstantValues | None]) -> None:
        self._nodes = nodes
        self._plain = plain

    def source(
        self,
        constant: XmlConstant,
        weights: Mapping[str, tuple[int, CodedWeight]],
        stored: NDArray[np.uint8],
        literals: bytearray,
    ) -> SkeletonConstant:
        """Of one constant; what is no weight's is added to ``literals``."""
        import numpy as np

        name, suffix = constant.name, ""
        for each in (SCALE, ZERO_POINT):
            if name.endswith(each) and name.removesuffix(each) in weights:
                name, suffix = name.removesuffix(each), each
        # The zero point of all weights of two or three bits is one number.
        is_number = suffix == ZERO_POINT and not weights[name][1].format.fields["is_asymmetric"]
        if name in weights and not is_number:
            kind = {"": "codes", SCALE: "scales", ZERO_POINT: "zero_points"}[suffix]
            return SkeletonConstant(size=constant.size, kind=kind, weight=weights[name][0])  # type: ignore[arg-type]
        node = self._nodes.get(constant.name)
        if node is None:
            raise NotKeptError(f"constant {constant.name} has another name in the file")
        values = self._plain.get(node.data.ctypes.data)
        if values is not None:
            return SkeletonConstant(size=constant.size, kind="values", values=values)
        own = stored[constant.offset : constant.offset + constant.size]
        if not same_bytes(node.data.reshape(-1).view(np.uint8), own):
            raise NotKeptError(f"constant {constant.name} depends on weights in a way that is not known")
        literals += own.tobytes()
        return SkeletonConstant(size=constant.size, kind="literal", literal_start=len(literals) - constant.size)


def _verify(graph: KeptGraph, made: FinishedRun, tensors: TensorMemory, progress: Reporter) -> None:
    """Make the artifact's .bin from what was kept, and compare it by its hash."""
    from llmcompress.compression.replay.streaming import stream

    progress(Progress(STAGE, 2, 3))
    with tempfile.TemporaryFile(dir=made.artifact.parent) as file:
        done = stream(graph, tensors, file, made.report.environment.num_threads)
    before = {each.path: each.sha256 for each in made.report.provenance.weight_files}
    offsets = [constant.offset for constant in xml_constants(graph.xml)]
    if done.sha256 != made.hash_of(MODEL_BIN) or list(done.offsets) != offsets:
        raise NotKeptError("what the kept graph gives differs from the artifact")
    if any(before.get(each.path) != each.sha256 for each in done.sources if each.path.endswith(".safetensors")):
        raise _ChangedError("the checkpoint changed")
