"""Tensors of quantized weights as their formats do not have them: each is refused by name, before any trace."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_fixture import LAYOUTS, Array

from llmcompress.errors import ModelError
from llmcompress.loaders.quantized.codes import float_bytes
from llmcompress.loaders.quantized.constants import put_constants
from llmcompress.loaders.quantized.experts import halves_joined, one_expert
from llmcompress.loaders.quantized.packed import PackedWeight, dequantized
from llmcompress.loaders.quantized.slim_stacks import SlimStacks
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.tensors import read_checkpoint

CHECKPOINTS = Path(__file__).parent / "quantized_checkpoints"
MODULE = "model.layers.0.self_attn.k_proj"
Change = Callable[[dict[str, Any]], dict[str, Any]]


def of_tool(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """One layer of a checkpoint that its own tool has written, and its settings."""
    from safetensors.torch import load_file

    tensors = load_file(CHECKPOINTS / name / "model.safetensors")
    settings = json.loads((CHECKPOINTS / name / "config.json").read_text())["quantization_config"]
    return {key.removeprefix(f"{MODULE}."): value for key, value in tensors.items() if key.startswith(MODULE)}, settings


def of_layout(name: str, shape: tuple[int, int] = (64, 128)) -> tuple[dict[str, Any], dict[str, Any]]:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parts = LAYOUTS[name].make(weight)[0]
    tensors = {
        key: value if isinstance(value, torch.Tensor) else torch.from_numpy(value) for key, value in parts.items()
    }
    return tensors, LAYOUTS[name].settings


def repacked(
    folder: Path, tensors: dict[str, Any], settings: dict[str, Any], *, allow_nonfinite: bool = False
) -> dict[str, PackedWeight]:
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "dtype": "float16", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    found = source_weights(resolve(folder), read_checkpoint(folder))
    return {} if found is None else found.repacked(allow_nonfinite=allow_nonfinite)


def named(parts: dict[str, Any], module: str = MODULE) -> dict[str, Any]:
    return {f"{module}.{part}": tensor for part, tensor in parts.items()}


def instead(part: str, change: Callable[[Any], Any]) -> Change:
    return lambda parts: {name: change(tensor) if name == part else tensor for name, tensor in parts.items()}


def said(**fields: Any) -> Change:
    """Another quant_state."""

    def change(parts: dict[str, Any]) -> dict[str, Any]:
        name = "weight.quant_state.bitsandbytes__nf4"
        state = json.loads(bytes(parts[name].tolist())) | fields
        return parts | {name: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}

    return change


def under(name: str) -> Change:
    return lambda parts: parts | {name: next(iter(parts.values())).clone()}


def of_half_the_rows(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor if name == "_weight_qdata" else tensor[:, :64] for name, tensor in parts.items()}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bitsandbytes-nf4", said(shape=[128, 127]), "its quant_state says 128 x 127 codes of 4 bits"),
        ("bitsandbytes-nf4", said(shape=[128, "128"]), "does not say quant_type, shape, blocksize and dtype"),
        ("bitsandbytes-nf4", said(shape=128), "does not say quant_type, shape, blocksize and dtype"),
        ("bitsandbytes-nf4", said(quant_type="fp4"), "does not say quant_type, shape, blocksize and dtype"),
        ("bitsandbytes-nf4", said(blocksize=0), "does not say quant_type, shape, blocksize and dtype"),
        ("bitsandbytes-nf4", said(dtype="int8"), "does not say quant_type, shape, blocksize and dtype"),
        ("bitsandbytes-nf4", said(note="x" * 10_000), "does not say quant_type, shape, blocksize and dtype"),
        ("bitsandbytes-nf4", said(blocksize=128), r"absmax' has the shape \[256\]; the format needs \[128\]"),
        ("bitsandbytes-nf4-double", instead("weight.absmax", lambda t: t.float()), "absmax' is F32; U8 is needed"),
        ("bitsandbytes-int8", instead("SCB", lambda t: t[1:]), r"SCB' has the shape \[127\]; the format needs \[128\]"),
        (
            "torchao-4",
            under("_weight_scale_and_zero"),
            f"the weight of {MODULE} is an Int4TilePackedTo4dTensor, whose tiles are those of CUDA's kernels",
        ),
        (
            "torchao-int4",
            instead("_weight_qdata", lambda t: t.view(torch.int32)),
            f"the weight of {MODULE} is an Int4PlainInt32Tensor, whose words are those of Intel GPUs or Ascend NPUs",
        ),
        (
            "torchao-int4",
            under("_weight_act_pre_scale"),
            f"the weight of {MODULE} is multiplied with _weight_act_pre_scale, which scales activations",
        ),
        ("torchao-int4", of_half_the_rows, r"\[4, 64\]; \[groups that divide 128, 128\]"),
        ("torchao-int4", instead("_weight_zero_point", lambda t: t[1:]), r"\[3, 128\]; the format needs \[4, 128\]"),
        (
            "torchao-int4",
            instead("_weight_scale", lambda t: t * 0),
            f"a scale of {MODULE} is 0, by which what is added",
        ),
        ("torchao-4", instead("_weight_scale", lambda t: t[:, :3]), r"\[128, 3\]; \[128, groups that divide 128\]"),
        ("torchao-4", instead("_weight_qdata", lambda t: t * 0 + 8), f"codes of {MODULE} are no 4 bits"),
        ("torchao-4", instead("_weight_zero_point", lambda t: t * 0 - 9), f"zero points of {MODULE} are no 4 bits"),
        ("compressed-tensors-mxfp4", instead("weight_packed", lambda t: t[:, :8]), "groups of 32 do not divide the 16"),
        (
            "compressed-tensors-mxfp4",
            instead("weight_scale", lambda t: t * 0 + 255),
            "weight_scale' has scales that are",
        ),
        ("ct-nvfp4", instead("weight_global_scale", lambda t: t * 0), f"weight_global_scale of {MODULE} is 0"),
        ("ct-nvfp4", instead("weight_scale", lambda t: t[:, :3]), r"\[64, 3\]; the format needs \[64, 8\]"),
        ("bitnet", instead("weight_scale", lambda t: t * 0), f"the scale of {MODULE} is 0, by which it divides"),
        ("bitnet", instead("weight", lambda t: t[:, 1:]), "the 127 columns of .* are no whole bytes of 4 bits"),
    ],
)
def test_what_the_format_does_not_have_is_refused(name: str, change: Change, message: str, tmp_path: Path) -> None:
    parts, settings = of_layout(name) if name in LAYOUTS else of_tool(name)
    with pytest.raises(ModelError, match=message):
        repacked(tmp_path, named(change(parts)), settings)


def test_a_layout_for_one_device_comes_with_what_to_do(tmp_path: Path) -> None:
    parts, settings = of_tool("torchao-4")
    with pytest.raises(ModelError) as caught:
        repacked(tmp_path, named(under("_weight_scale_and_zero")(parts)), settings)
    assert "Int4WeightOnlyConfig and int4_packing_format='plain'" in caught.value.hint


def test_nothing_is_added_to_symmetric_int4(tmp_path: Path) -> None:
    """As Float8DynamicActivationInt4WeightConfig makes it."""
    parts, settings = of_tool("torchao-int4")
    settings = json.loads(json.dumps(settings).replace("Int4WeightOnly", "Float8DynamicActivationInt4Weight"))
    parts = instead("_weight_zero_point", lambda t: t * 0)(parts)
    (weight,) = repacked(tmp_path, named(parts), settings).values()
    bytes_ = parts["_weight_qdata"].numpy()
    codes = np.stack([bytes_ << 4 >> 4, bytes_ >> 4], axis=-1).reshape(len(bytes_), -1)
    assert (weight.element, weight.zero_points, weight.rounding) == ("i4", None, 0)
    assert (dequantized(weight) == codes * np.repeat(parts["_weight_scale"].float().numpy().T, 32, axis=1)).all()


def test_scales_that_are_nan_go_on_where_that_is_allowed(tmp_path: Path) -> None:
    parts, settings = of_tool("compressed-tensors-mxfp4")
    parts["weight_scale"][3, 1] = 255
    with pytest.raises(ModelError, match="has scales that are NaN") as caught:
        repacked(tmp_path, named(parts), settings)
    assert "`allow_nonfinite` goes on" in caught.value.hint
    (weight,) = repacked(tmp_path, named(parts), settings, allow_nonfinite=True).values()
    assert np.argwhere(np.isnan(dequantized(weight))).tolist() == [[3, column] for column in range(32, 64)]


def test_a_stack_whose_scales_are_nan_goes_on_where_that_is_allowed(tmp_path: Path) -> None:
    scales = torch.full((2, 3, 4), 127, dtype=torch.uint8)
    scales[1, 2, 3] = 255
    tensors = {"a_blocks": torch.zeros((2, 3, 4, 16), dtype=torch.uint8), "a_scales": scales}
    with pytest.raises(ModelError, match="tensor 'a_scales' has scales that are NaN"):
        repacked(tmp_path, tensors, {"quant_method": "mxfp4"})
    (weight,) = repacked(tmp_path, tensors, {"quant_method": "mxfp4"}, allow_nonfinite=True).values()
    assert np.isnan(dequantized(weight)).sum() == 32


def test_stacks_that_the_format_does_not_have_are_refused(tmp_path: Path) -> None:
    blocks = torch.zeros((2, 3, 4, 16), dtype=torch.uint8)
    for shape, message in (
        ((2, 12, 16), r"\[2, 12, 16\]; experts, rows, groups and 16 bytes are needed"),
        ((2, 3, 8, 8), r"\[2, 3, 8, 8\]; experts, rows"),
        ((3, 2, 4, 16), r"_scales' has the shape \[2, 3, 4\]; the format needs \[3, 2, 4\]"),
    ):
        tensors = {"a_blocks": blocks.reshape(shape), "a_scales": torch.zeros((2, 3, 4), dtype=torch.uint8)}
        with pytest.raises(ModelError, match=message):
            repacked(tmp_path, tensors, {"quant_method": "mxfp4"})


def experts(folder: Path, *kinds: tuple[str, int]) -> dict[str, PackedWeight]:
    """One stack of experts: of each its layout and its number."""
    tensors: dict[str, Any] = {}
    for name, number in kinds:
        tensors |= named(of_layout(name)[0], f"model.layers.0.mlp.experts.{number}.down_proj")
    return repacked(folder, tensors, LAYOUTS[kinds[0][0]].settings)


def test_experts_that_make_no_stack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"experts of .*experts.down_proj are not all quantized alike: 1 are missing"):
        experts(tmp_path, ("gptq-4", 0), ("gptq-4", 2))
    with pytest.raises(ModelError, match="are not all quantized alike: 2 kinds"):
        experts(tmp_path, ("ct-4", 0), ("ct-8", 1))
    with pytest.raises(ModelError, match=r"the columns of .* are in another order for each expert"):
        experts(tmp_path, ("gptq-4-act-order", 0), ("gptq-4-act-order", 1))


def test_experts_with_and_without_zero_points_make_one_stack(tmp_path: Path) -> None:
    (stack,) = experts(tmp_path, ("gptq-4", 0), ("gptq-4-sym", 1)).values()
    assert (stack.element, stack.shape) == ("u4", (2, 64, 128))
    (tmp_path / "one").mkdir()
    for number, name in enumerate(("gptq-4", "gptq-4-sym")):
        (alone,) = repacked(tmp_path / "one", named(of_layout(name)[0]), LAYOUTS[name].settings).values()
        assert (dequantized(stack)[number] == dequantized(alone)).all()


def test_experts_with_scales_of_different_precision_make_one_stack(tmp_path: Path) -> None:
    (stack,) = experts(tmp_path, ("ct-4", 0), ("ct-4-f32-scales", 1)).values()
    assert stack.scales.dtype == np.float32


def test_stacks_of_rounded_weights_come_with_what_was_not_rounded() -> None:
    """Halves of two experts, of which one was rounded: on top of each other, expert by expert, and each alone."""
    generator = np.random.default_rng(0)
    halves, floats = [], []
    for number in range(2):
        exact = generator.standard_normal((2, 3, 32)).astype(np.float32)
        short = exact.astype(np.float16)
        half = PackedWeight(short.view(np.uint8).reshape(6, -1), "f16", exact.shape, np.ones((6, 1), np.float16))
        halves.append(half._replace(unrounded=functools.partial(np.copy, exact)) if number else half)
        floats.append(exact if number else short.astype(np.float32))
    whole = halves_joined(halves)
    expected = np.concatenate(floats, axis=1)
    assert (dequantized(whole) == expected).all()
    for number in range(2):
        assert (dequantized(one_expert(whole, number)) == expected[number]).all()
    plain = whole._replace(unrounded=None)
    assert np.abs(dequantized(plain) - expected).max() < 2e-3
    assert (dequantized(one_expert(plain, 1)) == dequantized(plain)[1]).all()


@pytest.mark.parametrize("rows", [3, 64])
def test_blocks_that_cross_rows_are_dequantized(rows: int, tmp_path: Path) -> None:
    """As bitsandbytes computes it: blocks of 64 in a weight of 96 columns."""
    generator = np.random.default_rng(0)
    parts, settings = of_tool("bitsandbytes-nf4")
    codes = generator.integers(0, 16, rows * 96).astype(np.uint8)
    absmax = generator.random(-(-rows * 96 // 64)).astype(np.float32)
    parts = said(shape=[rows, 96], dtype="bfloat16")(parts)
    parts |= {
        "weight": torch.from_numpy(codes[0::2] << 4 | codes[1::2])[:, None],
        "weight.absmax": torch.from_numpy(absmax),
    }
    (weight,) = repacked(tmp_path, named(parts), settings).values()
    values: Array = parts["weight.quant_map"].numpy()[codes] * np.repeat(absmax, 64)[: rows * 96]
    expected = torch.from_numpy(values).bfloat16().float().numpy().reshape(rows, 96)
    assert weight.element == "bf16"
    assert (dequantized(weight) == expected).all()


def test_floats_are_rounded_as_torch_does() -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    for element, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)):
        found = float_bytes(values, element)  # type: ignore[arg-type]
        assert (found == torch.from_numpy(values).to(dtype).view(torch.uint8).numpy()).all()


@pytest.mark.parametrize("name", ["bitnet", "bitnet-multiplied", "ct-nvfp4", "fbgemm"])
def test_the_values_are_those_that_the_layout_says(name: str, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    (found,) = repacked(tmp_path, named(of_layout(name)[0]), LAYOUTS[name].settings).values()
    expected = LAYOUTS[name].make(weight)[1]
    # A scale that is computed is rounded to f32 on either side.
    assert np.abs(dequantized(found) - expected).max() <= 2**-22 * np.abs(expected).max()
    assert found.rounding <= 2**-24


def test_a_weight_that_the_graph_does_not_multiply_by_is_refused(tmp_path: Path) -> None:
    import openvino as ov
    from openvino import opset13 as ops

    weights = repacked(tmp_path, named(of_layout("ct-4")[0]), LAYOUTS["ct-4"].settings)
    name = next(iter(weights))
    given = ops.parameter(ov.PartialShape([64, 128]), ov.Type.f32)
    constant = ops.constant(np.ones((64, 128), np.float32))
    model = ov.Model([ops.result(ops.add(given, constant))], [given], "model")
    with pytest.raises(
        ModelError, match=f"1 quantized weights are not in the converted graph as they are stored: {name}"
    ):
        put_constants(model, weights, {}, SlimStacks({}, {}, {}))
    with pytest.raises(ModelError, match=f"the quantized weight {name} goes into Add, not into a linear layer"):
        put_constants(model, weights, {constant.data.ctypes.data: name}, SlimStacks({}, {}, {}))
