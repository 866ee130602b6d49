"""What a GGUF file says of itself, against transformers' classes and llama.cpp's tokens; and hostile files."""

from __future__ import annotations

import json
import struct
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_fixture import assert_same_logits, write_gguf
from tiny_models import ARCHITECTURES, build_checkpoint

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.gguf.architectures import gguf_config
from llmcompress.loaders.quantized.gguf.file import gguf_of, read_gguf
from llmcompress.loaders.quantized.gguf.source import require_gguf_tokenizer
from llmcompress.loaders.quantized.gguf.tokenizer import gguf_tokenizer, token_ids
from llmcompress.loaders.quantized.packed import dequantized
from llmcompress.loaders.quantized.source_weights import SourceWeights, source_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import source_checkpoint
from llmcompress.loaders.tokenizer import source_tokenizer

MODELS = Path(__file__).parent / "gguf_models"
TOKENS = json.loads((MODELS / "tokens.json").read_text(encoding="utf-8"))
SIZES: dict[str, Any] = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 128,
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "short_factor": [1.0, 1.25, 1.5, 1.75],
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
WINDOW = {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32, "tie_word_embeddings": True}),
    "llama-yarn": ("llama", {"rope_parameters": YARN, "attention_bias": True}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", WINDOW),
    "gemma3": ("gemma3_text", {**WINDOW, "num_hidden_layers": 7}),
    "gemma3-period": (
        "gemma3_text",
        {
            **WINDOW,
            "num_hidden_layers": 2,
            "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
            },
        },
    ),
    "gemma3-flags": (
        "gemma3_text",
        {**WINDOW, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "gemma3-whole": (
        "gemma3_text",
        {**WINDOW, "num_hidden_layers": 2, "layer_types": ["full_attention", "full_attention"]},
    ),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3-long": (
        "phi3",
        {
            "sliding_window": None,
            "rope_parameters": LONG,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 128,
        },
    ),
    "starcoder2": ("starcoder2", {"sliding_window": None}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.25,
            "attention_multiplier": 0.125,
            "logits_scaling": 6.0,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}),
}

METADATA: dict[str, dict[str, Any]] = {
    "gemma3-period": {"gemma3.attention.sliding_window_pattern": 2, "gemma3.rope.freq_base_swa": 20_000.0},
    "gemma3-flags": {"gemma3.attention.sliding_window_pattern": [False, True]},
    "gemma3-whole": {"gemma3.attention.sliding_window": 0},
}
"""What files say besides."""


@pytest.mark.parametrize("case", CASES)
def test_a_file_describes_the_model_that_it_was_made_of(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the configuration and the tensors of the file, transformers computes what it did before.

    llama.cpp gives the same logits for files of these kinds, to 5e-7 of the largest: 3e-6 for gemma, 7e-5 for
    starcoder2, 4e-4 for gemma2 and gemma3.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, fields = CASES[case]
    monkeypatch.setitem(ARCHITECTURES, kind, ARCHITECTURES.get(kind, ARCHITECTURES["llama"]))
    checkpoint = build_checkpoint(tmp_path / "model", kind, **{**SIZES, **fields})
    original = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    source = resolve(write_gguf(checkpoint, tmp_path / "model.gguf", **METADATA.get(case, {})))
    found = source_weights(source, source_checkpoint(source))
    assert found is not None
    assert found.floats is not None
    config = AutoConfig.from_pretrained(source.path)
    vars(config).pop("quantization_config")
    tensors = {name: torch.from_numpy(values.copy()) for name, values in found.floats().items()}
    assert_same_logits(original, config, tensors)
    assert config.max_position_embeddings == original.config.max_position_embeddings


def vocabulary(name: str) -> dict[str, Any]:
    is_sentencepiece = name in ("llama", "llama-no-prefix")
    found = dict(TOKENS["vocabularies"]["llama" if is_sentencepiece else "gpt2"])
    if not is_sentencepiece:
        found["tokenizer.ggml.pre"] = name
    if name == "llama-no-prefix":
        found["tokenizer.ggml.add_space_prefix"] = False
    return found


@pytest.mark.parametrize("name", TOKENS["ids"])
def test_tokens_are_those_of_llama_cpp(name: str) -> None:
    from tokenizers import Tokenizer

    made = gguf_tokenizer(vocabulary(name), 128)
    tokenizer = Tokenizer.from_str(made.tokenizer)
    for text, expected in zip(TOKENS["texts"], TOKENS["ids"][name], strict=True):
        # The published tokenizers keep vowel signs with their letters; llama.cpp has no class for them.
        if name in ("tekken", "gpt-4o") and any(unicodedata.category(letter) == "Mc" for letter in text):
            continue
        assert tokenizer.encode(text).ids == expected, text
    assert made.config["eos_token"] in ("<|end|>", "</s>")


def test_the_ways_to_split_are_told_apart_by_these_texts() -> None:
    bos = TOKENS["vocabularies"]["gpt2"]["tokenizer.ggml.bos_token_id"]
    ids = {name: json.dumps([[i for i in each if i != bos] for each in ids]) for name, ids in TOKENS["ids"].items()}
    # dbrx splits as llama-bpe does, stablelm2 as qwen2, smollm as starcoder, and tekken these texts as qwen2.
    assert len(set(ids.values())) >= len(ids) - 4


def test_the_tokenizer_is_converted_and_keeps_the_template(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "model", **SIZES)
    source = resolve(write_gguf(checkpoint, tmp_path / "model.gguf"))
    tokenizer = source_tokenizer(source)
    text = "Hello, <|end|> naïve 123"
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    message = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == original.apply_chat_template(
        message, tokenize=False
    )
    assert tokenizer.model_max_length == 256
    assert source.config["eos_token_id"] == 257


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "new"}, "tokenizer.ggml.pre is 'new'; accepted: default, llama-bpe"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'; gpt2 and llama are read"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "tokenizer.ggml.merges has 'a b c', which is no pair"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is no list of texts"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens is no list of texts"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type has not one kind for each of 600"),
        ({"tokenizer.ggml.tokens": ["a", "a", "[FILL1]"]}, "token_type has not one kind"),
        ({"tokenizer.ggml.bos_token_id": 600}, "tokenizer.ggml.bos_token_id is 600, and there are 600 tokens"),
        ({"tokenizer.ggml.add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1; true or false is needed"),
    ],
)
def test_a_tokenizer_that_is_not_read_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gguf_tokenizer({**vocabulary("gpt-2"), **change}, 128)


def test_odd_vocabularies() -> None:
    told = vocabulary("llama")
    with pytest.raises(ModelError, match=r"tokenizer.ggml.scores has not one number for each of"):
        gguf_tokenizer({**told, "tokenizer.ggml.scores": [1.0]}, 128)
    twice = {**vocabulary("gpt-2"), "tokenizer.ggml.token_type": None, "tokenizer.ggml.merges": []}
    tokens = list(twice["tokenizer.ggml.tokens"])
    tokens[5] = tokens[4]
    made = json.loads(gguf_tokenizer({**twice, "tokenizer.ggml.tokens": tokens}, 128).tokenizer)
    assert made["model"]["vocab"]["[FILL5]"] == 5
    tokens[4] = tokens[6] = "[FILL6]"
    with pytest.raises(ModelError, match=r"tokenizer.ggml.tokens has a text twice"):
        gguf_tokenizer({**twice, "tokenizer.ggml.tokens": tokens}, 128)
    ids = {"tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eot_token_id": 4, "tokenizer.ggml.bos_token_id": 2**32 - 1}
    assert token_ids(ids, 288) == {"eos_token_id": [3, 4]}


def test_a_model_without_a_tokenizer_that_is_read(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "model", **SIZES)
    source = resolve(write_gguf(checkpoint, tmp_path / "model.gguf", **{"tokenizer.ggml.pre": "new"}))
    with pytest.raises(ModelError, match=r"tokenizer.ggml.pre is 'new'") as caught:
        source_tokenizer(source)
    assert "`tokenizer=False`" in caught.value.hint
    require_gguf_tokenizer(tmp_path)


def header() -> dict[str, Any]:
    found = read_gguf(MODELS / "legacy.gguf")
    return {"metadata": dict(found.metadata), "tensors": dict(found.tensors)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "clip"}, "the architecture 'clip' of this GGUF file is not read; accepted: llama"),
        ({"general.architecture": None}, "the architecture None"),
        ({"llama.expert_count": 8}, "the experts of a GGUF file are not read"),
        ({"llama.block_count": 3}, "llama.block_count gives 3, and the tensors 2"),
        ({"llama.embedding_length": 128}, "llama.embedding_length gives 128, and the tensors 64"),
        ({"llama.attention.head_count": 8}, "llama.rope.dimension_count gives 16, and the tensors 8"),
        ({"llama.attention.key_length": 32}, "llama.attention.head_count gives 128, and the tensors 64"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length gives 8, and the tensors 16"),
        ({"llama.context_length": 0}, "llama.context_length is 0; a positive whole number"),
        ({"llama.context_length": "many"}, "llama.context_length is 'many'; a positive whole number"),
        ({"llama.attention.head_count_kv": [2, 4]}, "llama.attention.head_count_kv is a list of 2; a positive whole"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base is nan; a positive number"),
        ({"llama.rope.scaling.type": "other"}, "llama.rope.scaling.type is 'other'; none, linear, yarn or longrope"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_refused(change: dict[str, Any], message: str) -> None:
    found = header()
    with pytest.raises(ModelError, match=message):
        gguf_config(found["metadata"] | change, found["tensors"], lambda name: np.zeros(8))


def test_windows_and_scales_of_gemma_are_those_of_llama_cpp() -> None:
    """https://github.com/ggml-org/llama.cpp, the hyperparameters of each architecture."""
    found = header()
    said = {key.replace("llama.", "gemma3."): value for key, value in found["metadata"].items()}
    said |= {"general.architecture": "gemma3", "gemma3.attention.sliding_window": 8}
    for pattern, message in (
        ([1], "is a list of 1; a number, or yes or no for each of 2 layers, is needed"),
        ([0, 2], "is a list of 2; a number, or yes or no for each of 2 layers, is needed"),
        (0, "is 0; a positive whole number"),
    ):
        with pytest.raises(ModelError, match=f"gemma3.attention.sliding_window_pattern {message}"):
            gguf_config(
                said | {"gemma3.attention.sliding_window_pattern": pattern}, found["tensors"], lambda name: np.zeros(8)
            )
    # Heads of 32 channels, four times which is more than the hidden size.
    said |= {f"gemma3.{key}": 32 for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")}
    query = found["tensors"]["blk.0.attn_q.weight"]
    for layers, expected in ((61, 32), (62, 16)):
        tensors = found["tensors"] | {f"blk.{n}.attn_q.weight": query._replace(shape=(128, 64)) for n in range(layers)}
        made = gguf_config(said | {"gemma3.block_count": layers}, tensors, lambda name: np.zeros(8))
        assert made["query_pre_attn_scalar"] == expected
        assert [n for n, kind in enumerate(made["layer_types"]) if kind == "full_attention"] == [*range(5, layers, 6)]


def test_tensors_that_the_architecture_does_not_have_are_refused(tmp_path: Path) -> None:
    found = header()
    tensors = found["tensors"]
    embedding = tensors.pop("token_embd.weight")
    with pytest.raises(ModelError, match=r"there is no matrix token_embd.weight"):
        gguf_config(found["metadata"], tensors, lambda name: np.zeros(8))
    tensors |= {"token_embd.weight": embedding, "rope_freqs.weight": embedding._replace(dtype="F32", shape=(8,))}
    with pytest.raises(ModelError, match=r"rope_freqs.weight are not those of Llama 3"):
        gguf_config(found["metadata"], tensors, lambda name: np.arange(1, 9, dtype=np.float32))
    with pytest.raises(ModelError, match=r"rope_freqs.weight holds other than positive numbers"):
        gguf_config(found["metadata"], tensors, lambda name: np.zeros(8, np.float32))
    assert "rope_scaling" not in gguf_config(found["metadata"], tensors, lambda name: np.ones(8, np.float32))
    tensors["rope_freqs.weight"] = embedding
    with pytest.raises(ModelError, match=r"rope_freqs.weight is no vector of 8 numbers"):
        gguf_config(found["metadata"], tensors, lambda name: np.zeros(8))
    source = resolve(MODELS / "legacy.gguf")
    checkpoint = source_checkpoint(source)
    for name, dtype, message in (
        ("blk.0.attn_sinks.weight", "F32", "the tensor 'blk.0.attn_sinks.weight' is none of the architecture llama"),
        ("blk.0.attn_q.bias", "I32", r"tensor 'blk.0.attn_q.bias' is I32 of shape \[64\], which is not read"),
        ("blk.0.attn_k.weight", "Q4_0", "30 rows of the tensor 'blk.0.attn_k.weight' are no 2 heads of pairs"),
    ):
        shape = (30, 64) if dtype == "Q4_0" else (64,)
        changed = {**checkpoint.tensors, name: embedding._replace(dtype=dtype, shape=shape)}
        with pytest.raises(ModelError, match=message):
            source_weights(source, checkpoint._replace(tensors=changed))


def source_weights_of(name: str) -> SourceWeights:
    source = resolve(MODELS / f"{name}.gguf")
    found = source_weights(source, source_checkpoint(source))
    assert found is not None
    return found


def test_blocks_that_are_not_finite_are_refused() -> None:
    source = resolve(MODELS / "legacy.gguf")
    found = source_weights(source, source_checkpoint(source))
    assert found is not None
    weight = next(weight for weight in found.weights if weight.format == "GGUF Q4_0")
    broken = np.full_like(found.mapped.read(next(iter(weight.parts))), 255)
    found = found._replace(weights=(weight,), mapped=found.mapped._replace(read=lambda name: broken))
    with pytest.raises(ModelError, match="have scales that are NaN, infinite or too large") as caught:
        found.repacked()
    assert "`allow_nonfinite` goes on" in caught.value.hint
    # As for scales that are tensors of their own.
    (packed,) = found.repacked(allow_nonfinite=True).values()
    assert np.isnan(dequantized(packed)).all()
    short = next(weight for weight in source_weights_of("dequantized").weights if "IQ2_XXS" in weight.format)
    found = found._replace(weights=(short,))
    with pytest.raises(ModelError, match="have scales that are NaN, infinite or too large"):
        found._replace(mapped=found.mapped._replace(read=lambda name: np.full((256, 66), 255, np.uint8))).repacked()


def test_blocks_of_one_number_are_that_number() -> None:
    """A scale of zero leaves the offset alone, whatever the codes are."""
    from llmcompress.loaders.quantized.gguf.architectures import Mapped
    from llmcompress.loaders.quantized.gguf.blocks import BLOCK_FORMATS
    from llmcompress.loaders.quantized.gguf.weights import _repacked
    from llmcompress.loaders.safetensors_file import TensorInfo

    stored = np.full((2, 20), 0x5A, np.uint8)
    stored[:, :4].view("<f2")[:] = [[0, -0.5], [1e-7, 0.25]]
    tensor = TensorInfo("f", "Q4_1", (2, 32), 0, 0)
    packed = _repacked("a", tensor, Mapped("a"), Path(), BLOCK_FORMATS["Q4_1"], lambda n: stored)
    values = dequantized(packed)
    assert (values[0] == -0.5).all()
    # A zero point that f16 would move by steps stays in f32.
    assert packed.zero_points is not None
    assert packed.zero_points.dtype == np.float32
    assert np.allclose(values[1], 0.25, atol=2e-6)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _file(
    values: bytes = b"", num_values: int = 0, tensors: bytes = b"", num_tensors: int = 0, data: int = 64
) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_values) + values + tensors
    return start + bytes(-len(start) % 32) + bytes(data)


def _tensor(name: str = "a", shape: tuple[int, ...] = (16,), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"GGUF", "the file has only 4 bytes"),
        (b"PK\3\4" + bytes(40), "it does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "its numbers are big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "it is GGUF version 1; 2 and 3 are read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it states 1152921504606846976 tensors and 0 values"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "tensors and 4611686018427387904 values, and 0 bytes are left"),
        (_file(struct.pack("<Q", 1 << 40), 1), "a key of the metadata has 1099511627776 bytes; at most 65535"),
        (_file(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 0), 1), "a key of the metadata is not UTF-8"),
        (_file(_text("a") + struct.pack("<I", 13), 1), "the value of 'a' is of type 13, which the format does not"),
        (_file((_text("a") + struct.pack("<IB", 0, 0)) * 2, 2), "the metadata gives 'a' twice"),
        (_file(_text("a") + struct.pack("<IQ", 8, 1 << 50), 1), "it states a text of 1125899906842624 bytes"),
        (_file(_text("a") + struct.pack("<IIQ", 9, 4, 1 << 50), 1), "it states 1125899906842624 elements of 'a'"),
        (_file(_text("a") + struct.pack("<IIQ", 9, 8, 1 << 50), 1), "it states 1125899906842624 elements of 'a'"),
        (_file(_text("a") + struct.pack("<IIQ", 9, 9, 1), 1), "the elements of 'a' are of type 9; numbers and texts"),
        (_file(_text("general.alignment") + struct.pack("<II", 4, 24), 1), "general.alignment is 24; a power of two"),
        (_file(tensors=_tensor(shape=()), num_tensors=1), "tensor 'a' has 0 sizes; 1 to 4 are read"),
        (_file(tensors=_tensor(shape=(1,) * 5), num_tensors=1), "tensor 'a' has 5 sizes"),
        (_file(tensors=_tensor(kind=31), num_tensors=1), "tensor 'a' is of type 31, which is not read"),
        (_file(tensors=_tensor(shape=(16, 1 << 50)), num_tensors=1), r"tensor 'a' of F32 has the shape \["),
        (
            _file(tensors=_tensor(shape=(33,), kind=2), num_tensors=1),
            r"of Q4_0 has the shape \[33\], which is no whole",
        ),
        (_file(tensors=_tensor() * 2, num_tensors=2), "the tensor 'a' is there twice"),
        (_file(tensors=_tensor() + _tensor("b", offset=32), num_tensors=2), "tensor 'b' overlaps the tensor before it"),
        (_file(tensors=_tensor("a", offset=64), num_tensors=1, data=128), "tensor 'a' leaves unused bytes before it"),
        (
            _file(tensors=_tensor(shape=(64,)), num_tensors=1),
            "tensor 'a' ends at byte 320, and the file has 128: cut",
        ),
        (_file(tensors=_tensor(), num_tensors=1, data=128), "64 bytes behind its last tensor belong to none"),
    ],
)
def test_hostile_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_gguf(path)
    assert "model.gguf" in str(caught.value.where)


def test_a_header_longer_than_the_first_bytes_is_read_on() -> None:
    told = _text("a") + struct.pack("<IIQ", 9, 0, 20_000_000) + bytes(20_000_000)
    content = _file(told, 1, _tensor(), 1)
    asked: list[int] = []

    def first(count: int) -> bytes:
        asked.append(count)
        return content[:count]

    found = gguf_of(Path("a.gguf"), len(content), first)
    assert len(found.metadata["a"]) == 20_000_000
    assert asked == [4_000_000, 16_000_000, len(content)]
    too_long = struct.pack("<IIQ", 9, 0, 600_000_000)
    with pytest.raises(ModelError, match="its header has more than 512000000 bytes"):
        gguf_of(Path("a.gguf"), 1 << 40, lambda count: _file(_text("a") + too_long, 1)[: min(count, 100)])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the file is missing"):
        read_gguf(tmp_path / "model.gguf")
