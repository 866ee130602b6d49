"""config.json -> every weight of the model, from its classes on the meta device: nothing is allocated or read."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.compression.forecast.records import Inventory, Kind, Weight
from llmcompress.compression.forecast.stored_bytes import ELEMENT_BYTES
from llmcompress.errors import ModelError, RecipeError
from llmcompress.loaders.adapter import Adapter
from llmcompress.loaders.exporter import VISION_TASK, auto_class, dtype_argument, task_of
from llmcompress.loaders.language_model import configuration
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.safetensors_file import read_header
from llmcompress.loaders.source import Source, identity
from llmcompress.spec.pruning import Pruning
from llmcompress.system.cache import content_key
from llmcompress.training.pruning.configuration import shrink

if TYPE_CHECKING:
    import torch

SHORT_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
HEADER_DTYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}


_IN_THE_DECODER = re.compile(r"(^|\.)(vision_embed_tokens|embed_tokens_extend)\.")
"""Where Phi-3-vision and Phi-4-multimodal keep what sees."""


class _Use(NamedTuple):
    """One place in the model that holds a parameter."""

    module: torch.nn.Module
    attribute: str
    name: str


_last: dict[str, Inventory] = {}
"""What was listed last: the recipes of one model ask for the same."""


def checkpoint_inventory(source: Source, pruning: Pruning | None = None) -> Inventory:
    """List what the exporter will make of a checkpoint's weights.

    Where a module is exactly ``Linear``, ``Embedding`` or ``Conv1D``, its 16-bit weight stays as it is stored; all
    other 16-bit parameters are cast to f32. Expert weights are three-dimensional; a fused gate and up projection is
    cut in two. An f32 ``Conv1D`` is transposed. Tied weights are one constant.

    Args:
        source: As resolved.
        pruning: What is taken away before.

    Raises:
        RecipeError: The model does not have what is to go.
        ModelError: transformers cannot build the model from this configuration.
    """
    stats = [(path.name, path.stat()) for path in sorted(source.path.iterdir()) if path.is_file()]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    wanted = {"source": identity(source), "files": files, "config": source.config, "code": source.trust_remote_code}
    taken = pruning.model_dump(mode="json") if pruning else None
    key = content_key({**wanted, "max_context": source.max_context, "pruning": taken})
    if key not in _last:
        found = _inventory(source, pruning)
        _last.clear()
        _last[key] = found
    return _last[key]


def _inventory(source: Source, pruning: Pruning | None) -> Inventory:
    # Of what is quantized the codes are most of the elements, and say nothing of the rest.
    stored = None if is_repacked(source.config) else _stored_dtype(source)
    model, dtype = _meta_model(source, stored, pruning)
    in_place = stored is None or stored == dtype
    head = model.get_output_embeddings()
    head_weight = None if head is None else getattr(head, "weight", None)
    shares = [_share(parameter, uses, dtype, in_place, head_weight) for parameter, uses in _uses(model)]
    if source.adapter is not None:
        shares = [_adapted(share) if share.weights and _is_target(source.adapter, share) else share for share in shares]
    weights = tuple(weight for share in shares for weight in share.weights)
    total = sum(parameter.numel() for parameter, _ in _uses(model))
    notes = []
    if stored is None and not any(source.path.glob("*.safetensors")) and _config_dtype(source) is None:
        notes.append(f"config.json does not say the weights' precision, and they are not fetched: {dtype} is assumed")
    if not in_place:
        notes.append(f"the files hold {stored}, config.json says {dtype}: all weights are converted in memory")
    if head is None and weights:
        notes.append("the model class names no output head: its precision is predicted as that of the other layers")
    weights, parts = _by_part(model, weights) if task_of(source.config) == VISION_TASK else (weights, {})
    return Inventory(
        num_parameters=total,
        weights=weights,
        leftover_bytes=sum(share.leftover for share in shares) + _table_bytes(model),
        checkpoint_bytes=total * ELEMENT_BYTES[dtype],
        mapped_bytes=sum(share.mapped for share in shares),
        merged_bytes=sum(share.merged for share in shares),
        cast_bytes=sum(share.cast for share in shares),
        rewritten_bytes=sum(share.rewritten for share in shares),
        num_modules=sum(1 for module in model.modules() if next(module.parameters(recurse=False), None) is not None),
        vocab_size=int(getattr(model.config.get_text_config(), "vocab_size", 0) or 0),
        notes=tuple(notes),
        parts=parts,
    )


def _by_part(model: Any, weights: tuple[Weight, ...]) -> tuple[tuple[Weight, ...], dict[str, tuple[Weight, ...]]]:
    """The weights of a vision-language model's language model, and those of its other parts.

    The table of embeddings is a part of its own, and once more the output head where they are tied.
    """
    table = model.get_input_embeddings().weight
    names = {use.name for parameter, uses in _uses(model) if parameter is table for use in uses}
    text = tuple(weight for weight in weights if weight.name in names)
    apart = any("language_model." in weight.name for weight in weights)
    language = tuple(
        weight
        for weight in weights
        if weight not in text
        and (weight.is_head or ("language_model." in weight.name if apart else not _IN_THE_DECODER.search(weight.name)))
    )
    if not any(weight.is_head for weight in language):
        language += tuple(weight._replace(kind="matmul", is_head=True) for weight in text)
    seen = tuple(weight for weight in weights if weight not in (*text, *language))
    return language, {"text_embeddings_model": text, "vision_embeddings_model": seen}


def _uses(model: Any) -> list[tuple[torch.nn.Parameter, list[_Use]]]:
    """Every parameter once, with all places that hold it."""
    found: dict[int, tuple[torch.nn.Parameter, list[_Use]]] = {}
    for module_name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{attribute}" if module_name else attribute
            found.setdefault(id(parameter), (parameter, []))[1].append(_Use(module, attribute, name))
    return list(found.values())


class _Share(NamedTuple):
    """What one parameter adds to the inventory; bytes by the names that they have there."""

    weights: tuple[Weight, ...] = ()
    leftover: int = 0
    mapped: int = 0
    merged: int = 0
    cast: int = 0
    rewritten: int = 0


def _share(
    parameter: torch.nn.Parameter, uses: list[_Use], dtype: str, in_place: bool, head: torch.nn.Parameter | None
) -> _Share:
    """Say what the exporter will make of a parameter; ``in_place``: the files hold it in the model's ``dtype``."""
    import torch
    from transformers.pytorch_utils import Conv1D

    num_elements, is_16bit, first = parameter.numel(), dtype != "f32", uses[0]
    as_stored = not is_16bit or all(type(use.module) in (torch.nn.Linear, torch.nn.Embedding, Conv1D) for use in uses)
    size, cast = num_elements * ELEMENT_BYTES[dtype], 0 if as_stored else num_elements * 4
    kind = _kind(parameter, uses)
    mapped = merged = rewritten = 0
    if parameter.ndim == 3 and kind == "matmul":
        merged = size
    elif in_place and as_stored:
        transposed = not is_16bit and parameter.ndim > 1 and isinstance(first.module, Conv1D)
        rewritten = size if transposed else 0
        # Single f32 vectors end up in folded constants.
        mapped = 0 if transposed or (not is_16bit and parameter.ndim == 1) else size
    if kind is None:
        return _Share((), size if as_stored else num_elements * 4, mapped, merged, cast, rewritten)
    parts = _parts(parameter, first, is_16bit=is_16bit)
    if len(parts) > 1:
        rewritten += sum(math.prod(part) for part in parts) * 4
    weights = tuple(
        Weight(
            name=first.name + (f".{index}" if len(parts) > 1 else ""),
            shape=shape,
            kind=kind,
            in_axis=_in_axis(first.module, shape, is_16bit=is_16bit),
            dtype=dtype if as_stored else "f32",
            is_head=parameter is head and kind == "matmul",
        )
        for index, shape in enumerate(parts)
    )
    return _Share(weights, 0, mapped, merged, cast, rewritten)


def _is_target(adapter: Adapter, share: _Share) -> bool:
    """Whether an adapter changes a weight; where its configuration names no modules, all linear ones count."""
    weight = share.weights[0]
    module = weight.name.removesuffix(".weight")
    if isinstance(adapter.targets, tuple):
        return any(module == target or module.endswith(f".{target}") for target in adapter.targets)
    return weight.kind == "matmul"


def _adapted(share: _Share) -> _Share:
    """What is merged is written in place: pages of the mapped files become memory of our own."""
    return share._replace(mapped=0, merged=share.merged + share.mapped)


def _meta_model(source: Source, stored: str | None, pruning: Pruning | None) -> tuple[Any, str]:
    import torch
    from accelerate import init_empty_weights

    dtype = _config_dtype(source) or stored or "f32"
    torch_dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}.get(dtype)
    if torch_dtype is None:
        raise ModelError(
            f"config.json gives the weights' precision as {dtype!r}; bfloat16, float16 and float32 are accepted",
            where=source.id or source.path.name,
            hint="take a checkpoint of the model in one of these",
        )
    try:
        config = configuration(source)
        if pruning is not None:
            shrink(config, pruning)
        with init_empty_weights(include_buffers=True):
            model = auto_class(source.config).from_config(
                config, **{dtype_argument(): torch_dtype}, trust_remote_code=source.trust_remote_code
            )
        model.tie_weights()
    except RecipeError:
        raise
    except Exception as error:  # the model's own classes may raise anything
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers cannot build the model that config.json describes: {first_line}",
            where=source.id or source.path.name,
            hint="take the config.json that was published with the model",
        ) from error
    return model, dtype


def _config_dtype(source: Source) -> str | None:
    value = source.config.get("dtype") or source.config.get("torch_dtype")
    if not isinstance(value, str) or value == "auto":
        return None
    return SHORT_DTYPES.get(value.removeprefix("torch."), value)


def _stored_dtype(source: Source) -> str | None:
    """Precision of most of the stored elements; None where no file is there yet (only headers are read)."""
    counts: dict[str, int] = {}
    for file in sorted(source.path.glob("*.safetensors")):
        for tensor in read_header(file).values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    most = max(counts, key=lambda dtype: counts[dtype], default=None)
    return None if most is None else HEADER_DTYPES.get(most, most)


def _kind(parameter: torch.nn.Parameter, places: list[_Use]) -> Kind | None:
    """How NNCF will see the constant; None: left alone. An embedding that is also the head counts as embedding."""
    import torch
    from torch.nn.modules.conv import _ConvNd

    if parameter.ndim < 2 or any("bias" in use.attribute for use in places):
        return None
    if any(isinstance(use.module, torch.nn.Embedding) for use in places):
        return "embedding"
    if isinstance(places[0].module, _ConvNd):
        return "convolution"
    multiplied = parameter.ndim == 3 or places[0].attribute == "weight" or isinstance(places[0].module, torch.nn.Linear)
    return "matmul" if multiplied else None


def _parts(parameter: torch.nn.Parameter, use: _Use, *, is_16bit: bool) -> list[tuple[int, ...]]:
    from transformers.pytorch_utils import Conv1D

    shape = tuple(parameter.shape)
    if isinstance(use.module, Conv1D) and not is_16bit:
        return [shape[::-1]]
    # A transposed one holds gate and up in turns, which are cut apart after the product.
    if parameter.ndim != 3 or "gate_up" not in use.attribute or getattr(use.module, "is_transposed", False):
        return [shape]
    half = (shape[0], shape[1] // 2, shape[2])
    return [half, half]


def _in_axis(module: torch.nn.Module, shape: tuple[int, ...], *, is_16bit: bool) -> int:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D) and is_16bit:
        return 0
    if len(shape) == 3 and getattr(module, "is_transposed", False):
        return 1
    return len(shape) - 1


def _table_bytes(model: Any) -> int:
    """Buffers that the graph may hold: rotary tables, and masks where a class writes its attention out.

    Equal ones are stored once; GPT-Neo's masks differ between its global and local layers.
    """
    distinct: dict[Any, Any] = {(tuple(b.shape), b.dtype): b for b in model.buffers() if b.numel() > 1}
    buffers = list(distinct.values())
    tables: int = sum(b.numel() * 4 for b in buffers if b.is_floating_point())
    if getattr(model, "_supports_sdpa", True):
        return tables
    num_masks: int = max(1, len(set(getattr(model.config, "attention_layers", None) or ())))
    masks: int = sum(b.numel() * b.element_size() for b in buffers if not b.is_floating_point())
    return tables + num_masks * masks
