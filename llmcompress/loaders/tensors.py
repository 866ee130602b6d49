"""The weights of a checkpoint directory: which files hold them, and where each tensor lies."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders.safetensors_file import TensorInfo, read_header
from llmcompress.system.json_file import read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "openvino_")
_SHOWN = 5
_WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")
_REMEDIES = (
    ("*-of-*.safetensors", f"the index of these shards is missing: fetch {INDEX} as well"),
    ("adapter_model.*", "it is an adapter: merge it into its base model with `merge_adapter`"),
    ("consolidated*", "it is in its trainer's own layout: give the model as transformers saves it"),
    ("*.safetensors", f"transformers reads {SINGLE} alone: rename the file, if it holds the whole model"),
)
"""What to do where these files are there instead of weights, the first that matches."""


class Checkpoint(NamedTuple):
    """Validated headers of all weight files; no weight has been read."""

    path: Path
    files: tuple[str, ...]
    """The safetensors files, sorted by name."""
    index_file: str | None
    """Name of the shard index, or None for a single file."""
    tensors: Mapping[str, TensorInfo]


class ReadHeaders(NamedTuple):
    """How the headers of files are read that are not in the directory."""

    names: Collection[str]
    """Of the checkpoint's files."""
    read: Callable[[Path, Sequence[str]], dict[str, dict[str, TensorInfo]]]
    """Given the directory and names of files: the tensors of each."""


def read_checkpoint(path: Path, headers: ReadHeaders | None = None) -> Checkpoint:
    """Read and check the headers of a checkpoint directory.

    With a single file and a shard index both present the single file counts, as in transformers.

    Args:
        path: The directory.
        headers: Read the headers of a checkpoint that is not here yet; its index is.

    Raises:
        ModelError: no weights, a damaged file, or an index that its files do not answer; names file and tensor.
        SecurityError: only pickle files, or an index that names anything but safetensors files next to it.
    """
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    main = choose_weights(names if headers is None else headers.names, where=str(path))
    read = _read_here if headers is None else headers.read
    if main == SINGLE:
        return Checkpoint(path, (SINGLE,), None, read(path, (SINGLE,))[SINGLE])
    stated = read_index(path / INDEX)
    files = tuple(sorted(set(stated.values())))
    found: dict[str, TensorInfo] = {}
    for file, header in read(path, files).items():
        for name, tensor in header.items():
            if name in found:
                raise ModelError(
                    f"tensor {name!r} is in {found[name].file} and in {file}",
                    where=str(path),
                    hint="download the checkpoint again; its files do not belong together",
                )
            found[name] = tensor
    _compare(path, stated, found)
    return Checkpoint(path, files, INDEX, found)


def _read_here(path: Path, files: Sequence[str]) -> dict[str, dict[str, TensorInfo]]:
    return {file: read_header(path / file) for file in files}


def refuse_empty(checkpoint: Checkpoint) -> None:
    """Refuse weights without elements: under ZeRO-3 ``state_dict`` holds none, as every process has a part of them.

    Raises:
        ModelError: names the tensors and how they are gathered.
    """
    tensors = checkpoint.tensors
    empty = sorted(name for name, tensor in tensors.items() if 0 in tensor.shape and tensor.dtype in _WEIGHT_DTYPES)
    if empty:
        raise ModelError(
            f"{len(empty)} of {len(tensors)} tensors are empty, as in a save under DeepSpeed's ZeRO-3: {_some(empty)}",
            where=str(checkpoint.path),
            hint="gather them: run zero_to_fp32.py, which lies beside the training checkpoint, or save by "
            "save_16bit_model with stage3_gather_16bit_weights_on_model_save",
        )


def choose_weights(names: Collection[str], *, where: str) -> str:
    """Say which of a checkpoint's files is to be read first: the single file or the shard index.

    Raises:
        SecurityError: the weights are pickle files only, which can run code when opened.
        ModelError: there are no weights.
    """
    for name in (SINGLE, INDEX):
        if name in names:
            return name
    if pickles := sorted(name for name in names if is_pickled_weight(name)):
        raise SecurityError(
            f"the weights are pickle files ({_some(pickles)}), which can run code when opened; safetensors is needed",
            where=where,
            hint="look for a safetensors revision on the Hub, or convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(DIR) writes safetensors",
        )
    others = sorted(name for name in names if name.endswith((".safetensors", ".gguf", ".msgpack", ".h5", ".onnx")))
    remedies = (remedy for pattern, remedy in _REMEDIES if fnmatch.filter(others, pattern))
    raise ModelError(
        f"there is neither {SINGLE} nor {INDEX}" + (f"; weights of another layout: {_some(others)}" if others else ""),
        where=where,
        hint=next(remedies, "give a checkpoint directory as transformers saves it"),
    )


def read_index(path: Path) -> dict[str, str]:
    """Read a shard index: the file of each tensor.

    Raises:
        ModelError: not a shard index.
        SecurityError: it names something else than a safetensors file in its own directory.
    """
    content = read_json(path)
    stated = content.get("weight_map")
    if not isinstance(stated, dict) or not stated or not all(isinstance(file, str) for file in stated.values()):
        raise ModelError(
            "weight_map is not an object that names a file for each tensor",
            where=str(path),
            hint="download the file again",
        )
    for file in sorted(set(stated.values())):
        if not file.endswith(".safetensors") or any(part in file for part in ("/", "\\", ":", "\0")):
            raise SecurityError(
                f"it names {file!r}; only safetensors files in the same directory are accepted",
                where=str(path),
                hint="do not use this checkpoint; that file was not opened",
            )
    return stated


def is_pickled_weight(name: str) -> bool:
    """Whether a file's name is that of weights in a format that can run code."""
    return name.endswith(_PICKLE_SUFFIXES) and not name.rpartition("/")[2].startswith(_NO_WEIGHTS)


def _compare(path: Path, stated: Mapping[str, str], found: Mapping[str, TensorInfo]) -> None:
    moved = sorted(name for name, file in stated.items() if name in found and found[name].file != file)
    missing = sorted(name for name in stated if name not in found)
    extra = sorted(name for name in found if name not in stated)
    for names, fault in (
        (missing, "named in the index and in no file"),
        (moved, "in another file than the index says"),
        (extra, "in a file and not in the index"),
    ):
        if names:
            raise ModelError(
                f"{len(names)} tensors are {fault}: {_some(names)}",
                where=str(path / INDEX),
                hint="download the checkpoint again; its files do not belong together",
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
