"""The quantized weights of a source, and what stands in for them while its graph is traced."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.declaration import FORMATS, GGUF, ONNX, declared, is_repacked, quantization_method
from llmcompress.loaders.quantized.experts import stacked
from llmcompress.loaders.quantized.gguf.weights import gguf_weights
from llmcompress.loaders.quantized.onnx.weights import onnx_weights
from llmcompress.loaders.quantized.packed import PackedWeight
from llmcompress.loaders.quantized.slim_stacks import StackParameter, stack_parameters
from llmcompress.loaders.quantized.stored import MappedTensors, Read, StoredWeight, mapped_tensors, plain_tensors
from llmcompress.loaders.source import Source, side_files
from llmcompress.loaders.tensors import Checkpoint
from llmcompress.system.json_file import write_json

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


class SourceWeights(NamedTuple):
    """The weights of a checkpoint whose codes are repacked. By headers alone: no weight has been read."""

    method: str
    """``quant_method``: gptq, awq, compressed-tensors, fp8, gguf and so on."""
    settings: Mapping[str, Any]
    """What the configuration says of the quantization."""
    dtype: str
    """Torch's name of the precision of everything else."""
    weights: tuple[StoredWeight, ...]
    """Experts in stacks."""
    plain: Checkpoint
    """The headers that the model would have if it were not quantized."""
    mapped: MappedTensors
    zero_biases: frozenset[str]
    """Biases of quantized layers that are all zero: AutoGPTQ writes them for layers that have none."""
    floats: Callable[[], Mapping[str, NDArray[Any]]] | None = None
    """Gives the other tensors, where they are not in safetensors files as transformers has them."""

    def repacked(self, *, allow_nonfinite: bool = False) -> dict[str, PackedWeight]:
        """Every weight by its name, each on a core.

        Args:
            allow_nonfinite: Go on where scales in blocks or in bytes are NaN or infinite. Those that are floats in
                tensors of their own were searched before.

        Raises:
            ModelError: There are such, and they are not allowed.
        """

        def repack(weight: StoredWeight) -> PackedWeight:
            packed = weight.repack(self.mapped.read)
            for part in weight.parts:
                self.mapped.release(part)
            return packed

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            made = dict(zip((weight.name for weight in self.weights), pool.map(repack, self.weights), strict=True))
        problem = "; ".join(weight.nonfinite for weight in made.values() if weight.nonfinite)
        if problem and not allow_nonfinite:
            raise ModelError(
                problem,
                where=self.method,
                hint="the model is damaged; download the file again, or take another one; `allow_nonfinite` goes on",
            )
        if problem:
            _log.warning("%s; compressed as they are", problem)
        return made


def source_weights(source: Source, checkpoint: Checkpoint, read: Read | None = None) -> SourceWeights | None:
    """Find a checkpoint's quantized weights; None where it has none, or none that are repacked.

    Args:
        source: A checkpoint.
        checkpoint: Its headers.
        read: Gives the small tensors that say what headers do not; None: the files are here.

    Raises:
        ModelError: A setting or a tensor is not as the format says, or the model's class merges such weights.
    """
    if source.container is not None:
        made = (gguf_weights if source.is_gguf else onnx_weights)(source.config, checkpoint)
        method = GGUF if source.is_gguf else ONNX
        return SourceWeights(
            method=method,
            settings=declared(source.config),
            dtype="float32",
            weights=made.weights,
            plain=made.plain,
            mapped=made.mapped,
            zero_biases=frozenset(),
            floats=made.floats,
        )
    if not is_repacked(source.config):
        return None
    settings, mapped = declared(source.config), mapped_tensors(checkpoint)
    read = mapped.read if read is None else read
    method = quantization_method(settings)
    weights = tuple(FORMATS[method](settings, checkpoint.tensors, read))
    if not weights:
        raise ModelError(
            f"config.json says that it is quantized with {method}, and no tensor is",
            where=source.name,
            hint="remove quantization_config from config.json, or fetch the weights again",
        )
    _refuse_ambiguous(weights, checkpoint, source.name)
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
    return SourceWeights(method, settings, dtype, tuple(stacked(weights, read)), plain, mapped, zero)


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
    transposed: tuple[str, ...]
    """Those whose class has input channels before output channels."""
    stacks: Mapping[int, StackParameter]
    """The parameters that are stacks of experts, by the address of what is loaded for them."""


@contextlib.contextmanager
def stand_ins(source: Source, found: SourceWeights) -> Iterator[StandIns]:
    """Give a model's tensors for its trace. Memory that nobody writes to takes no room until then."""
    import numpy as np
    import torch
    from safetensors import safe_open

    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[_DTYPES[found.dtype]]
    tensors: dict[str, torch.Tensor] = {}

    numbers = itertools.count(0x3F800000 if dtype.itemsize == 4 else 0x3C00)

    def untouched(shape: tuple[int, ...]) -> torch.Tensor:
        zeros = np.zeros(shape, np.uint32 if dtype.itemsize == 4 else np.uint16)
        # The converter makes one of constants that are equal, and copies those with subnormal numbers.
        zeros.flat[0] = next(numbers)
        return torch.from_numpy(zeros.view(np.int32 if dtype.itemsize == 4 else np.int16)).view(dtype)

    with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder, contextlib.ExitStack() as files:
        if found.floats is not None:
            tensors |= {name: torch.from_numpy(values) for name, values in found.floats().items()}
        for file in found.plain.files if found.floats is None else ():
            opened = files.enter_context(safe_open(found.plain.path / file, "pt"))
            tensors |= {
                name: opened.get_tensor(name) for name, tensor in found.plain.tensors.items() if tensor.file == file
            }
        matrices = {weight.name: untouched(weight.shape) for weight in found.weights if len(weight.shape) == 2}
        transposed = tuple(weight.name for weight in found.weights if weight.name in matrices and weight.transposed)
        stacks = {parameter: untouched(parameter.shape) for parameter in stack_parameters(found.weights)}
        tensors |= matrices | {parameter.name: tensor for parameter, tensor in stacks.items()}
        tensors |= {name: matrices[name].T for name in transposed}
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
        yield StandIns(
            directory,
            tensors,
            {tensor.data_ptr(): name for name, tensor in matrices.items()},
            transposed,
            {tensor.data_ptr(): parameter for parameter, tensor in stacks.items()},
        )
