"""Stand-ins for vision-language models whose classes are code of their repositories, for ``benchmarks/vision.py``.

Each has the names, shapes and calls that Optimum's exporter and its class look for in a model of its type; the rest is
as simple as it can be. A copy of this file goes into a checkpoint, and is run as the code of its repository.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, Phi3Config, Phi3ForCausalLM, ProcessorMixin, Qwen2Config, Qwen2ForCausalLM
from transformers.configuration_utils import PretrainedConfig
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.phi3.modeling_phi3 import Phi3MLP, Phi3RMSNorm, apply_rotary_pos_emb
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalVisionConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalVisionModel

TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "initializer_range": 0.08,
}
SEES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


class VisionConfig(PretrainedConfig):
    """Of the part that sees; takes any field."""

    model_type = "stand_in_vision"

    def __init__(self, **fields: Any) -> None:
        for name in [name for name in fields if name not in PretrainedConfig().to_dict()]:
            setattr(self, name, fields.pop(name))
        super().__init__(**fields)


class InternvlChatConfig(PretrainedConfig):
    """As InternVL's: of what sees, and of a language model that transformers has a class of."""

    model_type = "internvl_chat"

    def __init__(self, vision_config: Any = None, llm_config: Any = None, **fields: Any) -> None:
        self.vision_config, self.llm_config = VisionConfig(**vision_config or SEES), Qwen2Config(**llm_config or TEXT)
        self.downsample_ratio, self.img_context_token_id = 0.5, 268
        fields = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, **fields}
        super().__init__(**fields)


class SelfAttention(nn.Module):
    """Of patches, with one matrix for queries, keys and values."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads, self.use_flash_attn = config.num_attention_heads, True
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: Any) -> Any:
        heads = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in self.qkv(states).chunk(3, -1))
        return self.proj(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2))


class VisionLayer(nn.Module):
    """A layer of the part that sees."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attn = SelfAttention(config)
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            nn.GELU(),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )

    def forward(self, states: Any) -> Any:
        states = states + self.attn(self.norm1(states))
        return states + self.mlp(self.norm2(states))


class Vision(nn.Module):
    """Patches of a square picture, and one embedding before them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.position_embedding = nn.Parameter(torch.randn(1, num_patches + 1, config.hidden_size))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, pixel_values: Any) -> Any:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        states = torch.cat((self.class_embedding.expand(patches.shape[0], -1, -1), patches), 1)
        states = states + self.position_embedding
        for layer in self.encoder.layers:
            states = layer(states)
        return states


class StandIn(PreTrainedModel, GenerationMixin):
    """Sets random weights."""

    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = []

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            module.weight.data.normal_(0.0, 0.08)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.data.zero_()


class InternvlChatForCausalLM(StandIn):
    """As InternVL: four patches become one embedding of a language model."""

    config_class = InternvlChatConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        wide, width = 4 * config.vision_config.hidden_size, config.llm_config.hidden_size
        self.vision_model, self.language_model = Vision(config.vision_config), Qwen2ForCausalLM(config.llm_config)
        self.mlp1 = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.language_model.get_output_embeddings()

    def extract_feature(self, pixel_values: Any) -> Any:
        patches = self.vision_model(pixel_values)[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        squares = patches.unflatten(1, (side // 2, 2, side // 2, 2)).transpose(2, 3)
        return self.mlp1(squares.flatten(3).flatten(1, 2))

    def embed(self, input_ids: Any, pixel_values: Any) -> Any:
        found = self.get_input_embeddings()(input_ids)
        if pixel_values is None:
            return found
        places = (input_ids == self.config.img_context_token_id)[..., None].expand_as(found)
        return found.masked_scatter(places, self.extract_feature(pixel_values))

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, pixel_values: Any = None, **others: Any
    ) -> Any:
        embedded = self.embed(input_ids, pixel_values)
        return self.language_model(inputs_embeds=embedded, attention_mask=attention_mask, **others)

    def generate(self, input_ids: Any = None, pixel_values: Any = None, **others: Any) -> Any:
        found = self.language_model.generate(inputs_embeds=self.embed(input_ids, pixel_values), **others)
        if torch.is_tensor(found):
            return torch.cat((input_ids, found), 1)
        found.sequences = torch.cat((input_ids, found.sequences), 1)
        return found


class Phi3VConfig(Phi3Config):
    """As Phi-3-vision's; what sees has the sizes of CLIP's large encoder, which Optimum's class takes for granted."""

    model_type = "phi3_v"

    def __init__(self, img_processor: Any = None, embd_layer: Any = None, **fields: Any) -> None:
        self.img_processor = img_processor or {"image_dim_out": 1024, "model_name": "openai/clip-vit-large-patch14-336"}
        self.embd_layer = embd_layer or {"embedding_cls": "image", "hd_transform_order": "sub_glb"}
        super().__init__(**{**TEXT, **fields})


class Rotary(nn.Module):
    """Cosines and sines of positions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        speeds = 10000.0 ** (-torch.arange(0, size, 2).float() / size)
        self.register_buffer("inv_freq", speeds, persistent=False)

    def forward(self, states: Any, position_ids: Any, seq_len: Any = None) -> Any:
        # As transformers computes them, which the plugin keeps in f32 where all else is in bf16.
        speeds = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        angles = (speeds @ position_ids[:, None, :].float()).transpose(1, 2)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos(), both.sin()


class Phi3VAttention(nn.Module):
    """One matrix for queries, keys and values, and a cache object."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.layer_idx, self.hidden_size, self.is_causal, self.attention_dropout = index, config.hidden_size, True, 0.0
        self.num_heads, self.num_key_value_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.head_dim = self.hidden_size // self.num_heads
        heads = self.num_heads + 2 * self.num_key_value_heads
        self.qkv_proj = nn.Linear(self.hidden_size, heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.hidden_size, self.hidden_size, bias=False)
        self.rotary_emb = Rotary(self.head_dim)

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_value: Any = None,
        output_attentions: bool = False,
        use_cache: bool = False,
    ) -> Any:
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split((self.num_heads, self.num_key_value_heads, self.num_key_value_heads), 1)
        query, key = apply_rotary_pos_emb(query, key, *self.rotary_emb(value, position_ids))
        if past_key_value is not None:
            key, value = past_key_value.update(key, value, self.layer_idx)
        key, value = (each.repeat_interleave(self.num_key_value_groups, 1) for each in (key, value))
        found = functional.scaled_dot_product_attention(query, key, value, attention_mask)
        return self.o_proj(found.transpose(1, 2).flatten(-2)), None, past_key_value


class Phi3VLayer(nn.Module):
    """Attention and what comes after it."""

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Phi3VAttention(config, index), Phi3MLP(config)
        self.input_layernorm = Phi3RMSNorm(config.hidden_size)
        self.post_attention_layernorm = Phi3RMSNorm(config.hidden_size)

    def forward(self, states: Any, mask: Any, positions: Any, past: Any) -> Any:
        found = self.self_attn(self.input_layernorm(states), mask, positions, past)[0]
        states = states + found
        return states + self.mlp(self.post_attention_layernorm(states))


class HdPictures(nn.Module):
    """As Phi-3-vision's: of crops and of the whole, four patches each become one, and a mark ends each row."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, size = config, config.img_processor["image_dim_out"]
        self.img_processor = Vision(VisionConfig(**{**SEES, "image_size": 336}))
        self.widening = nn.Linear(SEES["hidden_size"], size)
        self.glb_GN = nn.Parameter(torch.randn(1, 1, 4 * size))
        self.sub_GN = nn.Parameter(torch.randn(1, 1, 1, 4 * size))
        self.img_projection = nn.Sequential(
            nn.Linear(4 * size, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def get_img_features(self, pixel_values: Any) -> Any:
        return self.widening(self.img_processor(pixel_values)[:, 1:])

    def rows(self, patches: Any, height: int, width: int) -> Any:
        squares = patches.unflatten(1, (12, 2, 12, 2)).transpose(2, 3).flatten(3)
        whole = squares.unflatten(0, (height, width)).transpose(1, 2).flatten(2, 3).flatten(0, 1)[None]
        return torch.cat((whole, self.sub_GN.expand(1, 12 * height, 1, -1)), 2).flatten(1, 2)

    def forward(self, pixel_values: Any, image_sizes: Any) -> Any:
        found = []
        for crops, size in zip(pixel_values, image_sizes, strict=True):
            height, width = (int(side) // 336 for side in size)
            patches = self.get_img_features(crops)
            rows = self.rows(patches[1 : 1 + height * width], height, width)
            found.append(torch.cat((rows, self.glb_GN, self.rows(patches[:1], 1, 1)), 1)[0])
        return self.img_projection(torch.cat(found))


class Phi3VForCausalLM(StandIn):
    """As Phi-3-vision: ids below zero stand where embeddings of a picture go."""

    config_class = Phi3VConfig
    _supports_sdpa = False
    _supports_cache_class = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.vision_embed_tokens = HdPictures(config)
        self.model.layers = nn.ModuleList(Phi3VLayer(config, index) for index in range(config.num_hidden_layers))
        self.model.norm = Phi3RMSNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def embed(self, input_ids: Any, pixel_values: Any, image_sizes: Any) -> Any:
        found = self.model.embed_tokens(input_ids.clamp_min(0))
        places = (input_ids < 0)[..., None]
        if pixel_values is None or not places.any():
            return found
        return found.masked_scatter(places.expand_as(found), self.model.vision_embed_tokens(pixel_values, image_sizes))

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        pixel_values: Any = None,
        image_sizes: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        states = self.embed(input_ids, pixel_values, image_sizes) if inputs_embeds is None else inputs_embeds
        num_new = states.shape[1]
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = (torch.arange(num_new) + num_past)[None]
        mask = causal_mask(attention_mask, num_new, num_past)
        for layer in self.model.layers:
            states = layer(states, mask, position_ids, past_key_values)
        return CausalLMOutputWithPast(logits=self.lm_head(self.model.norm(states)), past_key_values=past_key_values)


def causal_mask(attention_mask: Any, num_new: Any, num_past: Any) -> Any:
    """Zero where a token sees another, of shape (rows, 1, new tokens, all tokens)."""
    sees = torch.arange(num_new + num_past)[None] <= (torch.arange(num_new) + num_past)[:, None]
    sees = sees[None, None]
    if attention_mask is not None:
        sees = sees & attention_mask[:, None, None, :].bool()
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float16).min)


class Phi3VImageProcessor(BaseImageProcessor):
    """A picture as a whole, and in crops of 336 pixels a side: as many as may be, in columns and rows of its shape."""

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]

    def __init__(self, num_crops: int = 1, num_img_tokens: int = 144, **fields: Any) -> None:
        super().__init__(**fields)
        self.num_crops, self.num_img_tokens = num_crops, num_img_tokens

    def preprocess(self, images: Any, return_tensors: Any = None, **others: Any) -> Any:
        images = images if isinstance(images, list) else [images]
        made = [self._crops(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255) for image in images]
        sizes = [size for _, size in made]
        values = {"pixel_values": torch.stack([crops for crops, _ in made]), "image_sizes": torch.tensor(sizes)}
        values["num_img_tokens"] = [self._num_tokens(*size) for size in sizes]
        return BatchFeature(values)

    def _num_tokens(self, height: int, width: int) -> int:
        rows, columns = height // 336, width // 336
        return (rows * columns + 1) * self.num_img_tokens + 1 + (rows + 1) * 12

    def _crops(self, points: Any) -> tuple[Any, list[int]]:
        ratio, columns = points.shape[3] / points.shape[2], 1
        while (columns + 1) * math.ceil((columns + 1) / ratio) <= self.num_crops:
            columns += 1
        rows = max(1, math.ceil(columns / ratio))
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        sizes = [(336, 336), (336 * rows, 336 * columns)]
        whole, large = ((functional.interpolate(points, size, mode="bicubic") - mean) / deviation for size in sizes)
        parts = large[0].unflatten(1, (rows, 336)).unflatten(3, (columns, 336)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return torch.cat((whole, parts)), [336 * rows, 336 * columns]


class Phi3VProcessor(ProcessorMixin):
    """Puts ids below zero where a text marks a picture."""

    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __call__(self, text: Any = None, images: Any = None, return_tensors: Any = None, **others: Any) -> Any:
        text = text[0] if isinstance(text, list) else text
        if images is None:
            return self.tokenizer(text, return_tensors="pt")
        made = dict(self.image_processor(images))
        before, after = (self.tokenizer(part)["input_ids"] for part in text.split("<|image_1|>"))
        ids = torch.tensor([[*before, *[-1] * made.pop("num_img_tokens")[0], *after]])
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), **made})


class Phi4MmConfig(Phi3Config):
    """As Phi-4-multimodal's: what sees and what hears are named by dictionaries."""

    model_type = "phi4mm"

    def __init__(
        self, img_processor: Any = None, audio_processor: Any = None, embd_layer: Any = None, **fields: Any
    ) -> None:
        sees = {"hidden_size": 32, "image_dim_out": 32, "crop_size": 448, "patch_size": 14, "image_token_id": 267}
        hears = {"input_size": 80, "attention_dim": 32, "time_reduction": 8, "chunk_size": -1, "left_chunk": 18}
        self.img_processor = img_processor or sees
        self.audio_processor = audio_processor or {"config": {**hears, "audio_token_id": 268}}
        self.embd_layer = embd_layer or {"embedding_cls": "image_audio", "image_embd_layer": {"crop_size": 448}}
        super().__init__(**{**TEXT, **fields})


class HdImages(nn.Module):
    """As Phi-4-multimodal's: of a crop and of the whole, four patches each become one, and a mark ends each row."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        sees = config.img_processor
        size, self.num_img_tokens, self.hd_transform_order = sees["image_dim_out"], 256, "sub_glb"
        self.layer_idx, self.type_feature, self.freeze_img_processor = -2, "patch", False
        encoder = Phi4MultimodalVisionConfig(
            **{**SEES, "image_size": sees["crop_size"], "_attn_implementation": "sdpa"}
        )
        self.img_processor = Phi4MultimodalVisionModel(encoder)
        for layer in self.img_processor.encoder.layers:
            # Transformers' own lets patches see only those before them where all are marked as seen.
            layer.self_attn.is_causal = False
        self.image_token_compression = nn.AvgPool2d(2)
        self.img_projection = nn.Sequential(
            nn.Linear(size, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )
        self.glb_GN = nn.Parameter(torch.randn(1, 1, size))
        self.sub_GN = nn.Parameter(torch.randn(1, 1, 1, size))

    def get_img_features(self, pixel_values: Any, mask: Any) -> Any:
        found = self.img_processor(pixel_values, patch_attention_mask=mask, output_hidden_states=True)
        patches = found.hidden_states[self.layer_idx]
        side = int(patches.shape[1] ** 0.5)
        squares = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.image_token_compression(squares).permute(0, 2, 3, 1)

    def rows(self, squares: Any) -> Any:
        return torch.cat((squares, self.sub_GN.expand(1, squares.shape[1], 1, -1)), 2).flatten(1, 2)

    def forward(self, pixel_values: Any, mask: Any) -> Any:
        found = []
        for crops, each in zip(pixel_values, mask, strict=True):
            squares = self.get_img_features(crops, each.bool())
            found.append(torch.cat((self.rows(squares[1:2]), self.glb_GN, self.rows(squares[:1])), 1)[0])
        return self.img_projection(torch.cat(found))


class Normalised(nn.Module):
    """Features of sound around their mean."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(size))

    def forward(self, input_: Any) -> Any:
        return input_ - self.mean


class Subsampled(nn.Module):
    """Eight moments of sound become one."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, width, 8, stride=8, padding=7)

    def forward(self, states: Any, mask: Any) -> Any:
        return self.conv(states.transpose(1, 2)).transpose(1, 2), mask


class Distances(nn.Module):
    """A bias for how far moments are from each other."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.randn(num_heads))

    def forward(self, states: Any) -> Any:
        moments = torch.arange(states.shape[1])
        return self.slopes[None, :, None, None] * (moments[None] - moments[:, None]).abs()


class SoundLayer(nn.Module):
    """A layer of the part that hears."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.norm = num_heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, states: Any, mask: Any) -> Any:
        pieces = self.qkv(self.norm(states)).chunk(3, -1)
        heads = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in pieces)
        return states + self.out(functional.scaled_dot_product_attention(*heads, mask).transpose(1, 2).flatten(-2))


class SoundEncoder(nn.Module):
    """What hears."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hears = config.audio_processor["config"]
        self.encoder_embedding = Normalised(hears["input_size"])
        self.embed = Subsampled(hears["input_size"], hears["attention_dim"])
        self.relative_attention_bias_layer = Distances(2)
        self.encoders = nn.ModuleList(SoundLayer(hears["attention_dim"], 2) for _ in range(2))

    def forward(self, states: Any) -> Any:
        states, _ = self.embed(self.encoder_embedding(states), None)
        bias = self.relative_attention_bias_layer(states)
        for layer in self.encoders:
            states = layer(states, bias)
        return states


class Sounds(nn.Module):
    """What hears, and what puts it among embeddings of text."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.audio_processor["config"]["attention_dim"]
        self.encoder = SoundEncoder(config)
        self.audio_projection = nn.ModuleDict(
            {
                mode: nn.Sequential(
                    nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
                )
                for mode in ("speech", "vision")
            }
        )


class Phi4MmForCausalLM(Phi3ForCausalLM):
    """As Phi-4-multimodal: the decoder of Phi-3, and embeddings of pictures and sounds."""

    config_class = Phi4MmConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.embed_tokens_extend = nn.Module()
        self.model.embed_tokens_extend.image_embed = HdImages(config)
        self.model.embed_tokens_extend.audio_embed = Sounds(config)
        self.post_init()

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        input_image_embeds: Any = None,
        image_sizes: Any = None,
        image_attention_mask: Any = None,
        logits_to_keep: Any = 0,
        **others: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.model.embed_tokens(input_ids)
            places = (input_ids == self.config.img_processor["image_token_id"])[..., None]
            if input_image_embeds is not None and places.any():
                seen = self.model.embed_tokens_extend.image_embed(input_image_embeds, image_attention_mask)
                inputs_embeds = inputs_embeds.masked_scatter(places.expand_as(inputs_embeds), seen)
        return super().forward(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            logits_to_keep=logits_to_keep,
            **others,
        )


class Phi4MmImageProcessor(BaseImageProcessor):
    """A picture as a whole, and as one crop."""

    model_input_names: ClassVar[list[str]] = ["input_image_embeds", "image_sizes", "image_attention_mask"]

    def preprocess(self, images: Any, return_tensors: Any = None, **others: Any) -> Any:
        images = images if isinstance(images, list) else [images]
        points = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1 for image in images]
        seen = [functional.interpolate(each, (448, 448), mode="bilinear").repeat(2, 1, 1, 1) for each in points]
        masks, sizes = torch.ones(len(images), 2, 32, 32), torch.full((len(images), 2), 448)
        values = {"input_image_embeds": torch.stack(seen), "image_sizes": sizes, "image_attention_mask": masks}
        return BatchFeature(values)


class Phi4MmProcessor(ProcessorMixin):
    """Puts as many marks where a text marks a picture as there are embeddings of it."""

    attributes: ClassVar[list[str]] = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __call__(self, text: Any = None, images: Any = None, audios: Any = None, return_tensors: Any = None) -> Any:
        if images is None:
            return self.tokenizer(text, return_tensors="pt")
        # Sixteen rows of sixteen and their marks, twice, and one mark between.
        marked = text.replace("<|image_1|>", (2 * 16 * 17 + 1) * "<|endoftext10|>")
        return BatchFeature({**self.tokenizer(marked, return_tensors="pt"), **self.image_processor(images)})
