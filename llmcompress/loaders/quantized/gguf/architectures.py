"""What GGUF's metadata and tensor names say, in the words of transformers: a configuration, and where tensors go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.gguf.facts import BLOCK, Facts
from llmcompress.loaders.quantized.gguf.kinds import KINDS, Kind, RowOrder, kind_of
from llmcompress.loaders.quantized.gguf.rope import ROPE_TENSORS, ReadVector, rope_scaling
from llmcompress.loaders.quantized.packed import ORIGINAL
from llmcompress.loaders.safetensors_file import TensorInfo


class Mapped(NamedTuple):
    """Where a tensor goes."""

    name: str
    """Of the tensor in transformers."""
    order: RowOrder | None = None
    """How the file orders its rows; None: as transformers does."""
    less: float = 0.0
    """What is subtracted: norms of Gemma are stored with the 1 that its class adds."""
    is_row: bool = False
    """Whether a vector is a matrix of one row in the class."""
    is_stack: bool = False
    """Whether it holds all experts of a layer, of one half of what they multiply by."""
    transposed: bool = False
    """Whether the class has input channels before output channels."""


def architecture_of(metadata: Mapping[str, Any]) -> str:
    """The architecture that a file names.

    Raises:
        ModelError: None that is read.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in KINDS:
        raise ModelError(
            f"the architecture {name!r} of this GGUF file is not read; accepted: {', '.join(KINDS)}",
            where="metadata",
            hint=ORIGINAL,
        )
    return name


def gguf_config(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], read: ReadVector) -> dict[str, Any]:
    """The ``config.json`` of transformers that a file's metadata describes, without the tokens' ids.

    Args:
        metadata: Of the file.
        tensors: Of all files of the model, by GGUF's names.
        read: Gives the tensors of rotary factors.

    Raises:
        ModelError: An architecture that is not read, or metadata that is missing, contradicts the tensors, or says
            what transformers has no setting for.
    """
    architecture = architecture_of(metadata)
    facts = Facts(architecture, metadata, tensors)
    kind = kind_of(architecture, tensors, has_window=bool(facts.get("attention.sliding_window")))
    _refuse_experts(facts, kind)
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError("there is no matrix token_embd.weight", where="tensors", hint="download the file again")
    config: dict[str, Any] = {
        "architectures": [kind.class_name],
        "model_type": kind.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "dtype": "float32",
        **_sizes(facts),
        **kind.settings(facts),
    }
    _refuse_other_sizes(facts, kind, config, embedding)
    if kind.rotates:
        config["rope_theta"] = facts.number("rope.freq_base", 10_000.0)
        if scaling := rope_scaling(facts, config, read):
            config["rope_scaling"] = scaling
    return config | {own: config[key] for key, own in kind.own_keys.items()}


def _refuse_experts(facts: Facts, kind: Kind) -> None:
    if facts.get("expert_count") and not kind.has_experts:
        accepted = [name for name, each in KINDS.items() if each.has_experts]
        raise ModelError(
            f"the experts of a GGUF file are not read in the architecture {facts.architecture}; accepted: "
            f"{', '.join(accepted)}, and Mixtral's in stacks",
            where="metadata",
            hint=ORIGINAL,
        )


def _sizes(facts: Facts) -> dict[str, Any]:
    """What every class has."""
    return {
        "hidden_size": facts.count("embedding_length"),
        "num_hidden_layers": facts.count("block_count"),
        "intermediate_size": facts.count("feed_forward_length"),
        "num_attention_heads": facts.count("attention.head_count"),
        "num_key_value_heads": facts.key_value_heads,
        "max_position_embeddings": facts.count("context_length"),
    }


def _refuse_other_sizes(facts: Facts, kind: Kind, config: Mapping[str, Any], embedding: TensorInfo) -> None:
    """Hold what the metadata says against the tensors, so that no size is made up."""
    query, fused = (facts.tensors.get(f"blk.0.{name}.weight") for name in ("attn_q", "attn_qkv"))
    heads, head_dim = config["num_attention_heads"], facts.head_dim
    fused_rows = (heads + 2 * config["num_key_value_heads"]) * head_dim
    for key, stated, there in (
        ("embedding_length", config["hidden_size"], embedding.shape[1]),
        ("block_count", config["num_hidden_layers"], facts.num_layers),
        ("attention.value_length", facts.count("attention.value_length", head_dim), head_dim),
        ("attention.head_count", heads * head_dim, query.shape[0] if query else heads * head_dim),
        ("attention.head_count_kv", fused_rows, fused.shape[0] if fused else fused_rows),
        ("rope.dimension_count", facts.rotated, facts.rotated if kind.rotates_part else head_dim),
    ):
        if stated != there:
            raise ModelError(
                f"{facts.architecture}.{key} gives {stated}, and the tensors {there}",
                where="metadata",
                hint="download the file again",
            )
    if facts.rotated > head_dim or head_dim > config["hidden_size"] * 16:
        raise facts.wrong("rope.dimension_count", f"at most {head_dim}")


def named_tensors(architecture: str, config: Mapping[str, Any], names: Mapping[str, TensorInfo]) -> dict[str, Mapped]:
    """Where each tensor goes, by GGUF's name; rotary factors, which the configuration holds, go nowhere.

    Raises:
        ModelError: A tensor that the architecture does not have.
    """
    kind = kind_of(architecture, names)
    orders = kind.row_orders(config["num_attention_heads"], config["num_key_value_heads"])
    found: dict[str, Mapped] = {}
    for name, tensor in names.items():
        if name in ROPE_TENSORS:
            continue
        stem, _, part = name.rpartition(".")
        block = BLOCK.fullmatch(name)
        to = kind.names.get(block[2]) if block else kind.outside.get(stem) if part in ("weight", "bias") else None
        if to is None:
            raise ModelError(
                f"the tensor {name!r} is none of the architecture {architecture}", where=tensor.file, hint=ORIGINAL
            )
        order = orders.get(block[2]) if block else None
        if order is not None and tensor.shape[0] % order.parts:
            raise ModelError(
                f"{tensor.shape[0]} rows of the tensor {name!r} are no {order}",
                where=tensor.file,
                hint="download the file again",
            )
        is_stack = block is not None and block[2].endswith("_exps")
        prefix = f"{kind.layers}.{int(block[1])}." if block else ""
        found[name] = Mapped(
            f"{prefix}{to}" + ("" if is_stack else f".{part}"),
            order,
            less=1.0 if kind.norms_plus_one and stem.endswith("norm") else 0.0,
            is_row=to.endswith("shared_expert_gate") and len(tensor.shape) == 1,
            is_stack=is_stack,
            transposed=kind.transposed and block is not None and len(tensor.shape) == 2,
        )
    return found
