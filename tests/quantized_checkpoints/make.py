"""Write the checkpoints next to this file by their own tools, each with the logits of the tool's own dequantization.

In an environment of its own, since the tools fit other versions of transformers as well:
pip install auto-round==0.16.0 compressed-tensors==0.20.0 bitsandbytes==0.50.2 torchao==0.18.0 py-cpuinfo loguru
python make.py [NAME ...]
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    "compressed-tensors-mxfp4": ("llm_compressor", "MXFP4", {}),
}
BITSANDBYTES = {
    "bitsandbytes-nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes-nf4-double": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "bitsandbytes-fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "bitsandbytes-int8": {"load_in_8bit": True},
}
TORCHAO = ("torchao-8", "torchao-4")
MIXED = {
    "q_proj": "W4A16",
    "k_proj": "W8A16",
    "v_proj": "MXFP4A16",
    "o_proj": "NVFP4A16",
    "gate_proj": "INT8",
    "up_proj": "FP8_DYNAMIC",
    "down_proj": "NVFP4A16",
}
"""Presets of compressed-tensors, one for each layer."""


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
    compressor: Any = PackedQuantizationCompressor if "weight_packed" in parts else NaiveQuantizationCompressor
    if settings["format"] == "mxfp4-pack-quantized":
        from compressed_tensors.compressors.mxfp4 import base

        compressor = base.MXFP4PackedCompressor
    return compressor.decompress(parts, scheme)["weight"].float()


def by_module(module: torch.nn.Module) -> torch.Tensor:
    """A loaded layer's weight in f32, as the tool computes it."""
    weight: Any = module.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if type(weight).__name__ == "Int8Params":
        from bitsandbytes.functional import int8_vectorwise_dequant

        return int8_vectorwise_dequant(weight.data, weight.SCB)
    # A scale in f16 is multiplied in f32.
    return (
        weight.to(torch.float32).dequantize() if "Intx" in type(weight).__name__ else weight.dequantize(torch.float32)
    )


def without_f32(folder: Path) -> None:
    """Store in f16 again what the model had in it."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({k: t if "_proj" in k else t.half() for k, t in tensors.items()}, path, metadata)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}, indent=2))


def make_by_transformers(name: str) -> None:
    """By a tool that transformers calls while it loads a model."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name in BITSANDBYTES:
        config: Any = BitsAndBytesConfig(**BITSANDBYTES[name])
    else:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
        from torchao.quantization.granularity import PerGroup

        kind = IntxWeightOnlyConfig(torch.int4, PerGroup(32)) if name == "torchao-4" else Int8WeightOnlyConfig()
        config = TorchAoConfig(kind)
    # In f32 the tool's own dequantization rounds nothing; FP4 is computed in the type of the model.
    dtype = torch.float16 if name == "bitsandbytes-fp4" else torch.float32
    with tempfile.TemporaryDirectory() as plain:
        tiny()[0].save_pretrained(plain)
        model = LlamaForCausalLM.from_pretrained(plain, dtype=dtype, quantization_config=config, device_map="cpu")
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
    without_f32(HERE / name)
    floats = {f"{path}.weight": by_module(module) for path, module in model.named_modules() if path.endswith("_proj")}
    others = {key: tensor.float() for key, tensor in model.state_dict().items() if "_proj" not in key}
    save_logits(name, floats | others)


def make_mixed() -> None:
    """By compressed-tensors alone: each layer in another format."""
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
    from safetensors.torch import save_file

    model, _ = tiny()
    stored, floats, groups = {}, {}, {}
    for key, tensor in model.state_dict().items():
        layer = key.split(".")[-2]
        if layer not in MIXED or key == "lm_head.weight":
            floats[key] = tensor.float()
            if key != "lm_head.weight":
                stored[key] = tensor
            continue
        scheme = preset_name_to_scheme(MIXED[layer], [f"re:.*{layer}"])
        weights = scheme.weights
        if weights.group_size and weights.group_size > 32:
            weights = weights.model_copy(update={"group_size": 32})
            scheme = scheme.model_copy(update={"weights": weights})
        weight = tensor.float()
        grouped = weight.reshape(len(weight), -1, weights.group_size or weight.shape[1])
        parts = {"weight": weight}
        if MIXED[layer].startswith("NVFP4"):
            parts["weight_global_scale"] = generate_gparam(weight.min(), weight.max()).reshape(1)
        parts["weight_scale"], parts["weight_zero_point"] = calculate_qparams(
            grouped.amin(-1), grouped.amax(-1), weights, parts.get("weight_global_scale")
        )
        kind = infer_module_format(torch.nn.Linear, scheme)
        compressor: Any = BaseCompressor.get_value_from_registry(kind.value)
        compressed = compressor.compress(parts, scheme)
        if "weight_global_scale" in compressed:
            # Its compressor computes in bf16.
            codes = unpack_fp4_from_uint8(compressed["weight_packed"], *weight.shape, dtype=torch.float32)
            scales, divisor = compressed["weight_scale"].float(), compressed["weight_global_scale"]
            floats[key] = dequantize(codes, scales, args=weights, global_scale=divisor, dtype=torch.float32)
        else:
            floats[key] = compressor.decompress(dict(compressed), scheme)["weight"].float()
        stored |= {f"{key.removesuffix('weight')}{part}": value.contiguous() for part, value in compressed.items()}
        groups[f"group_{layer}"] = scheme.model_dump(mode="json") | {"format": kind.value}
    folder = HERE / "compressed-tensors-mixed"
    shutil.rmtree(folder, ignore_errors=True)
    model.config.save_pretrained(folder)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}, indent=1))
    save_logits("compressed-tensors-mixed", floats)


def make_int4() -> None:
    """By torchao's class and writer; of its quantizers for Int4Tensor by those that need no GPU."""
    from safetensors.torch import save_file
    from torchao.prototype.gptq import api
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int4Tensor, Int4WeightOnlyConfig
    from transformers import TorchAoConfig

    model, group = tiny()[0], 32
    stored, floats = {}, {}
    for key, tensor in model.state_dict().items():
        if "_proj" not in key:
            floats[key] = tensor.float()
            stored |= {} if key == "lm_head.weight" else {key: tensor}
            continue
        grouped = tensor.float().reshape(len(tensor), -1, group)
        scale = ((grouped.amax(-1) - grouped.amin(-1)).clamp(min=1e-6) / 15).bfloat16()
        zero_point = (grouped.amin(-1) + scale.float() * 8).bfloat16()
        scale, zero_point = scale.T.contiguous(), zero_point.T.contiguous()
        codes = api._int4_row_quantize_zp_precomputed_qparams(tensor, scale.float(), zero_point.float(), group)
        # As pack_int4 of fbgemm_gpu.experimental.gen_ai.quantize does it.
        packed = codes[:, ::2] & 15 | codes[:, 1::2] << 4
        stored[key] = Int4Tensor(packed.contiguous(), scale, zero_point, [1, group], tensor.shape)
        floats[key] = api._int4_row_dequantize_zp(codes, scale.float(), zero_point.float(), group)
    folder = HERE / "torchao-int4"
    shutil.rmtree(folder, ignore_errors=True)
    model.config.save_pretrained(folder)
    tensors, metadata = flatten_tensor_state_dict(stored)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} | metadata)
    settings = TorchAoConfig(Int4WeightOnlyConfig(group_size=group)).to_dict()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}, indent=1))
    save_logits("torchao-int4", floats)


def make(name: str) -> None:
    from auto_round import AutoRound

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
    save_logits(name, floats)


def save_logits(name: str, floats: dict[str, torch.Tensor]) -> None:
    """What the plain model computes with these tensors."""
    plain = tiny()[0].float()
    missing = plain.load_state_dict(floats, strict=False)
    assert not missing.unexpected_keys
    plain.tie_weights()
    with torch.no_grad():
        np.save(HERE / name / "logits.npy", plain(torch.from_numpy(IDS)).logits.numpy())


if __name__ == "__main__":
    own = {"compressed-tensors-mixed": make_mixed, "torchao-int4": make_int4}
    for each in sys.argv[1:] or [*SCHEMES, *BITSANDBYTES, *TORCHAO, *own]:
        if each in own:
            own[each]()
        else:
            make(each) if each in SCHEMES else make_by_transformers(each)
