"""The quantized weights of a source, and what stands in for them while its graph is traced."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.declaration import FORMATS, GGUF, declared, is_repacked
from llmcompress.loaders.quantized.gguf import gguf_weights
from llmcompress.loaders.quantized.packed import ORIGINAL, PackedWeight
from llmcompress.loaders.quantized.stored import Read, StoredWeight, plain_tensors, tensor_reader
from llmcompress.loaders.source import Source, side_files
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.system.json_file import write_json

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


class SourceWeights(NamedTuple):
    """The weights of a checkpoint whose codes are repacked. By headers alone: no weight has been read."""

    method: str
    """``quant_method``: gptq, awq, compressed-tensors, fp8 or gguf."""
    settings: Mapping[str, Any]
    """What the configuration says of the quantization."""
    dtype: str
    """Torch's name of the precision of everything else."""
    weights: tuple[StoredWeight, ...]
    plain: Checkpoint
    """The headers that the model would have if it were not quantized."""
    read: Read
    zero_biases: frozenset[str]
    """Biases of quantized layers that are all zero: AutoGPTQ writes them for layers that have none."""
    floats: Callable[[], Mapping[str, NDArray[Any]]] | None = None
    """Gives the other tensors, where they are not in safetensors files as transformers has them."""

    def repacked(self) -> dict[str, PackedWeight]:
        """Every weight by its name, each on a core."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            made = pool.map(lambda weight: weight.repack(self.read), self.weights)
            return dict(zip((weight.name for weight in self.weights), made, strict=True))


def source_weights(source: Source, checkpoint: Checkpoint) -> SourceWeights | None:
    """Find a checkpoint's quantized weights; None where it has none, or none that are repacked.

    Raises:
        ModelError: A setting or a tensor is not as the format says, or the model's class merges such weights.
    """
    if source.gguf is not None:
        made = gguf_weights(source.config, checkpoint)
        settings = declared(source.config)
        return SourceWeights(
            GGUF, settings, "float32", made.weights, made.plain, made.read, frozenset(), floats=made.floats
        )
    if not is_repacked(source.config):
        return None
    settings, read = declared(source.config), tensor_reader(checkpoint)
    method = settings["quant_method"]
    weights = tuple(FORMATS[method](settings, checkpoint.tensors, read))
    if not weights:
        raise ModelError(
            f"config.json says that it is quantized with {method}, and no tensor is",
            where=source.name,
            hint="remove quantization_config from config.json, or fetch the weights again",
        )
    _refuse_ambiguous(weights, checkpoint, source.name)
    if merged := [weight.name for weight in weights if ".experts." in weight.name]:
        raise ModelError(
            f"quantized experts ({merged[0]} and {len(merged) - 1:,} more) are not read",
            where=source.name,
            hint=ORIGINAL,
        )
    stated = source.config.get("dtype") or source.config.get("torch_dtype")
    dtype = stated.removeprefix("torch.") if isinstance(stated, str) else "float16"
    if dtype not in _DTYPES:
        raise ModelError(
            f"config.json gives the weights' precision as {dtype!r}; bfloat16, float16 and float32 are accepted",
            where=source.name,
            hint="take the config.json that was published with the model",
        )
    plain = plain_tensors(checkpoint, weights, _DTYPES[dtype])
    biases = (f"{weight.name.removesuffix('.weight')}.bias" for weight in weights)
    zero = frozenset(name for name in biases if name in plain.tensors and not read(name).any())
    return SourceWeights(method, settings, dtype, weights, plain, read, zero)


def _refuse_ambiguous(weights: tuple[StoredWeight, ...], checkpoint: Checkpoint, where: str) -> None:
    """Refuse a weight that is there more than once: nothing says which one the model is made of."""
    seen: set[str] = set()
    for weight in weights:
        if weight.name in seen or (weight.name in checkpoint.tensors and weight.name not in weight.parts):
            raise ModelError(
                f"the weight {weight.name} is stored in more than one way",
                where=where,
                hint="fetch the weights again; their files do not belong together",
            )
        seen.add(weight.name)


class StandIns(NamedTuple):
    """A model to trace: its tensors, with untouched memory in place of the quantized weights."""

    directory: Path
    """Configuration and tokenizer, without a word of quantization."""
    tensors: Mapping[str, torch.Tensor]
    names: Mapping[int, str]
    """The name of each quantized weight by the address of what stands in for it."""


@contextlib.contextmanager
def stand_ins(source: Source, found: SourceWeights) -> Iterator[StandIns]:
    """Give a model's tensors for its trace. Memory that nobody writes to takes no room until then."""
    import numpy as np
    import torch
    from safetensors import safe_open

    quantized = {weight.name for weight in found.weights}
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[_DTYPES[found.dtype]]
    tensors: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder, contextlib.ExitStack() as files:
        if found.floats is not None:
            tensors |= {name: torch.from_numpy(values) for name, values in found.floats().items()}
        for file in found.plain.files if found.floats is None else ():
            opened = files.enter_context(safe_open(found.plain.path / file, "pt"))
            tensors |= {
                name: opened.get_tensor(name)
                for name, tensor in found.plain.tensors.items()
                if tensor.file == file and name not in quantized
            }
        for number, weight in enumerate(found.weights):
            zeros = np.zeros(weight.shape, np.float32 if dtype.itemsize == 4 else np.int16)
            if dtype.itemsize == 4:
                # Layers that have the same input and equal f32 weights are taken for one.
                zeros[0, 0] = number + 1
            tensors[weight.name] = torch.from_numpy(zeros).view(dtype)
        directory = Path(folder)
        config = {
            key: value
            for key, value in source.config.items()
            if key not in ("quantization_config", "compression_config")
        }
        write_json(directory / "config.json", config | {"dtype": found.dtype})
        for name in side_files(source):
            if name != "config.json":
                (directory / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source.path / name, directory / name)
        yield StandIns(directory, tensors, {tensors[name].data_ptr(): name for name in quantized})
