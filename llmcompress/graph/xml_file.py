"""The .xml of a graph, as OpenVINO writes it: where each of its constants is in the .bin."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.report.file_names import MODEL_BIN, MODEL_XML

if TYPE_CHECKING:
    import openvino as ov

_DATA = re.compile(
    rb'<layer id="\d+" name="([^"]*)" type="Const"[^>]*>\s*<data element_type="([^"]*)" shape="[^"]*" '
    rb'offset="(\d+)" size="(\d+)"'
)


class XmlConstant(NamedTuple):
    """A constant as an .xml has it."""

    name: str
    element: str
    offset: int
    size: int


def saved_xml(model: ov.Model, place: Path | None = None) -> bytes:
    """The .xml of a graph whose .bin nobody needs.

    Args:
        model: The graph.
        place: Where it may lie for a moment; by default where temporary files do.
    """
    import openvino as ov

    with tempfile.TemporaryDirectory(prefix="llmcompress-", dir=place) as folder:
        Path(folder, MODEL_BIN).symlink_to(os.devnull)
        ov.save_model(model, Path(folder, MODEL_XML), compress_to_fp16=False)
        return Path(folder, MODEL_XML).read_bytes()


def xml_constants(xml: bytes) -> list[XmlConstant]:
    """The constants of an .xml, in its order."""
    return [
        XmlConstant(match[1].decode(), match[2].decode(), int(match[3]), int(match[4])) for match in _DATA.finditer(xml)
    ]


def with_offsets(xml: bytes, offsets: Sequence[int]) -> bytes:
    """The .xml with other places of its constants in the .bin.

    Args:
        xml: As OpenVINO writes it.
        offsets: One for each constant.
    """

    def parts() -> Iterator[bytes]:
        at = 0
        for match, offset in zip(_DATA.finditer(xml), offsets, strict=True):
            yield xml[at : match.start(3)]
            yield str(offset).encode()
            at = match.end(3)
        yield xml[at:]

    return b"".join(parts())


def without_offsets(xml: bytes) -> bytes:
    """The .xml, the same wherever its constants are."""
    return with_offsets(xml, [0] * len(xml_constants(xml)))
