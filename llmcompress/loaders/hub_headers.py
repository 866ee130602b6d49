"""The headers of a Hub checkpoint before its weights are fetched: the first bytes of each file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.errors import HubError, ModelError, SecurityError
from llmcompress.loaders.safetensors_file import TensorInfo, header_of, read_header
from llmcompress.loaders.source import Source, file_names
from llmcompress.loaders.tensors import INDEX, SINGLE, Checkpoint, ReadHeaders, read_checkpoint

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing

_AT_ONCE = 8
_FIRST_BYTES = 100_000
"""Most headers are shorter."""


def read_hub_checkpoint(source: Source) -> Checkpoint:
    """As ``read_checkpoint``, of a Hub source; of its weights only the headers are asked for, as far as none are here.

    Raises:
        ModelError, SecurityError: As ``read_checkpoint``; name the repository and the file.
        HubError: A file is missing, or its header cannot be fetched.
    """
    from llmcompress.hub.download import fetch

    listing, names = source.files, file_names(source)
    assert listing is not None
    if INDEX in names and SINGLE not in names:
        source = source._replace(path=fetch(listing, ["config.json", INDEX]).path)
    try:
        return read_checkpoint(source.path, ReadHeaders(names, partial(_headers, listing)))
    except (ModelError, SecurityError) as error:
        # Where the cache keeps a file, or would, tells nobody which one is wrong.
        file = Path(error.where)
        error.where = listing.repo_id if file == source.path else f"{listing.repo_id}: {file.name}"
        raise


def _headers(found: HubListing, path: Path, files: Sequence[str]) -> dict[str, dict[str, TensorInfo]]:
    sizes = {file.path: file.size_bytes for file in found.files}
    for name in files:
        if name not in sizes:
            raise HubError(
                f"its index names {name}, which is not there at revision {found.revision}",
                where=found.repo_id,
                hint="take another revision, or tell the repository's owner",
            )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(files, pool.map(lambda name: _header(found, path / name, sizes[name]), files), strict=True))


def _header(found: HubListing, path: Path, size: int) -> dict[str, TensorInfo]:
    from llmcompress.hub.download import first_bytes

    if path.is_file():
        return read_header(path)
    known = first_bytes(found, path.name, _FIRST_BYTES)

    def first(count: int) -> bytes:
        return known[:count] if count <= len(known) else first_bytes(found, path.name, count)

    return header_of(path, size, first)
