"""What a model is and whether it can be converted, answered from its ``config.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders.exporter import (
    TASK,
    installed_transformers,
    not_convertible,
    remedy,
    task_of,
)
from llmcompress.loaders.quantized.declaration import Quantization, check_quantization
from llmcompress.loaders.remote_code import ALLOW, refuse_hidden_code

VISION_TYPES = frozenset(
    {
        "gemma3",
        "gemma4",
        "idefics3",
        "internvl_chat",
        "llava",
        "llava_next",
        "mistral3",
        "phi3_v",
        "phi4mm",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_vl",
        "smolvlm",
    }
)
"""Vision-language models that were converted and run."""
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "float": "fp32"}
_CAUSAL_SUFFIXES = ("forcausallm", "lmheadmodel")
# Keys under which a configuration carries the part that sees or hears.
_OTHER_SENSES = ("vision_config", "audio_config", "mm_vision_tower", "img_processor", "audio_processor", "vit_config")
_KINDS = (
    ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "a vision-language model"),
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "a speech model"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "an encoder-decoder (sequence-to-sequence) model"),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "an encoder (masked language model)"),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "a classifier"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "a token classifier"),
    ("MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES", "an extractive question-answering model"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "an image classifier"),
    ("MODEL_MAPPING_NAMES", "a bare model without an output head"),
)


# The first of these say what a whole model type is, the others what a class makes of it.
_MEANT_BY_TYPE = 4


EMBEDDING = "an embedding model"
EXPORT_EMBEDDINGS = "optimum-cli export openvino --task feature-extraction exports an embedding model"
# What a class that is not named as causal says of itself.
_CLASS_WORDS = (
    (("reward",), "a reward model"),
    (("valuehead",), "a language model with a value head, as TRL saves it for reinforcement learning"),
    (("rerank",), "a rerank model"),
    (("embed", "bidirectionalmodel", "bimodel"), EMBEDDING),
)


class Architecture(NamedTuple):
    """A causal language model, or one with pictures, that the exporter can convert."""

    model_type: str
    class_name: str
    torch_dtype: str | None
    """What the configuration says of the weights: bf16, fp16, fp32, another name, or None where it says nothing."""
    quantization: Quantization
    """'keep': converted as it is."""
    quantization_note: str
    """One sentence on what happens to an already quantized checkpoint; empty for 'none'."""
    remote_code: bool
    """True when loading runs code from the model's repository."""


def check_architecture(
    config: Mapping[str, Any],
    *,
    trust_remote_code: bool = False,
    where: str = "config.json",
    transformers: str | None = None,
) -> Architecture:
    """Say what the model is, or why it cannot be converted. Reads no weight and runs nothing of the model's.

    Args:
        config: The content of ``config.json``.
        trust_remote_code: Code of the model's repository may run.
        where: The file, for people.
        transformers: The version that converts the model, where that is another than the installed one.

    Raises:
        ModelError: no causal language model, unknown to transformers or to the exporter at the installed versions,
            or quantized in a way that cannot be converted.
        SecurityError: it needs code from its repository and ``trust_remote_code`` is off, or it carries a field
            that would make the exporter run such code whatever the flag says.
    """
    model_type = _stated_type(config, where)
    refuse_hidden_code(config, trust_remote_code, where)
    names = _stated_classes(config, where)

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    task = task_of(config)
    kind = _other_kind(config, model_type, names[0] if names else "") if task == TASK else _untried(model_type)
    native = model_type in CONFIG_MAPPING_NAMES
    auto_map = bool(config.get("auto_map"))
    if not native and auto_map and not trust_remote_code:
        reason = (
            f"it is no causal language model but {kind}" if kind else not_convertible(model_type, transformers, task)
        )
        raise SecurityError(
            f"model type {model_type!r} is not part of transformers: loading it runs Python code from its repository",
            where=where,
            hint=f"`trust_remote_code` would not help: {reason}" if reason else ALLOW,
        )
    _refuse_kind(kind, names[0] if names else model_type, where)
    if reason := not_convertible(model_type, transformers, task):
        raise ModelError(reason, where=where, hint=_hint(config, model_type, task))
    _refuse_clipping(config, model_type, where)
    if not native and not auto_map and transformers is None:
        raise ModelError(
            f"transformers {installed_transformers()} does not know the model type {model_type!r}, "
            "and the model brings no code for it",
            where=where,
            hint=_newer_hint(config) or "install the transformers version that the model's page names",
        )
    quantization, note = check_quantization(config, where)
    return Architecture(
        model_type=model_type,
        class_name=names[0] if names else _causal_class(model_type) or model_type,
        torch_dtype=_dtype(config),
        quantization=quantization,
        quantization_note=note,
        remote_code=trust_remote_code and auto_map,
    )


def _refuse_clipping(config: Mapping[str, Any], model_type: str, where: str) -> None:
    """Some MPT models clip queries, keys and values; the exporter's own attention for them does not."""
    attention = config.get("attn_config")
    clip = attention.get("clip_qkv") if model_type == "mpt" and isinstance(attention, Mapping) else None
    if clip:
        raise ModelError(
            f"attn_config.clip_qkv is {clip}, and the exporter's graph leaves out the clipping, which changes logits",
            where=where,
            hint="take an MPT checkpoint whose clip_qkv is null",
        )


def _stated_type(config: Mapping[str, Any], where: str) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(
            f"model_type is {model_type!r}; the name of an architecture such as 'llama' is needed",
            where=where,
            hint="take the config.json that was published with the model",
        )
    return model_type


def _stated_classes(config: Mapping[str, Any], where: str) -> list[str]:
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"architectures is {names!r}; a list of class names is needed",
            where=where,
            hint="take the config.json that was published with the model",
        )
    return names


def _untried(model_type: str) -> str:
    """What a vision-language model is that this has not been tried with; empty where it has."""
    return "" if model_type in VISION_TYPES else f"a vision-language model of a type that was not tried ({model_type})"


def _refuse_kind(kind: str, name: str, where: str) -> None:
    if kind:
        raise ModelError(
            f"{name} is no causal language model but {kind}",
            where=where,
            hint="llmcompress takes decoder-only text models (architectures ending in ForCausalLM), and of those with "
            f"pictures {', '.join(sorted(VISION_TYPES))}" + (f"; {EXPORT_EMBEDDINGS}" if kind == EMBEDDING else ""),
        )


def _other_kind(config: Mapping[str, Any], model_type: str, name: str) -> str:
    """What the model is instead of a causal language model; empty where it may be one."""
    lowered = name.lower()
    if "eagle" in lowered or "dflash" in lowered:
        return "a draft model for speculative decoding, which cannot generate alone"
    if any(config.get(key) is not None for key in _OTHER_SENSES):
        return _kind(name, model_type) or "a multimodal model"
    if name in _class_names(_table(_KINDS[0][0])):
        # transformers lists some of these among the causal models as well.
        return _KINDS[0][1]
    if config.get("is_encoder_decoder") is True:
        return "an encoder-decoder (sequence-to-sequence) model"
    if name and not lowered.endswith(_CAUSAL_SUFFIXES) and lowered != (_causal_class(model_type) or "").lower():
        named = next((kind for words, kind in _CLASS_WORDS if any(word in lowered for word in words)), "")
        return named or _scores(config, lowered) or _kind(name, model_type) or "something else"
    if not name and _causal_class(model_type) is None:
        return _kind(name, model_type)
    if config.get("is_causal") is False or config.get("use_bidirectional_attention") is True:
        # As in embedding models that keep the name of the class that they were made from.
        return EMBEDDING
    return ""


def _scores(config: Mapping[str, Any], lowered: str) -> str:
    """What a classifier is that gives one score; empty for other ones."""
    if not lowered.endswith("forsequenceclassification"):
        return ""
    if "sentence_transformers" in config:
        return "a rerank model of sentence-transformers (a classifier)"
    labels = config.get("id2label")
    num_labels = len(labels) if isinstance(labels, Mapping) else config.get("num_labels")
    return "a classifier with one score: a reward or rerank model" if num_labels == 1 else ""


def _kind(class_name: str, model_type: str) -> str:
    """What a class is, or else a model type; a type with a causal class is only what it is besides."""
    tables = [(_table(name), kind) for name, kind in _KINDS]
    by_name = (kind for table, kind in tables if class_name in _class_names(table))
    besides = tables[:_MEANT_BY_TYPE] if _causal_class(model_type) else tables
    by_type = (kind for table, kind in besides if model_type in table)
    return next(by_name, None) or next(by_type, "")


def _table(name: str) -> Mapping[str, str | tuple[str, ...]]:
    from transformers.models.auto import modeling_auto

    table: Mapping[str, str | tuple[str, ...]] = getattr(modeling_auto, name, {})
    return table


def _class_names(table: Mapping[str, str | tuple[str, ...]]) -> set[str]:
    return {name for value in table.values() for name in ((value,) if isinstance(value, str) else value)}


def _causal_class(model_type: str) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    return name if isinstance(name, str) else None


def _hint(config: Mapping[str, Any], model_type: str, task: str) -> str:
    """What to do about a type that is not convertible."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    # To a type that is known here, an older transformers may be what the exporter needs.
    known = remedy(model_type, task)
    return known if model_type in CONFIG_MAPPING_NAMES else _newer_hint(config) or known


def _newer_hint(config: Mapping[str, Any]) -> str:
    from packaging.version import InvalidVersion, Version

    try:
        saved_with = Version(str(config.get("transformers_version")))
    except InvalidVersion:
        return ""
    if saved_with <= Version(installed_transformers()):
        return ""
    return f"the model was saved with transformers {saved_with}, newer than the installed {installed_transformers()}"


def _dtype(config: Mapping[str, Any]) -> str | None:
    value = config.get("dtype") or config.get("torch_dtype")
    return _DTYPES.get(value.removeprefix("torch."), value) if isinstance(value, str) else None
