"""Weights that are compressed where they are saved: none of their codes is held in memory.

NNCF makes the graph with room for codes, scales and zero points, which takes no memory until it is written to. What
goes into the .bin is made when its place is known, weight by weight, and hashed on the way.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.compression.bin_file import BinFile, bin_file
from llmcompress.compression.coding import CodedParts, write_codes
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.kernels.integers import Integers
from llmcompress.graph.integer_weights import SCALE, ZERO_POINT, weight_part
from llmcompress.graph.xml_file import XmlConstant, saved_xml, with_offsets, xml_constants
from llmcompress.report.record import FileRecord
from llmcompress.system.environment import threads_of_torch
from llmcompress.system.memory import forget_file_pages
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

    from llmcompress.compression.nncf.noted_codes import NotedWeight
    from llmcompress.loaders.loaded_model import LoadedModel

STAGE = "compress and save"


class LateCodes(NamedTuple):
    """Codes that are not made yet."""

    weights: Mapping[str, NotedWeight]
    """What they are made of, by the names of the constants."""
    original: LoadedModel
    """Whose memory that is."""


@contextlib.contextmanager
def codes_left_for_later(model: ov.Model) -> Iterator[dict[str, NotedWeight]]:
    """Have a compression leave out the codes that our kernels make; the weights are known when it is through.

    Args:
        model: Not compressed yet. Its constants must outlive the codes' making, which reads them.
    """
    from llmcompress.compression.nncf.noted_codes import codes_noted

    names = {op.data.ctypes.data: op.get_friendly_name() for op in _constants(model)}
    noted: list[NotedWeight] = []
    found: dict[str, NotedWeight] = {}
    with codes_noted(noted, alone=False):
        yield found
    found |= {names[weight.address]: weight for weight in noted}


def save_with_codes(
    model: ov.Model, codes: Mapping[str, NotedWeight], xml_path: Path, progress: Reporter
) -> FileRecord:
    """Save a graph as ``save_model`` does, and compress the weights that were left for later on the way.

    Args:
        model: As ``codes_left_for_later`` left it.
        codes: The weights, by the names of their constants.
        xml_path: Of the .xml; the .bin goes next to it.
        progress: Told of the bytes that are written.

    Returns:
        Size and hash of the .bin.

    Raises:
        DoubtError: A weight cannot be compressed here, and nothing of the graph is to be used.
        OSError: The disk refuses.
    """
    xml = saved_xml(model, xml_path.parent)
    constants = xml_constants(xml)
    nodes = {op.get_friendly_name(): op for op in _constants(model)}
    _require_whole(constants, nodes, codes)
    room = sum(constant.size for constant in constants)
    bin_path = xml_path.with_suffix(".bin")
    with (
        bin_path.open("wb+") as file,
        ThreadPoolExecutor(threads_of_torch()) as pool,
        bin_file(file, room) as writer,
    ):
        parts: dict[str, CodedParts] = {}
        done = 0
        told = 0
        for constant in constants:
            if done >= told:
                progress(Progress(STAGE, done, room, "bytes"))
                told = done + room // 100
            writer.put(_content(constant, nodes, codes, parts, writer, pool), constant.size)
            done += constant.size
        sha256 = writer.sha256()
    progress(Progress(STAGE, room, room, "bytes"))
    xml_path.write_bytes(with_offsets(xml, writer.offsets))
    return FileRecord(path=bin_path.name, size_bytes=writer.num_bytes, sha256=sha256)


def _require_whole(
    constants: list[XmlConstant], nodes: Mapping[str, ov.Node], codes: Mapping[str, NotedWeight]
) -> None:
    """Refuse a graph in which what belongs to a weight cannot be told by names."""
    counts = Counter(constant.name for constant in constants)
    if any(count > 1 for count in counts.values()) or not counts.keys() <= nodes.keys():
        raise DoubtError("constants are not told apart by their names")
    elements = {constant.name: constant.element for constant in constants}
    for name, weight in codes.items():
        integers = weight.layout.codes if isinstance(weight.layout.codes, Integers) else None
        wanted = {name: elements.get(name), name + SCALE: "f16"}
        if integers is not None and integers.is_asymmetric:
            wanted[name + ZERO_POINT] = elements.get(name)
        if None in wanted.values() or wanted.items() - elements.items():
            raise DoubtError(f"what belongs to {name} is not in the graph")


def _content(
    constant: XmlConstant,
    nodes: Mapping[str, ov.Node],
    codes: Mapping[str, NotedWeight],
    parts: dict[str, CodedParts],
    writer: BinFile,
    pool: ThreadPoolExecutor,
) -> NDArray[np.uint8] | None:
    """The bytes of a constant; None: they are in their place."""
    import numpy as np

    content: NDArray[np.uint8]
    name, suffix = weight_part(constant.name, codes)
    if suffix and name not in parts:
        raise DoubtError(f"constant {constant.name} comes before the codes that it belongs to")
    is_number = suffix == ZERO_POINT and not len(parts[name].zero_points)
    if name not in codes or is_number:
        content = nodes[constant.name].data.reshape(-1).view(np.uint8)
    elif not suffix:
        weight = codes[name]
        if constant.size != weight.layout.num_bytes:
            raise DoubtError(f"constant {constant.name} has another size")
        parts[name] = write_codes(weight.values, weight.layout, writer.room(constant.size), pool)
        # Read once; the pages of the whole checkpoint would otherwise add up.
        pool.submit(forget_file_pages, weight.address, len(weight.values))
        return None
    else:
        content = parts[name].scales if suffix == SCALE else parts[name].zero_points
    if len(content) != constant.size:
        raise DoubtError(f"constant {constant.name} has another size")
    return content


def _constants(model: ov.Model) -> list[ov.Node]:
    return [op for op in model.get_ops() if op.get_type_name() == "Constant"]
