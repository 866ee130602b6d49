"""A recipe that a configuration has not been compressed by: worked out of its uncompressed graph, which is kept too.

NNCF compresses that graph without weights, and without torch, in a process of its own. That it is the graph that the
exporter makes was found when it was kept: the recipe of that run, worked out in the same way, gave the same skeleton.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.compression.compressible import check_target
from llmcompress.compression.forecast.graph_inventory import model_inventory
from llmcompress.compression.forecast.prediction import warnings_of
from llmcompress.compression.layers import layer_table
from llmcompress.compression.replay.describing import (
    CodedWeights,
    NotKeptError,
    Origin,
    compress_noted,
    describe,
)
from llmcompress.compression.replay.key import GraphKey, without_recipe
from llmcompress.compression.replay.skeleton import (
    Keeping,
    KeptGraph,
    Skeleton,
    note_not_kept,
    read_graph,
    why_not_kept,
    write_graph,
)
from llmcompress.errors import InterruptedRunError, LlmcompressError
from llmcompress.graph.model import number_nodes, set_runtime_options
from llmcompress.graph.xml_file import saved_xml, with_offsets, without_offsets, xml_constants
from llmcompress.report.compression import CompressionReport, runtime_options
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML
from llmcompress.spec import Recipe
from llmcompress.system.environment import ends_after_this_call, leave_out_torch, quiet_libraries
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, Reporter, silent

if TYPE_CHECKING:
    import openvino as ov

STAGE = "apply the recipe to the kept graph"
_ALIGNMENT = 64


def uncompressed_key(key: GraphKey) -> GraphKey:
    """What the uncompressed graph is known by that a recipe's graph is made of."""
    return key._replace(configuration=without_recipe(key.configuration))


def described_uncompressed(
    model: ov.Model, origins: Origin, report: CompressionReport, key: GraphKey, config: bytes
) -> KeptGraph:
    """The skeleton of an uncompressed graph.

    Args:
        model: As it was converted.
        origins: Of its constants.
        report: Of the run that it is of.
        key: Of its recipe's graph.
        config: The configuration as that run wrote it.

    Raises:
        NotKeptError: A constant has no name of its own.
    """
    xml = saved_xml(model)
    described = describe(model, xml, CodedWeights({}, frozenset()), origins)
    skeleton = Skeleton(
        key=uncompressed_key(key)._asdict(), report=report, constants=described.constants, weights=(), sha256={}
    )
    return KeptGraph(skeleton, xml, described.literals, config)


def keep_uncompressed(uncompressed: KeptGraph, compressed: KeptGraph, recipe: Recipe, keeping: Keeping) -> None:
    """Keep a graph where working a recipe out of it gives what the real way gave.

    Args:
        uncompressed: The graph.
        compressed: What the recipe made of it, compared with an artifact.
        recipe: The recipe.
        keeping: What it took so far.

    Raises:
        OSError: The cache cannot be written.
    """
    key = GraphKey(**uncompressed.skeleton.key)
    if read_graph(key.folder, key._asdict()) is not None or why_not_kept(key.folder) is not None:
        return
    reason = "what it gives, read again, differs from the artifact"
    try:
        is_same = _essence(work_out(uncompressed, recipe)) == _essence(compressed)
    except (NotKeptError, LlmcompressError) as error:
        is_same, reason = False, str(error)
    if is_same:
        write_graph(key.folder, uncompressed, keeping)
    else:
        note_not_kept(key.folder, reason)


def _essence(graph: KeptGraph) -> tuple[object, ...]:
    """All that decides bytes, wherever constants are."""
    skeleton = graph.skeleton
    literals = [
        graph.literals[each.literal_start : each.literal_start + each.size] if each.kind == "literal" else b""
        for each in skeleton.constants
    ]
    constants = [each.model_copy(update={"literal_start": 0}) for each in skeleton.constants]
    return without_offsets(graph.xml), constants, literals, skeleton.weights, skeleton.report.layers


def find_unseen(key: GraphKey, recipe: Recipe, progress: Reporter) -> KeptGraph | None:
    """Work out what a recipe makes of a kept uncompressed graph; None: there is none, or it cannot be said.

    Args:
        key: Of the recipe's graph, which is not kept.
        recipe: The recipe.
        progress: Told of the stage.
    """
    before = uncompressed_key(key)
    if why_not_kept(key.folder) is not None:
        return None
    found = read_graph(before.folder, before._asdict())
    if found is None:
        return None
    progress(Progress(STAGE, 0, 1))
    try:
        graph = run_supervised(_work_out_alone, {"graph": found, "recipe": recipe})
    except InterruptedRunError:
        raise
    except Exception:  # noqa: BLE001 - what the matter is, the whole way says
        return None
    progress(Progress(STAGE, 1, 1))
    if isinstance(graph, str):
        note_not_kept(key.folder, graph)
        return None
    return graph._replace(skeleton=graph.skeleton.model_copy(update={"key": key._asdict()}))


def _work_out_alone(graph: KeptGraph, recipe: Recipe, progress: Reporter = silent) -> KeptGraph | str:
    """As ``work_out``, in a process that does nothing else; in place of a graph why there is none."""
    ends_after_this_call()
    leave_out_torch("pandas")
    quiet_libraries()
    try:
        return work_out(graph, recipe)
    except NotKeptError as error:
        return str(error)


def work_out(graph: KeptGraph, recipe: Recipe) -> KeptGraph:
    """What a recipe makes of an uncompressed graph; the key of the result is that of the graph.

    Raises:
        NotKeptError: NNCF computes a weight itself, or a run warns of something.
        LlmcompressError: The recipe cannot be applied to this graph.
    """
    with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder:
        model, origins = _read(graph, Path(folder))
        if warnings_of(model_inventory(model, recipe), recipe):
            raise NotKeptError("a run warns, which would be missing")
        coded = compress_noted(model, recipe, origins)
        layers = layer_table(model, None, coded.by_kernels)
        set_runtime_options(model, runtime_options(recipe, layers))
        check_target(recipe, layers)
        number_nodes(model)
        xml = saved_xml(model)
        described = describe(model, xml, coded, origins)
    report = graph.skeleton.report.model_copy(update={"recipe": recipe.portable(), "layers": layers})
    updates: Mapping[str, Any] = {"constants": described.constants, "weights": coded.weights, "report": report}
    return KeptGraph(graph.skeleton.model_copy(update=dict(updates)), xml, described.literals, graph.config)


def _read(graph: KeptGraph, folder: Path) -> tuple[ov.Model, Origin]:
    """Read a graph whose weights are all zeros, and take no room; each constant has a place of its own."""
    import openvino as ov

    offsets, end = [], 0
    for constant in graph.skeleton.constants:
        offsets.append(end)
        end += -(-constant.size // _ALIGNMENT) * _ALIGNMENT
    (folder / MODEL_XML).write_bytes(with_offsets(graph.xml, offsets))
    with (folder / MODEL_BIN).open("wb") as file:
        file.truncate(max(end, 1))
        for constant, offset in zip(graph.skeleton.constants, offsets, strict=True):
            if constant.kind == "literal":
                file.seek(offset)
                file.write(graph.literals[constant.literal_start : constant.literal_start + constant.size])
    model = ov.Core().read_model(folder / MODEL_XML)
    names = [constant.name for constant in xml_constants(graph.xml)]
    values = {
        name: constant.values for name, constant in zip(names, graph.skeleton.constants, strict=True) if constant.values
    }
    origins = {
        op.data.ctypes.data: values[op.get_friendly_name()]
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and op.get_friendly_name() in values
    }
    return model, origins
