"""Quantized checkpoints, written from the published layouts in plain numpy, and the floats that they stand for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Quantized(NamedTuple):
    """One matrix: ``(codes - zeros) * scales``."""

    codes: Array
    zeros: Array
    scales: Array
    values: Array
    """f32, by the formula."""
    groups: Array
    """The group of each column."""


def bit_stream(codes: Array, bits: int) -> Array:
    """Words of 32 bits from codes along the last axis, the lowest bits first."""
    each = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    stream = each.reshape(*codes.shape[:-1], -1).astype(np.uint8)
    padding = -stream.shape[-1] % 32
    stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, padding)])
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4").view("<i4")


def integers(
    weight: Array, bits: int, group: int, *, symmetric: bool, shuffled: bool = False, scale: type = np.float16
) -> Quantized:
    """Round a matrix to codes in groups of columns, shuffled or not."""
    rows, columns = weight.shape
    group = columns if group == -1 else group
    groups = np.arange(columns) // group
    if shuffled:
        groups = np.random.default_rng(columns).permutation(groups)
    num_groups = groups.max() + 1
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    codes = np.zeros((rows, columns), np.int64)
    zeros, scales = np.full((rows, num_groups), middle, np.int64), np.zeros((rows, num_groups), scale)
    for number in range(num_groups):
        part = weight[:, groups == number]
        if symmetric:
            found = np.abs(part).max(1) / middle
        else:
            # Some groups have no negative values, and a zero point of 0.
            part = np.where(np.arange(rows)[:, None] % 5 == 0, np.abs(part), part)
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            found = (high - low) / top
            zeros[:, number] = np.clip(np.round(-low / found.astype(scale).astype(np.float32)), 0, top)
        scales[:, number] = found
        steps = scales[:, number, None].astype(np.float32)
        codes[:, groups == number] = np.clip(np.round(part / steps) + zeros[:, number, None], 0, top)
    values = (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups].astype(np.float32)
    return Quantized(codes, zeros, scales, values, groups)


def gptq(
    weight: Array, bits: int = 4, group: int = 32, *, symmetric: bool = False, shuffled: bool = False, version: int = 1
) -> tuple[dict[str, Array], Array]:
    found = integers(weight, bits, group, symmetric=symmetric, shuffled=shuffled)
    qzeros = bit_stream(found.zeros.T, bits)
    if version == 1 and bits == 3:
        qzeros = bit_stream((found.zeros.T - 1) & 7, bits)
    elif version == 1:
        ones = bit_stream(np.ones_like(found.zeros.T), bits)
        qzeros = (qzeros.view("<u4") - ones.view("<u4")).view("<i4")
    return {
        "qweight": np.ascontiguousarray(bit_stream(found.codes, bits).T),
        "qzeros": qzeros,
        "scales": np.ascontiguousarray(found.scales.T),
        "g_idx": found.groups.astype(np.int32),
    }, found.values


def awq_gemm(weight: Array, group: int = 32) -> tuple[dict[str, Array], Array]:
    found = integers(weight, 4, group, symmetric=False)

    def words(codes: Array) -> Array:
        return bit_stream(codes.T.reshape(codes.shape[1], -1, 8)[..., AWQ_ORDER].reshape(codes.shape[1], -1), 4)

    return {
        "qweight": words(found.codes),
        "qzeros": words(found.zeros),
        "scales": np.ascontiguousarray(found.scales.T),
    }, found.values


def awq_gemv(weight: Array, group: int = 64) -> tuple[dict[str, Array], Array]:
    found = integers(weight, 4, group, symmetric=False)
    num_groups = found.zeros.shape[1]
    # Two words at a time for groups of 64.
    words = -(-num_groups // 16) * 2
    padding = [(0, 0), (0, words * 8 - num_groups)]
    return {
        "qweight": bit_stream(found.codes, 4),
        "qzeros": bit_stream(np.pad(found.zeros, padding), 4),
        "scales": np.pad(found.scales, padding),
    }, found.values


def packed(
    weight: Array,
    bits: int = 4,
    group: int = 32,
    *,
    symmetric: bool = True,
    shuffled: bool = False,
    scale: type = np.float16,
) -> tuple[dict[str, Array], Array]:
    found = integers(weight, bits, group, symmetric=symmetric, shuffled=shuffled, scale=scale)
    parts = {
        "weight_packed": bit_stream(found.codes, bits),
        "weight_scale": found.scales,
        "weight_shape": np.array(weight.shape, np.int64),
    }
    if not symmetric:
        parts["weight_zero_point"] = np.ascontiguousarray(bit_stream(found.zeros.T, bits).T)
    if shuffled:
        parts["weight_g_idx"] = found.groups.astype(np.int32)
    return parts, found.values


def int8(weight: Array, *, symmetric: bool = True) -> tuple[dict[str, Array], Array]:
    found = integers(weight, 8, -1, symmetric=symmetric)
    parts = {"weight": (found.codes - 128).astype(np.int8), "weight_scale": found.scales}
    if not symmetric:
        parts["weight_zero_point"] = (found.zeros - 128).astype(np.int8)
    return parts, found.values


def float8(
    weight: Array, block: tuple[int, int] = (128, 128), name: str = "weight_scale_inv"
) -> tuple[dict[str, Array], Array]:
    import torch

    height, width = (size if size > 0 else whole for size, whole in zip(block, weight.shape, strict=True))
    numbers = tuple(np.arange(size) // step for size, step in zip(weight.shape, (height, width), strict=True))
    largest = np.zeros((numbers[0].max() + 1, numbers[1].max() + 1), np.float32)
    np.maximum.at(largest, (numbers[0][:, None], numbers[1][None]), np.abs(weight))
    scales = largest / np.float32(448)
    each = scales[numbers[0][:, None], numbers[1][None]]
    codes = torch.from_numpy(weight / each).to(torch.float8_e4m3fn)
    stored = scales.reshape(-1) if scales.size == 1 else scales
    return {"weight": codes, name: stored}, codes.float().numpy() * each  # type: ignore[dict-item]


def _ct(format_: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _gptq(**settings: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False} | settings


_AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True}


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""The value of every code of 4-bit floats."""


def float4_codes(grouped: Array, scales: Array) -> tuple[Array, Array]:
    """The nearest codes, two in a byte, and what they stand for."""
    codes = np.abs(grouped[..., None] / scales[..., None, None] - E2M1).argmin(-1).astype(np.uint8)
    values = E2M1[codes] * scales[..., None]
    return codes[..., 0::2] | codes[..., 1::2] << 4, values


def nvfp4(weight: Array) -> tuple[dict[str, Array], Array]:
    import torch

    grouped = weight.reshape(len(weight), -1, 16)
    needed = np.abs(grouped).max(-1) / 6
    divisor = np.float32(448 / needed.max())
    scales = torch.from_numpy(needed * divisor).to(torch.float8_e4m3fn)
    codes, values = float4_codes(grouped, scales.float().numpy() / divisor)
    parts = {"weight_packed": codes.reshape(len(weight), -1), "weight_scale": scales}
    return parts | {"weight_global_scale": np.array([divisor])}, values.reshape(weight.shape)  # type: ignore[dict-item]


def mxfp4(weight: Array) -> tuple[dict[str, Array], Array]:
    grouped = weight.reshape(*weight.shape[:-1], -1, 32)
    exponents = np.ceil(np.log2(np.abs(grouped).max(-1) / 6))
    codes, values = float4_codes(grouped, np.exp2(exponents).astype(np.float32))
    stored = codes.reshape(*weight.shape[:-1], -1)
    return {"weight_packed": stored, "weight_scale": (exponents + 127).astype(np.uint8)}, values.reshape(weight.shape)


def bitnet(weight: Array, *, divided: bool = True) -> tuple[dict[str, Array], Array]:
    import torch
    from transformers.integrations.bitnet import pack_weights

    scale = np.float32(np.abs(weight).mean())
    ternary = np.clip(np.round(weight / scale), -1, 1).astype(np.float32)
    packed_ = pack_weights(torch.from_numpy(ternary.copy())).numpy()
    stated = np.array([1 / scale if divided else scale], np.float32)
    return {"weight": packed_, "weight_scale": stated}, ternary * (1 / stated if divided else stated)


class Layout(NamedTuple):
    settings: dict[str, Any]
    """``quantization_config``."""
    make: Callable[[Array], tuple[dict[str, Array], Array]]
    modes: set[str]
    """What the layers become."""
    executed: set[str]
    """What the CPU multiplies with."""


LAYOUTS: dict[str, Layout] = {
    "gptq-4": Layout(_gptq(), gptq, {"int4_asym"}, {"u4"}),
    "gptq-4-sym": Layout(_gptq(sym=True), partial(gptq, symmetric=True), {"int4_sym"}, {"i4"}),
    "gptq-4-v2": Layout(_gptq(checkpoint_format="gptq_v2"), partial(gptq, version=2), {"int4_asym"}, {"u4"}),
    "gptq-4-act-order": Layout(_gptq(desc_act=True), partial(gptq, shuffled=True), {"int4_asym"}, {"u4"}),
    "gptq-4-per-channel": Layout(_gptq(group_size=-1), partial(gptq, group=-1), {"int4_asym"}, {"u4"}),
    "gptq-2": Layout(_gptq(bits=2), partial(gptq, bits=2), {"int4_asym"}, {"u4"}),
    "gptq-3": Layout(_gptq(bits=3), partial(gptq, bits=3), {"int4_asym"}, {"u4"}),
    "gptq-3-sym": Layout(_gptq(bits=3, sym=True), partial(gptq, bits=3, symmetric=True), {"int4_sym"}, {"i4"}),
    "gptq-8": Layout(_gptq(bits=8), partial(gptq, bits=8), {"int8_asym"}, {"u8"}),
    "gptq-8-act-order": Layout(
        _gptq(bits=8, sym=True, desc_act=True),
        partial(gptq, bits=8, symmetric=True, shuffled=True),
        {"int8_sym"},
        {"i8"},
    ),
    "awq-gemm": Layout(_AWQ | {"group_size": 32, "version": "gemm"}, awq_gemm, {"int4_asym"}, {"u4"}),
    "awq-gemv": Layout(_AWQ | {"group_size": 64, "version": "gemv"}, awq_gemv, {"int4_asym"}, {"u4"}),
    "ct-4": Layout(_ct("pack-quantized", num_bits=4), packed, {"int4_sym"}, {"i4"}),
    "ct-4-asym": Layout(_ct("pack-quantized", num_bits=4), partial(packed, symmetric=False), {"int4_asym"}, {"u4"}),
    "ct-4-act-order": Layout(_ct("pack-quantized", num_bits=4), partial(packed, shuffled=True), {"int4_sym"}, {"i4"}),
    "ct-4-f32-scales": Layout(
        _ct("pack-quantized", num_bits=4), partial(packed, scale=np.float32), {"int4_sym"}, {"i4"}
    ),
    "ct-8": Layout(_ct("pack-quantized", num_bits=8), partial(packed, bits=8), {"int8_sym"}, {"i8"}),
    "ct-8-asym": Layout(
        _ct("pack-quantized", num_bits=8), partial(packed, bits=8, symmetric=False), {"int8_asym"}, {"u8"}
    ),
    "ct-int8": Layout(_ct("int-quantized", num_bits=8), int8, {"int8_sym"}, {"i8"}),
    "ct-int8-asym": Layout(_ct("int-quantized", num_bits=8), partial(int8, symmetric=False), {"int8_asym"}, {"u8"}),
    "ct-fp8": Layout(
        _ct("float-quantized", num_bits=8), partial(float8, block=(1, -1), name="weight_scale"), {"fp8_e4m3"}, set()
    ),
    "ct-fp8-block": Layout(
        _ct("float-quantized", num_bits=8, block_structure=[64, 32]),
        partial(float8, block=(64, 32), name="weight_scale"),
        {"fp8_e4m3"},
        set(),
    ),
    "fp8-block": Layout({"quant_method": "fp8", "weight_block_size": [128, 128]}, float8, {"fp8_e4m3"}, set()),
    "ct-nvfp4": Layout(_ct("nvfp4-pack-quantized", num_bits=4), nvfp4, {"nvfp4"}, {"f4e2m1"}),
    "bitnet": Layout({"quant_method": "bitnet"}, bitnet, {"int4_sym"}, {"i4"}),
    "bitnet-multiplied": Layout(
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
        partial(bitnet, divided=False),
        {"int4_sym"},
        {"i4"},
    ),
    "fbgemm": Layout(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        partial(float8, block=(1, -1), name="weight_scale"),
        {"fp8_e4m3"},
        set(),
    ),
    "fp8-tensor": Layout({"quant_method": "fp8"}, partial(float8, block=(-1, -1)), {"fp8_e4m3"}, set()),
}


def quantized(source: Path, target: Path, layout: Layout, also: tuple[str, ...] = ("proj.weight",)) -> dict[str, Array]:
    """Write a checkpoint with its linear layers quantized; returns the tensors of the model that it stands for.

    Args:
        also: Ends of the names of what is quantized next to experts.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    stored: dict[str, Any] = {}
    floats: dict[str, Array] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith(also) and ".experts." not in name:
            stored[name], floats[name] = tensor, tensor.float().numpy()
            continue
        parts, floats[name] = layout.make(tensor.float().numpy())
        module = name.removesuffix(".weight")
        stored |= {
            f"{module}.{part}": values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
            for part, values in parts.items()
        }
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": layout.settings}))
    return floats


def with_mxfp4_experts(source: Path, target: Path) -> dict[str, Array]:
    """Write a gpt-oss checkpoint as it is published; returns its tensors by transformers' own dequantization."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    shutil.copytree(source, target)
    stored, floats = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name], floats[name] = tensor, tensor.float().numpy()
            continue
        parts, _ = mxfp4(np.ascontiguousarray(tensor.float().numpy().swapaxes(1, 2)))
        scales = torch.from_numpy(parts["weight_scale"])
        blocks = torch.from_numpy(parts["weight_packed"]).reshape(*scales.shape, 16)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        floats[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    return floats


def torch_logits(directory: Path, floats: dict[str, Array], ids: Array) -> Array:
    """Logits of the plain model's class in f32 with these tensors."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(directory)
    vars(config).pop("quantization_config", None)
    tensors = {name: torch.from_numpy(np.array(values, np.float32)) for name, values in floats.items()}
    model, found = AutoModelForCausalLM._model_mapping[type(config)].from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
    )
    assert not found["unexpected_keys"]
    assert set(found["missing_keys"]) <= {"lm_head.weight"}
    with torch.no_grad():
        logits: Array = model.eval()(torch.from_numpy(ids)).logits.numpy()
    return logits
