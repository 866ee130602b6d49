"""Write the checkpoints next to this file by AutoRound, each with the logits of the tool's own dequantization.

In an environment of its own, since AutoRound fits other versions of transformers as well:
pip install auto-round==0.16.0 compressed-tensors==0.20.0 py-cpuinfo loguru; python make.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
IDS = np.arange(1, 33).reshape(2, 16)
SCHEMES = {
    "gptq-2": ("auto_gptq", "W2A16", {"group_size": 32}),
    "gptq-3": ("auto_gptq", "W3A16", {"group_size": 32}),
    "gptq-4": ("auto_gptq", "W4A16", {"group_size": 32}),
    "gptq-8": ("auto_gptq", "W8A16", {"group_size": 32}),
    "awq": ("auto_awq", "W4A16", {"group_size": 32, "sym": False}),
    "compressed-tensors-4": ("llm_compressor", "W4A16", {"group_size": 32}),
    "compressed-tensors-int8": ("llm_compressor", "INT8", {}),
    "compressed-tensors-fp8": ("llm_compressor", "FP8_BLOCK", {}),
}


def tiny() -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        dtype=torch.float16,
    )
    model = LlamaForCausalLM(config).half().eval()
    words = Tokenizer(models.WordLevel({str(token): token for token in range(96)}, unk_token="0"))
    return model, PreTrainedTokenizerFast(tokenizer_object=words)


def by_tool(parts: dict[str, torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    """A layer's weight in f32, as the tool computes it from what it stores."""
    method = settings["quant_method"]
    parts = {name: tensor.float() if "scale" in name else tensor for name, tensor in parts.items()}
    if method == "awq":
        from auto_round.export.export_to_awq.utils import dequantize_gemm

        found = dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, settings["group_size"])
        return found.T.contiguous()
    if method == "gptq":
        from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

        rows, columns = parts["qweight"].shape[1], len(parts["g_idx"])
        # Its own g_idx, in order, is read for square weights only.
        layer = QuantLinear(settings["bits"], settings["group_size"], columns, rows, False)
        layer.qweight, layer.qzeros, layer.scales = (parts[part] for part in ("qweight", "qzeros", "scales"))
        layer.post_init()
        return layer(torch.eye(columns)).T.contiguous()
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme.model_validate(settings["config_groups"]["group_0"])
    compressor = PackedQuantizationCompressor if "weight_packed" in parts else NaiveQuantizationCompressor
    return compressor.decompress(parts, scheme)["weight"].float()


def make(name: str) -> None:
    format_, scheme, options = SCHEMES[name]
    model, tokenizer = tiny()
    with tempfile.TemporaryDirectory() as plain_folder, tempfile.TemporaryDirectory() as folder:
        # AutoRound names its output after the model's folder.
        model.save_pretrained(plain_folder)
        model = LlamaForCausalLM.from_pretrained(plain_folder, dtype=torch.float16)
        AutoRound(model, tokenizer, scheme=scheme, iters=0, disable_opt_rtn=True, **options).quantize_and_save(
            output_dir=folder, format=format_
        )
        written = next(Path(folder).rglob("model.safetensors")).parent
        shutil.rmtree(HERE / name, ignore_errors=True)
        (HERE / name).mkdir()
        for file in ("model.safetensors", "config.json"):
            shutil.copyfile(written / file, HERE / name / file)
    config = json.loads((HERE / name / "config.json").read_text())
    tensors = load_file(HERE / name / "model.safetensors")
    modules: dict[str, dict[str, torch.Tensor]] = {}
    floats = {}
    for key, tensor in tensors.items():
        module, _, part = key.rpartition(".")
        if module.endswith("_proj"):
            modules.setdefault(module, {})[part] = tensor
        else:
            floats[key] = tensor.float()
    for module, parts in modules.items():
        floats[f"{module}.weight"] = by_tool(parts, config["quantization_config"])
    plain = tiny()[0].float()
    missing = plain.load_state_dict(floats, strict=False)
    assert not missing.unexpected_keys
    plain.tie_weights()
    with torch.no_grad():
        np.save(HERE / name / "logits.npy", plain(torch.from_numpy(IDS)).logits.numpy())


if __name__ == "__main__":
    for each in SCHEMES:
        make(each)
