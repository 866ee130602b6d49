"""A model in an ONNX file: which file is meant, and the configuration of the class that its weights go into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError, SecurityError, UsageError
from llmcompress.loaders.quantized.onnx.file import SizeOf, read_graph
from llmcompress.loaders.quantized.onnx.graph import find_weights, weight_tensors
from llmcompress.loaders.tensors import Checkpoint

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing

SUFFIX = ".onnx"
ONNX_FOLDER = "onnx"
"""Where repositories keep such files, next to the configuration."""
_SHOWN = 8


class OnnxModel(NamedTuple):
    """A model whose graph was read."""

    checkpoint: Checkpoint
    """The headers of its files, with the names of the graph."""
    config: dict[str, Any]


def is_onnx(name: str) -> bool:
    """Whether a file's name says that it is ONNX."""
    return name.lower().endswith(SUFFIX)


def onnx_name(names: Collection[str], chosen: str | None, where: str) -> str:
    """The file that is meant.

    Args:
        names: Of all files that are there, in the directory and in its folder ``onnx``.
        chosen: One of them, or None where there is one only.
        where: For people.

    Raises:
        UsageError: There are several and none is chosen, or what is chosen is not there.
    """
    found = sorted(name for name in names if is_onnx(name))
    meant = [name for name in found if chosen in (None, name)]
    meant = meant or [name for name in found if name.rpartition("/")[2] == chosen]
    if len(meant) == 1:
        return meant[0]
    shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    raise UsageError(
        f"there is no ONNX file {chosen!r}" if chosen else f"there are {len(found)} ONNX models",
        where=where,
        hint=f"name one of these with `file`: {shown}" if shown else "leave `file` out",
    )


def config_folder(name: str, has_config: Callable[[str], bool]) -> str:
    """The folder with the configuration of a model in an ONNX file: its own, or the one that its folder ``onnx`` is in.

    Args:
        name: Of the file, with its folders.
        has_config: Whether a folder has a config.json.

    Raises:
        ModelError: There is none.
    """
    folder = name.rpartition("/")[0]
    above, _, last = folder.rpartition("/")
    if has_config(folder):
        return folder
    if last == ONNX_FOLDER and has_config(above):
        return above
    raise ModelError(
        "there is no config.json next to it, which says what the model is",
        where=name,
        hint="put config.json and the tokenizer of the model there that the file was made of",
    )


def local_onnx(
    path: Path, config: Mapping[str, Any], size_of: SizeOf | None = None, *, allow_links: bool = False
) -> OnnxModel:
    """Read a model's graph.

    Args:
        path: Of the file.
        config: Of the model that it was made of.
        size_of: Of the files next to it; None: they are here.
        allow_links: Follow links that leave the directory.

    Raises:
        ModelError: A file is damaged or missing, or an operation on a weight is not read.
        SecurityError: A tensor lies outside of the file's directory.
    """
    graph = read_graph(path, size_of)
    found = find_weights(graph, config)
    tensors = weight_tensors(graph, found)
    files = (path.name, *sorted({tensor.file for tensor in tensors.values()} - {path.name}))
    if size_of is None and not allow_links:
        for name in files:
            _require_inside(path.parent, name)
    own = {matrix.name for matrix in found.matrices}
    made = {
        **config,
        "quantization_config": {
            "quant_method": "onnx",
            "producer": graph.producer,
            "types": dict(sorted(Counter(matrix.kind for matrix in found.matrices).items())),
        },
    }
    made.pop("compression_config", None)
    if config.get("tie_word_embeddings"):
        # A head with codes of its own is no longer its embedding.
        made["tie_word_embeddings"] = "lm_head.weight" not in own
    return OnnxModel(Checkpoint(path.parent, files, None, tensors), made)


def _require_inside(directory: Path, name: str) -> None:
    """Refuse a file that is a link out of the model's directory, but for those that the Hub's cache is made of."""
    target, root = (directory / name).resolve(), directory.resolve()
    cache = next((above for above in root.parents if above.name == "snapshots"), None)
    if not target.is_relative_to(root) and not (cache and target.is_relative_to(cache.parent / "blobs")):
        raise SecurityError(
            f"{name} is a link to {target}, outside the model's directory; it was not opened",
            where=str(directory),
            hint="`allow_links` opens it, if you know that it belongs there",
        )


def hub_onnx(listing: HubListing, name: str, config: Mapping[str, Any]) -> OnnxModel:
    """As ``local_onnx``, of a Hub repository: the file with the graph is fetched, and none of those with its weights.

    Raises:
        HubError: It cannot be fetched.
    """
    from llmcompress.hub.download import fetch

    path = fetch(listing, [name]).path / name
    folder = PurePosixPath(name).parent
    sizes = {file.path: file.size_bytes for file in listing.files}
    return local_onnx(path, config, lambda file: sizes.get((folder / file).as_posix()))
