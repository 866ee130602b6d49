"""The tensors that a model's class has, held against those of its files; by headers alone, or as transformers told."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Any, NamedTuple

from llmcompress.errors import ModelError
from llmcompress.loaders.architecture import EXPORT_EMBEDDINGS
from llmcompress.loaders.exporter import auto_class
from llmcompress.loaders.language_model import whole_config
from llmcompress.loaders.source import Source
from llmcompress.loaders.tensors import Checkpoint

MAX_NAMES = 8

_BARE = "no causal language model but an embedding model or another one without an output head"
_ALONE = "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) writes the language model alone"


class _Head(NamedTuple):
    """A head that other libraries put on a language model."""

    prefixes: tuple[str, ...]
    kind: str


_HEADS = (
    _Head(("v_head.", "value_head."), "a language model with a value head, as TRL saves it for reinforcement learning"),
    _Head(("reward_head.", "rm_head.", "regression_layer."), "a reward model"),
    _Head(("score.", "classifier.", "classification_head."), "a classifier, reward or rerank model"),
    _Head(("medusa_head.",), "a language model with heads of Medusa"),
)


def require_same_tensors(source: Source, checkpoint: Checkpoint, unneeded: Set[str] = frozenset()) -> None:
    """Load the headers' names and shapes into the model's class on the meta device; no weight is read.

    What transformers itself stumbles over is left to the load with the weights.

    Raises:
        ModelError: a tensor is missing, unexpected or of another shape; a model of another kind is named as that.
    """
    import torch
    from transformers import AutoConfig

    where = source.name
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
    tensors = {
        name: torch.empty(tensor.shape, dtype=dtypes.get(tensor.dtype, torch.uint8), device="meta")
        for name, tensor in checkpoint.tensors.items()
    }
    _refuse_bare(list(tensors), where)
    try:
        config = AutoConfig.from_pretrained(source.path, local_files_only=True)
        # The tensors are those of the model without it.
        vars(config).pop("quantization_config", None)
        model_class = auto_class(whole_config(source))._model_mapping[type(config)]
        _, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception:  # noqa: BLE001 - the model's own classes may raise anything
        return
    if info["mismatched_keys"]:
        raise ModelError(
            f"transformers could not load the weights: {len(info['mismatched_keys'])} are "
            f"of another shape ({_names(info['mismatched_keys'])})",
            where=where,
            hint="the tensors' names and shapes must be those that config.json describes",
        )
    refuse_other_tensors(info, model_class.__name__, where, unneeded)


def refuse_other_tensors(
    info: Mapping[str, Any], class_name: str, where: str, unneeded: Set[str] = frozenset()
) -> None:
    """Refuse what transformers would fill or drop, by the loading info that it returns.

    Args:
        info: What ``from_pretrained`` returns with the model.
        class_name: The model's class, for people.
        where: The source, for people.
        unneeded: Names of tensors that may be dropped.

    Raises:
        ModelError: names the tensors, and the kind of model whose they are.
    """
    missing, unexpected = info["missing_keys"], set(info["unexpected_keys"]) - unneeded
    problems = [
        f"{len(keys)} {adjective} ({_names(keys)})"
        for adjective, keys in (
            ("missing, which transformers would fill with random values", missing),
            ("unexpected, which it would drop", unexpected),
            ("of another shape", info["mismatched_keys"]),
        )
        if keys
    ]
    if not problems:
        return
    kind, hint = _kind(missing, unexpected)
    raise ModelError(
        f"{f'it is {kind}: ' if kind else ''}the tensors are not those of {class_name}: {'; '.join(problems)}",
        where=where,
        hint=hint or "fetch the checkpoint again, or correct config.json",
    )


def _kind(missing: Collection[str], unexpected: Collection[str]) -> tuple[str, str]:
    """What kind of model has such tensors, and what to do with it; empty where they do not say."""
    for head in _HEADS:
        if any(part.startswith(head.prefixes) for name in unexpected for part in _ends(name)):
            return head.kind, "take the language model that it was made from" if missing else _ALONE
    if missing and not unexpected and all(_is_head(name) for name in missing):
        return _BARE, EXPORT_EMBEDDINGS
    return "", ""


def _ends(name: str) -> tuple[str, str]:
    """A tensor's name, and the same without its first part."""
    return name, name.partition(".")[2]


def _is_head(name: str) -> bool:
    return name.split(".")[0] in ("lm_head", "embed_out", "output")


def _refuse_bare(names: Collection[str], where: str) -> None:
    """Refuse the tensors of a bare model: where the head is tied to the embedding, transformers takes them unasked.

    Causal models of the classes that keep their layers in ``model`` are published under that name, without exception.
    """
    if "embed_tokens.weight" in names and not any(_is_head(name) for name in names):
        raise ModelError(
            f"it is {_BARE}: its tensors have the names of the bare model (embed_tokens.weight)",
            where=where,
            hint=f"{EXPORT_EMBEDDINGS}; of a causal language model with a tied head, {_ALONE}",
        )


def _names(keys: Collection[object]) -> str:
    shown = sorted(key if isinstance(key, str) else str(key[0]) for key in keys if isinstance(key, str | tuple))
    return ", ".join(shown[:MAX_NAMES]) + (", ..." if len(keys) > MAX_NAMES else "")
