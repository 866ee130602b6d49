"""Small random vision-language models with processors, made by the transformers of the process that calls."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "initializer_range": 0.08,
}
_SEES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
_QWEN = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
_QWEN_IDS = {"vision_start_token_id": 266, "vision_end_token_id": 267, "image_token_id": 268, "video_token_id": 269}
_QWEN_SEES: dict[str, Any] = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
_MROPE: dict[str, Any] = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}
_IDEFICS = {
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
    "global_image_token": "<global-img>",
}

TOKENS: dict[str, dict[str, str]] = {
    "llava": {"image_token": "<image>"},
    "llava_next": {"image_token": "<image>"},
    "gemma3": {
        "boi_token": "<start_of_image>",
        "image_token": "<image_soft_token>",
        "eoi_token": "<end_of_image>",
    },
    "gemma4": {
        "boi_token": "<|image>",
        "image_token": "<|image|>",
        "eoi_token": "<image|>",
        "video_token": "<|video|>",
    },
    "mistral3": {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": _QWEN,
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **_SEES},
        "image_token_index": 266,
        "image_seq_length": 16,
        # Of the layers none is left unused.
        "vision_feature_layer": -1,
    },
    "llava_next": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **_SEES},
        "image_token_index": 266,
        "image_seq_length": 16,
        "image_grid_pinpoints": [[56, 112], [112, 56]],
    },
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, **TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **_SEES},
        "mm_tokens_per_image": 4,
        "boi_token_index": 266,
        "image_token_index": 267,
        "eoi_token_index": 268,
    },
    "gemma4": {
        "text_config": {
            "model_type": "gemma4_text",
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": 512,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            **TEXT,
        },
        "vision_config": {
            "model_type": "gemma4_vision",
            "position_embedding_size": 64,
            **{**_SEES, "patch_size": 16, "num_key_value_heads": 2, "head_dim": 16},
        },
        "boi_token_id": 266,
        "image_token_id": 267,
        "eoi_token_id": 268,
        "video_token_id": 269,
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": None, **TEXT},
        "vision_config": {"model_type": "pixtral", "head_dim": 16, **_SEES},
        "image_token_index": 266,
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    },
    "qwen2_vl": {
        "text_config": {"model_type": "qwen2_vl_text", "rope_parameters": _MROPE, "rope_scaling": _MROPE, **TEXT},
        "vision_config": {"embed_dim": 32, "hidden_size": 64, **_QWEN_SEES},
        **_QWEN_IDS,
    },
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", "rope_parameters": _MROPE, "rope_scaling": _MROPE, **TEXT},
        "vision_config": {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            **_QWEN_SEES,
        },
        **_QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": {"model_type": "qwen3_vl_text", "rope_parameters": _MROPE, "rope_scaling": _MROPE, **TEXT},
        "vision_config": {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 256,
            **_QWEN_SEES,
        },
        **_QWEN_IDS,
    },
    "qwen3_5": {
        "text_config": {
            "model_type": "qwen3_5_text",
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            **TEXT,
        },
        "vision_config": {
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "num_position_embeddings": 256,
            **_QWEN_SEES,
        },
        **_QWEN_IDS,
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "smolvlm_vision", **_SEES},
        "image_token_id": 267,
        "scale_factor": 2,
    },
    "idefics3": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "idefics3_vision", **_SEES},
        "image_token_id": 267,
        "scale_factor": 2,
    },
}
QUESTION: dict[str, str] = {
    "llava": "<image>What is it?",
    "llava_next": "<image>What is it?",
    "gemma3": "<start_of_image>What is it?",
    "gemma4": "<|image|>What is it?",
    "mistral3": "[IMG]What is it?",
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), "<|vision_start|><|image_pad|><|vision_end|>What is it?"
    ),
    "smolvlm": "<image>What is it?",
    "idefics3": "<image>What is it?",
}
"""A question with a picture, as the processor of each type takes it."""


def template(model_type: str) -> str:
    """A chat template of turns that are lists of parts, as those of such models are."""
    mark = QUESTION[model_type].removesuffix("What is it?")
    return (
        "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{mark}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def picture() -> Any:
    """A generated picture: squares of a few colours."""
    import numpy as np
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours.repeat(28, 0).repeat(28, 1))


def make_processor(model_type: str, tokenizer: Any) -> Any:
    """The processor of a type for the sizes of its model."""
    import transformers

    if model_type in ("llava", "llava_next"):
        sizes: dict[str, Any] = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
        if model_type == "llava_next":
            sizes["image_grid_pinpoints"] = CONFIGS[model_type]["image_grid_pinpoints"]
        name = "CLIPImageProcessor" if model_type == "llava" else "LlavaNextImageProcessor"
        how = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        kind = transformers.LlavaProcessor if model_type == "llava" else transformers.LlavaNextProcessor
        return kind(getattr(transformers, name)(**sizes), tokenizer, **how)
    if model_type == "gemma3":
        images = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56})
        return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    if model_type == "gemma4":
        few = {"max_soft_tokens": 70}
        videos = transformers.Gemma4VideoProcessor(**few)
        heard = transformers.Gemma4AudioFeatureExtractor()
        images = transformers.Gemma4ImageProcessor(**few)
        return transformers.Gemma4Processor(heard, images, tokenizer, videos, image_seq_length=70)
    if model_type == "mistral3":
        images = transformers.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
        return transformers.PixtralProcessor(images, tokenizer, patch_size=14, spatial_merge_size=2)
    if model_type.startswith("qwen"):
        small = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}, "patch_size": 14}
        if model_type in ("qwen2_vl", "qwen2_5_vl"):
            kind = transformers.Qwen2VLProcessor if model_type == "qwen2_vl" else transformers.Qwen2_5_VLProcessor
            videos = transformers.Qwen2VLVideoProcessor(**small)
        else:
            kind, videos = transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor(**small)
        return kind(transformers.Qwen2VLImageProcessor(**small), tokenizer, videos)
    kinds = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}
    images = getattr(transformers, f"{kinds[model_type]}ImageProcessor")(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 56}, do_image_splitting=False
    )
    how = {"image_seq_len": 4}
    if model_type == "smolvlm":
        how["video_processor"] = transformers.SmolVLMVideoProcessor(size={"longest_edge": 56})
    return getattr(transformers, f"{kinds[model_type]}Processor")(images, tokenizer, **how)


def build_vision(model_type: str, directory: Path, **overrides: Any) -> Path:
    """Write a random f32 checkpoint with its processor, and return its directory."""
    import torch
    from tiny_models import write_tokenizer
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **overrides})
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).to(torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms of exactly one and biases of zero would be folded out of the graph, and some projections are zero.
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(directory)
    tokenizer = write_tokenizer(directory, chat_template=template(model_type), named=TOKENS[model_type])
    processor = make_processor(model_type, tokenizer)
    processor.chat_template = template(model_type)
    processor.save_pretrained(directory)
    return directory


def text_checkpoint(whole: Path, output: Path) -> Path:
    """The language model as transformers itself saves it: its class, built anew, with tensors taken over by name."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    opened = AutoModelForImageTextToText.from_pretrained(whole)
    config = opened.config.text_config
    config.tie_word_embeddings = opened.lm_head.weight is opened.get_input_embeddings().weight
    module = AutoModelForCausalLM.from_config(config, dtype=opened.dtype)
    prefix = re.compile(r"^model\.(language|text)_model\.")
    tensors = {prefix.sub("model.", name): tensor for name, tensor in opened.state_dict().items()}
    missing, _ = module.load_state_dict(tensors, strict=False)
    assert not [name for name in missing if name != "lm_head.weight"]
    module.save_pretrained(output)
    AutoTokenizer.from_pretrained(whole).save_pretrained(output)
    return output
