"""A model in GGUF files: which files hold it, and what their metadata says, as files that transformers reads."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError, UsageError
from llmcompress.loaders.quantized.gguf.architectures import architecture_of, gguf_config
from llmcompress.loaders.quantized.gguf.file import GgufFile, gguf_of, read_gguf
from llmcompress.loaders.quantized.gguf.rope import ROPE_TENSORS
from llmcompress.loaders.quantized.gguf.tokenizer import gguf_tokenizer, token_ids
from llmcompress.loaders.safetensors_file import TensorInfo
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.files import short_name
from llmcompress.system.json_file import read_json, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcompress.hub.listing import HubListing

SUFFIX = ".gguf"
CACHE_KIND = "gguf"
TOKENIZER_PROBLEM = "tokenizer.problem"
"""Why there is no tokenizer: the message and what to do."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PROJECTOR = "mmproj"
_MAX_TEXT = 1000
_SHOWN = 8
_MAX_VECTOR_BYTES = 1 << 20


class GgufModel(NamedTuple):
    """A model whose metadata was read."""

    checkpoint: Checkpoint
    """The headers of its files, with GGUF's names and types."""
    directory: Path
    """Holds the configuration and the tokenizer that the metadata describes."""
    config: dict[str, Any]


def is_gguf(name: str) -> bool:
    """Whether a file's name says that it is GGUF."""
    return name.lower().endswith(SUFFIX)


def gguf_names(names: Collection[str], chosen: str | None, where: str) -> tuple[str, ...]:
    """The files that hold one model: a single file, or all parts of a split one in their order.

    Args:
        names: Of all files that are there.
        chosen: One of them, or None where there is one model only.
        where: For people.

    Raises:
        UsageError: There are several models and none is chosen, or what is chosen is not there.
        ModelError: A part of a split model is missing.
    """
    models: dict[str, list[str]] = {}
    for name in sorted(name for name in names if is_gguf(name)):
        split = _SHARD.fullmatch(name)
        models.setdefault(f"{split[1]}-of-{split[3]}" if split else name, []).append(name)
    found = [files for files in models.values() if chosen in files]
    if chosen is None:
        found = [files for name, files in models.items() if not name.rpartition("/")[2].startswith(_PROJECTOR)]
    if len(found) != 1:
        first = [files[0] for files in models.values()]
        shown = ", ".join(first[:_SHOWN]) + (f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else "")
        raise UsageError(
            f"there is no GGUF file {chosen!r}" if chosen else f"there are {len(found)} GGUF models",
            where=where,
            hint=f"name one of these with `file`: {shown}" if shown else "leave `file` out",
        )
    files = found[0]
    if split := _SHARD.fullmatch(files[0]):
        missing = int(split[3]) - len(files)
        if missing or any(int(name[-len("00000-of-00000.gguf") :][:5]) != n for n, name in enumerate(files, 1)):
            raise ModelError(
                f"it is split into {int(split[3])} files, and {len(files)} are there",
                where=where,
                hint="fetch the missing parts",
            )
    return tuple(files)


def local_gguf(directory: Path, names: Sequence[str]) -> GgufModel:
    """Read a model's metadata.

    Raises:
        ModelError: A file is damaged, the files do not belong together, or the architecture is not read.
    """
    headers = [read_gguf(directory / name) for name in names]

    def read(file: str, start: int, end: int) -> bytes:
        with (directory / file).open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    return _model(directory, names, headers, read)


def hub_gguf(listing: HubListing, names: Sequence[str]) -> GgufModel:
    """As ``local_gguf``, of a Hub repository; of its files only the headers are asked for.

    Raises:
        HubError: A header cannot be fetched.
    """
    from llmcompress.hub.download import fetch, first_bytes

    if listing.offline:
        return local_gguf(fetch(listing, names).path, names)
    sizes = {file.path: file.size_bytes for file in listing.files}
    headers = [gguf_of(Path(name), sizes[name], functools.partial(first_bytes, listing, name)) for name in names]
    return _model(Path(), names, headers, lambda file, start, end: first_bytes(listing, file, end)[start:])


def _model(
    directory: Path, names: Sequence[str], headers: Sequence[GgufFile], read: Callable[[str, int, int], bytes]
) -> GgufModel:
    tensors: dict[str, TensorInfo] = {}
    for number, (name, header) in enumerate(zip(names, headers, strict=True)):
        _require_part(name, header, number, len(names))
        for tensor, info in header.tensors.items():
            if tensor in tensors:
                raise _not_together(name, f"tensor {tensor!r} is in {tensors[tensor].file} too")
            tensors[tensor] = info._replace(file=name)
    metadata = headers[0].metadata
    vectors = {name: _vector(tensors[name], read) for name in ROPE_TENSORS if name in tensors}
    made = _side_files(Path(names[0]).stem, metadata, tensors, vectors)
    checkpoint = Checkpoint(directory, tuple(names), None, tensors)
    return GgufModel(checkpoint, made, read_json(made / "config.json"))


def _require_part(name: str, header: GgufFile, number: int, count: int) -> None:
    """Refuse a file that is another part of a split model than its name says."""
    stated = header.metadata.get("split.no", 0), header.metadata.get("split.count", 1) or 1
    if stated != (number, count):
        raise _not_together(name, f"it is part {stated[0]!r} of {stated[1]!r}, by its name part {number} of {count}")


def _not_together(name: str, problem: str) -> ModelError:
    return ModelError(problem, where=name, hint="fetch the files again; they do not belong together")


def _vector(tensor: TensorInfo, read: Callable[[str, int, int], bytes]) -> NDArray[Any] | None:
    """The numbers of a small tensor; None where it is none."""
    import numpy as np

    if tensor.dtype != "F32" or tensor.end - tensor.start > _MAX_VECTOR_BYTES:
        return None
    return np.frombuffer(read(tensor.file, tensor.start, tensor.end), "<f4").reshape(tensor.shape)


def _side_files(
    name: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], vectors: Mapping[str, Any]
) -> Path:
    """Write what the metadata describes into the cache, unless it is there, and return its directory."""
    config = _config(metadata, tensors, vectors)
    code = sorted(Path(__file__).parent.glob("*.py"))
    told = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    key = content_key(
        {"config": config, "tokenizer": told, "code": [hashlib.sha256(file.read_bytes()).hexdigest() for file in code]}
    )
    entry = cache_dir() / CACHE_KIND / key
    hold(entry)
    place = entry / short_name(name)
    if (place / "config.json").is_file():
        return place
    try:
        entry.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".", dir=entry))
    except OSError:
        # A cache that takes nothing: the files are for this process alone.
        return _write(Path(tempfile.mkdtemp(prefix="llmcompress-")) / short_name(name), config, metadata)
    _write(folder, config, metadata)
    with contextlib.suppress(OSError):
        folder.rename(place)
    # Another process was faster.
    shutil.rmtree(folder, ignore_errors=True)
    return place


def _config(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], vectors: Mapping[str, Any]
) -> dict[str, Any]:
    config = gguf_config(metadata, tensors, vectors.__getitem__)
    return {
        **config,
        **token_ids(metadata, config["vocab_size"]),
        "quantization_config": {
            "quant_method": "gguf",
            "architecture": architecture_of(metadata),
            "types": dict(sorted(Counter(tensor.dtype for tensor in tensors.values()).items())),
            "general": _general(metadata),
        },
    }


def _general(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself: its name, who made it of which model, and how it was quantized."""

    def is_short(value: object) -> bool:
        return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _MAX_TEXT)

    kept = {}
    for key, value in metadata.items():
        group, _, name = key.partition(".")
        short = is_short(value) or (isinstance(value, list) and len(value) < 100 and all(map(is_short, value)))
        if group == "general" and short and value == value:
            kept[name] = value
        elif group == "quantize" and short and value == value:
            kept[key] = value
    return kept


def _write(folder: Path, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    write_json(folder / "generation_config.json", ids)
    try:
        made = gguf_tokenizer(metadata, config["max_position_embeddings"])
        (folder / "tokenizer.json").write_text(made.tokenizer, encoding="utf-8", newline="\n")
        write_json(folder / "tokenizer_config.json", made.config)
    except ModelError as error:
        # A model without a tokenizer may be what is asked for.
        write_json(folder / TOKENIZER_PROBLEM, {"message": error.message, "hint": error.hint})
    write_json(folder / "config.json", config)
    return folder


def require_gguf_tokenizer(directory: Path) -> None:
    """Refuse where the metadata describes no tokenizer that is read.

    Raises:
        ModelError: Says what of it is not.
    """
    problem = directory / TOKENIZER_PROBLEM
    if problem.is_file():
        told = read_json(problem)
        raise ModelError(str(told["message"]), where=directory.name, hint=str(told["hint"]))
