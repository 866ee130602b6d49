"""ONNX files: their weights go into transformers' class, their codes come through as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import FakeHub, running, use
from onnx_fixture import (
    BFLOAT16,
    FLOAT,
    INT4,
    UINT4,
    UINT8,
    Array,
    field,
    node,
    one_layer,
    outside,
    tensor,
    write_onnx,
)
from test_quantized_sources import EXACT, run, wikitext

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import run as run_command
from llmcompress.cli.compress import default_output_name
from llmcompress.cli.dry_run import forecast_source
from llmcompress.errors import ModelError, SecurityError, UsageError
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.quantized.onnx.file import read_graph
from llmcompress.loaders.quantized.onnx.source import local_onnx
from llmcompress.loaders.quantized.onnx.weights import onnx_weights
from llmcompress.loaders.quantized.packed import PackedWeight, dequantized
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.scan import scan
from llmcompress.loaders.source import source_checkpoint
from llmcompress.spec import Access, EvalSpec, load_recipe
from llmcompress.system.progress import silent

MODELS = Path(__file__).parent / "onnx_models"
IDS = np.arange(1, 33).reshape(2, 16)
CONFIG = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
DOWN = "model.layers.0.mlp.down_proj.weight"
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("name", "executed"),
    [("genai-int4", {"i4"}), ("optimum-nbits", {"u4"}), ("optimum-qdq", {"u4"}), ("optimum-int8", {"i8"})],
)
def test_the_logits_are_those_of_onnxruntime(name: str, executed: set[str]) -> None:
    expected = np.load(MODELS / name / "logits.npy")
    loaded = llmcompress.load(MODELS / name / "model.onnx", tokenizer=False)
    logits, found = run(loaded.model, IDS)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    assert found - {"f16", "f32", "bf16"} == executed
    exact, found = run(loaded.dequantized().model, IDS)
    assert np.abs(exact - expected).max() <= EXACT * np.abs(expected).max()
    assert found <= {"f16", "f32", "bf16"}


@pytest.mark.slow
def test_one_command_makes_an_artifact_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = MODELS / "genai-int4", tmp_path / "out"
    predicted = forecast_source(str(source), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent)
    assert "8 weights are ONNX MatMulNBits 4 bits; taken exactly" in predicted.notes
    assert run_command(["compress", str(source), "-o", str(output)]) == 0
    assert "8 of ONNX MatMulNBits 4 bits; every weight exactly" in capsys.readouterr().out
    manifest = read_manifest(output)
    assert manifest.kept is not None
    assert (manifest.kept.num_layers, manifest.kept.executed) == (8, {"int4_sym": "i4"})
    assert predicted.size_bytes == pytest.approx((output / "openvino_model.bin").stat().st_size, rel=0.02)
    files = {file.path for file in manifest.provenance.files}
    assert files == {"config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"}
    assert manifest.provenance.weight_bytes == sum(path.stat().st_size for path in source.glob("model.onnx*"))
    assert manifest.provenance.quantization is not None
    assert manifest.provenance.quantization.settings["producer"] == "onnxruntime-genai"
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    assert default_output_name(str(source / "model.onnx"), "keep") == "model-keep-ov"
    spec = EvalSpec(dataset=str(wikitext(tmp_path)), num_windows=2, seq_len=64, precision="pinned")
    report = llmcompress.evaluate(output, spec, reference=source)
    assert report.divergence is not None
    assert report.divergence.kl_divergence.value < 1e-8


def test_a_head_with_codes_of_its_own_is_not_tied(tmp_path: Path) -> None:
    source = resolve(MODELS / "optimum-qdq")
    assert json.loads((MODELS / "optimum-qdq" / "config.json").read_text())["tie_word_embeddings"]
    assert source.config["tie_word_embeddings"] is False
    assert source.config["quantization_config"]["types"] == {"DequantizeLinear 4 bits": 8, "F32": 1}


# What the operations compute, from https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md and
# https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html.


def weight(path: Path, name: str = DOWN, **config: Any) -> PackedWeight:
    found = local_onnx(path, CONFIG | config)
    scan(found.checkpoint)
    made = onnx_weights(found.config, found.checkpoint)
    stored = {each.name: each for each in made.weights}
    packed = stored[name].repack(made.mapped.read)
    assert (packed.shape, packed.group_size) == (stored[name].shape, stored[name].group_size)
    return packed


def nibbles(codes: Array) -> Array:
    """Two codes in a byte along the last axis, which may be odd."""
    padded = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    return (padded[..., 0::2] | padded[..., 1::2] << 4).astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["", "codes", "numbers"])
def test_products_of_blocks(bits: int, zeros: str, tmp_path: Path) -> None:
    rows, columns, block = 6, 80, 32
    blocks = 3
    codes = RANDOM.integers(0, 2**bits, (rows, blocks, block)).astype(np.uint8)
    scales = RANDOM.random((rows, blocks)).astype(np.float32)
    points = RANDOM.integers(0, 2**bits, (rows, blocks)).astype(np.uint8)
    if zeros == "numbers":
        points = points + np.float32(0.25)
    parts = 8 // bits
    packed = sum(codes[..., n::parts] << bits * n for n in range(parts)).astype(np.uint8)
    padded = np.pad(points.astype(np.uint8), [(0, 0), (0, -blocks % parts)])
    stored = sum(padded[:, n::parts] << bits * n for n in range(parts)).astype(np.uint8)
    inputs = {"x": None, "B": tensor("B", packed), "s": tensor("s", scales.reshape(-1))}
    if zeros:
        inputs["z"] = tensor("z", stored.reshape(-1) if zeros == "codes" else points)
    path = one_layer(tmp_path / "m.onnx", "MatMulNBits", inputs, K=columns, N=rows, bits=bits, block_size=block)
    middle = 2 ** (bits - 1)
    right = (codes.astype(np.float32) - (points[..., None] if zeros else middle)) * scales[..., None]
    found = weight(path)
    assert np.array_equal(dequantized(found), right.reshape(rows, -1)[:, :columns])
    assert found.element == {2: "u4", 4: "u4", 8: "u8"}[bits] if zeros else {2: "u4", 4: "i4", 8: "i8"}[bits]


@pytest.mark.parametrize("kind", ["U8", "I8", "U4", "I4"])
@pytest.mark.parametrize("groups", ["all", "rows", "blocks"])
@pytest.mark.parametrize("has_zeros", [True, False])
def test_dequantized_weights(kind: str, groups: str, has_zeros: bool, tmp_path: Path) -> None:
    rows, columns, block = 6, 64, 32
    low, bits = (-(2 ** (int(kind[1]) - 1)), int(kind[1])) if kind[0] == "I" else (0, int(kind[1]))
    shape = {"all": (), "rows": (rows,), "blocks": (columns // block, rows)}[groups]
    codes = RANDOM.integers(low, low + 2**bits, (columns, rows))
    zeros = np.array(RANDOM.integers(low, low + 2**bits, shape))
    scales = np.array(RANDOM.random(shape), np.float32)

    def stored(name: str, values: Array) -> bytes:
        if bits == 8:
            return tensor(name, values.astype(np.uint8 if kind[0] == "U" else np.int8))
        flat = nibbles((values.reshape(1, -1) & 15).astype(np.uint8))
        return tensor(name, flat, UINT4 if kind[0] == "U" else INT4, values.shape)

    dequantize = node(
        "DequantizeLinear", "dq", ["W", "s", *(["z"] if has_zeros else [])], ["floats"],
        axis=0 if groups == "blocks" else 1, block_size=block if groups == "blocks" else 0,
    )  # fmt: skip
    product = node("MatMul", "/model/layers.0/mlp/down_proj/MatMul", ["x", "floats"], ["y"])
    tensors = [stored("W", codes), tensor("s", scales), *([stored("z", zeros)] if has_zeros else [])]
    found = weight(write_onnx(tmp_path / "m.onnx", [dequantize, product], tensors))
    spread = (lambda each: np.repeat(each, block, axis=0)) if groups == "blocks" else (lambda each: each)
    right = (codes - (spread(zeros) if has_zeros else 0)).astype(np.float32) * spread(scales)
    assert np.array_equal(dequantized(found), right.T)
    assert (found.zero_points is None) == (kind[0] == "I" and not has_zeros)


@pytest.mark.parametrize("kind", ["MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_products_of_integers(kind: str, tmp_path: Path) -> None:
    codes = RANDOM.integers(0, 256, (64, 6)).astype(np.uint8)
    scale, zero = np.array(0.25, np.float32), np.array(130, np.uint8)
    names = {
        "MatMulInteger": ["x", "W", "xz", "z"],
        "DynamicQuantizeMatMul": ["x", "W", "s", "z"],
        "MatMulIntegerToFloat": ["x", "W", "xs", "s", "xz", "z"],
    }[kind]
    nodes = [node(kind, f"/model/layers.0/mlp/down_proj/{kind}", names, ["y"])]
    nodes += [node("Cast", "c", ["y"], ["f"]), node("Mul", "m", ["xs", "s"], ["both"])]
    nodes += [node("Mul", "last", ["f", "both"], ["out"])]
    tensors = [tensor("W", codes), tensor("s", scale), tensor("z", zero)]
    found = weight(write_onnx(tmp_path / "m.onnx", nodes, tensors))
    assert np.array_equal(dequantized(found), (codes.T - np.float32(130)) * scale)


def test_floats_in_every_order_and_type(tmp_path: Path) -> None:
    values = RANDOM.standard_normal((6, 64)).astype(np.float32)
    short = values.view(np.uint32) >> 16
    for kind, stored, right in (
        (FLOAT, values, values),
        (10, values.astype(np.float16), values.astype(np.float16)),
        (BFLOAT16, short.astype(np.uint16), (short << 16).view(np.float32)),
    ):
        made = {"x": None, "W": tensor("W", stored, kind)}
        assert np.array_equal(dequantized(weight(one_layer(tmp_path / "a.onnx", "Gemm", made, transB=1))), right)
        made = {"x": None, "W": tensor("W", np.ascontiguousarray(stored.T), kind)}
        assert np.array_equal(dequantized(weight(one_layer(tmp_path / "b.onnx", "MatMul", made))), right)
    moved = [node("Transpose", "t", ["model.layers.0.mlp.down_proj.weight"], ["W"]), node("Cast", "c", ["W"], ["V"])]
    moved += [node("MatMul", "node_MatMul_7", ["x", "V"], ["y"])]
    path = write_onnx(tmp_path / "c.onnx", moved, [tensor("model.layers.0.mlp.down_proj.weight", values)])
    assert np.array_equal(dequantized(weight(path)), values)
    one_by_one = field(1, 6) + field(1, 64) + field(2, FLOAT) + field(8, "W")
    one_by_one += b"".join(b"\x25" + number.tobytes() for number in values.reshape(-1))
    made = {"x": None, "W": one_by_one}
    assert np.array_equal(dequantized(weight(one_layer(tmp_path / "d.onnx", "Gemm", made, transB=1))), values)


def test_embeddings_in_blocks(tmp_path: Path) -> None:
    codes = RANDOM.integers(0, 16, (8, 64)).astype(np.uint8)
    scales = RANDOM.random((8, 2)).astype(np.float32)
    for kind, zero in ((UINT8, 8), (UINT4, 0)):
        stored = tensor("E_Q4", nibbles(codes), kind, (8, 32) if kind == UINT8 else (8, 64))
        made = node(
            "GatherBlockQuantized", "/model/embed_tokens/Gather_Q4", ["E_Q4", "ids", "s"], ["y"],
            bits=4, block_size=32, quantize_axis=1,
        )  # fmt: skip
        path = write_onnx(tmp_path / "m.onnx", [made], [stored, tensor("s", scales)])
        right = (codes.astype(np.float32) - zero) * np.repeat(scales, 32, axis=1)
        assert np.array_equal(dequantized(weight(path, "model.embed_tokens.weight")), right)


def test_layers_that_an_exporter_put_together_or_took_apart(tmp_path: Path) -> None:
    values = RANDOM.standard_normal((64 + 32 + 32, 64)).astype(np.float32)
    bias = RANDOM.standard_normal(128).astype(np.float32)
    name = "/model/layers.0/attn/qkv_proj/"
    nodes = [node("Gemm", f"{name}MatMul", ["x", "W"], ["y"], transB=1), node("Add", f"{name}Add", ["y", "b"], ["z"])]
    path = write_onnx(tmp_path / "m.onnx", nodes, [tensor("W", values), tensor("b", bias)])
    found = local_onnx(path, CONFIG)
    made = onnx_weights(found.config, found.checkpoint)
    prefix = "model.layers.0.self_attn"
    for part, span in (("q_proj", slice(64)), ("k_proj", slice(64, 96)), ("v_proj", slice(96, 128))):
        assert np.array_equal(dequantized(weight(path, f"{prefix}.{part}.weight")), values[span])
        assert np.array_equal(made.floats()[f"{prefix}.{part}.bias"], bias[span])
    assert np.array_equal(dequantized(weight(path, f"{prefix}.qkv_proj.weight", model_type="phi3")), values)
    with pytest.raises(ModelError, match=r"has 128 rows, and config.json gives \[64, 64, 64\] for queries"):
        weight(path, num_key_value_heads=4)
    nodes = [
        node("Gemm", f"/model/layers.0/mlp/{part}_proj/MatMul", ["x", part], [f"y{part}"], transB=1)
        for part in ("gate", "up")
    ]
    halves = [tensor("gate", values[:64]), tensor("up", values[64:])]
    path = write_onnx(tmp_path / "n.onnx", nodes, halves)
    whole = weight(path, "model.layers.0.mlp.gate_up_proj.weight", model_type="phi3")
    assert np.array_equal(dequantized(whole), values)
    halves = [tensor("gate", values[:64]), tensor("up", values[64:].astype(np.float16))]
    with pytest.raises(ModelError, match=r"up_proj.weight are one layer of this class, and not stored alike"):
        weight(write_onnx(tmp_path / "n.onnx", nodes, halves), model_type="phi3")


def test_the_one_that_gemmas_norms_add_is_taken_out(tmp_path: Path) -> None:
    values = RANDOM.standard_normal(64).astype(np.float32)
    product = node("MatMul", "/lm_head/MatMul", ["n", "W"], ["y"])
    head = tensor("W", RANDOM.standard_normal((64, 8)).astype(np.float32))
    for norm, stored in (
        ([node("Mul", "/model/norm/Mul_1", ["x", "onnx::Mul_7"], ["n"])], tensor("onnx::Mul_7", values + 1)),
        (
            [
                node("Add", "/model/norm/Add_1", ["model.norm.weight", "one"], ["w"]),
                node("Mul", "/model/norm/Mul_1", ["x", "w"], ["n"]),
            ],
            tensor("model.norm.weight", values),
        ),
    ):
        one = tensor("one", np.array(1, np.float32))
        path = write_onnx(tmp_path / "m.onnx", [*norm, product], [head, stored, one])
        found = local_onnx(path, CONFIG | {"model_type": "gemma2"})
        # 1 was added, and rounded to f32.
        assert np.allclose(
            onnx_weights(found.config, found.checkpoint).floats()["model.norm.weight"], values, atol=3e-7
        )


# Which file is meant.


def test_several_files_and_the_folder_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = MODELS / "optimum-nbits"
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    shutil.copy(small / "config.json", folder)
    for name in ("model.onnx", "model_q4.onnx"):
        shutil.copy(small / "model.onnx", folder / "onnx" / name)
    with pytest.raises(UsageError, match="there are 2 ONNX models") as caught:
        resolve(folder)
    assert "name one of these with `file`: onnx/model.onnx, onnx/model_q4.onnx" in caught.value.hint
    with pytest.raises(UsageError, match=r"there is no ONNX file 'other.onnx'"):
        resolve(folder, Access(file="other.onnx"))
    with pytest.raises(UsageError, match="`merge_adapter` has no effect on an ONNX file"):
        resolve(folder / "onnx" / "model.onnx", Access(merge_adapter=True))
    with pytest.raises(UsageError, match="`file` has no effect on a single file"):
        resolve(folder / "onnx" / "model.onnx", Access(file="model.onnx"))
    expected = source_checkpoint(resolve(small)).tensors
    assert expected
    for given, access in (
        (folder, Access(file="onnx/model_q4.onnx")),
        (folder, Access(file="model_q4.onnx")),
        (folder / "onnx" / "model_q4.onnx", Access()),
        (folder / "onnx", Access(file="model_q4.onnx")),
    ):
        source = resolve(given, access)
        assert source.path == folder
        assert source.container is not None
        assert source.container.files == ("model_q4.onnx",)
        assert {name: tensor.shape for name, tensor in source.container.tensors.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
    files = {f"onnx/{name}": (small / "model.onnx").read_bytes() for name in ("model.onnx", "model_q4.onnx")}
    other = MODELS / "genai-int4"
    files |= {f"cpu/int4/{path.name}": path.read_bytes() for path in other.iterdir() if path.suffix != ".npy"}
    with running(FakeHub(files=files | {"config.json": (small / "config.json").read_bytes()})) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        source = resolve("acme/tiny", Access(file="onnx/model_q4.onnx"))
        assert (source.kind, source.folder, source.config["model_type"]) == ("hub", "", "llama")
        assert fetch_weights(source).container == source.container
        source = resolve("acme/tiny", Access(file="cpu/int4/model.onnx"))
        assert (source.folder, source.config["model_type"]) == ("cpu/int4", "qwen3")
        assert source.container is not None
        # The graph alone is needed to say what there is.
        assert sorted(path.name for path in source.path.iterdir()) == ["config.json", "model.onnx"]
        predicted = forecast_source(
            "acme/tiny", load_recipe("keep"), tmp_path / "no", Access(file="cpu/int4/model.onnx"), "llmcompress", silent
        )
        fetched = fetch_weights(source)
        assert (fetched.path / "tokenizer.json").is_file()
        report = llmcompress.compress("acme/tiny", "keep", tmp_path / "out", file="cpu/int4/model.onnx")
        assert report.layers
        assert {layer.mode for layer in report.layers} == {layer.mode for layer in predicted.layers}
        assert report.provenance.id == "acme/tiny"
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"there is no config.json next to it, which says what the model is"):
        resolve(folder / "onnx" / "model.onnx")


# Hostile and damaged files.

BYTES = np.zeros((6, 2, 16), np.uint8)
SCALES = np.ones((6, 2), np.float32)
NBITS = {"K": 64, "N": 6, "bits": 4, "block_size": 32}


def blocks(path: Path, **changes: Any) -> Path:
    inputs = {"x": None, "B": tensor("B", BYTES), "s": tensor("s", SCALES)} | changes.pop("inputs", {})
    return one_layer(path, changes.pop("kind", "MatMulNBits"), inputs, **NBITS | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "MatMulNBits .* has 3 bits, which is not read"),
        ({"K": 0}, "has 6 x 0 codes in blocks of 32"),
        ({"block_size": -32}, "has 6 x 64 codes in blocks of -32"),
        ({"block_size": 16}, r"has \[6, 2, 16\] bytes for 6 x 64 codes in blocks of 16"),
        ({"inputs": {"B": None}}, "codes in blocks of 32"),
        ({"inputs": {"s": None}}, "scales that are no constants"),
        ({"inputs": {"s": tensor("s", SCALES[:5])}}, "not one for each of 6 x 2 groups"),
        ({"inputs": {"z": tensor("z", BYTES[0])}}, "not one for each of 6 x 2 groups"),
        ({"inputs": {"z": None, "g": tensor("g", np.zeros(64, np.int64))}}, "g_idx, as of GPTQ's act-order"),
        ({"kind": "QMoE"}, "no operation of its graph multiplies by a weight"),
        ({"kind": "GatherBlockQuantized", "bits": 4}, "has 4 bits, which is not read"),
        ({"kind": "MatMulInteger"}, "other than a matrix of 8 bits"),
        ({"inputs": {"B": tensor("B", BYTES) + field(9, b"x")}}, "tensor 'B' gives its values twice"),
        ({"inputs": {"B": tensor("B", BYTES, shape=(6, 2, 17))}}, r"U8 \[6, 2, 17\] needs 204 bytes, and has 192"),
        ({"inputs": {"B": tensor("B", BYTES, shape=(1 << 50, 2, 16))}}, "which cannot be"),
        ({"inputs": {"s": field(1, 6) + field(1, 2) + field(2, FLOAT) + field(8, "s")}}, "needs 48 bytes, and has 0"),
        ({"inputs": {"s": tensor("B", SCALES)}}, "the tensor 'B' is there twice"),
    ],
)
def test_what_an_operation_does_not_have_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        weight(blocks(tmp_path / "m.onnx", **changes))


def test_weights_of_other_operations_are_refused(tmp_path: Path) -> None:
    product = node("MatMul", "/lm_head/MatMul", ["n", "W"], ["y"])
    head = tensor("W", np.ones((64, 8), np.float32))
    for nodes, tensors, message in (
        ([product, node("Attention", "a", ["x", "b"], ["z"])], [tensor("b", SCALES[0])], "'b' goes into Attention"),
        ([product, product.replace(b"W", b"V")], [tensor("V", np.ones((64, 8), np.float32))], "in more than one way"),
        (
            [product, node("DequantizeLinear", "d", ["C", "s"], ["f"], axis=0), node("MatMul", "m", ["x", "f"], ["z"])],
            [tensor("C", np.ones((64, 8), np.int8)), tensor("s", np.ones(64, np.float32))],
            "has scales along the axis 0",
        ),
        (
            [product, node("Gather", "/e/Gather", ["C", "ids"], ["f"])],
            [tensor("C", np.ones((64, 8), np.int8))],
            "codes that have no single scale behind it",
        ),
        (
            [product, node("MatMulInteger", "m", ["x", "C"], ["f"])],
            [tensor("C", np.ones((64, 8), np.int8))],
            "has no scale behind it",
        ),
        (
            [product, node("GatherBlockQuantized", "g", ["C", "i", "s"], ["f"], gather_axis=1)],
            [tensor("C", np.ones((64, 8), np.uint8))],
            "another axis than the last",
        ),
        (
            [product, node("GatherBlockQuantized", "g", ["C", "i", "s"], ["f"], bits=8)],
            [tensor("C", np.ones((32, 1), np.uint8), UINT4, (8, 8))],
            "U4 with 8 bits",
        ),
        (
            [product, node("DequantizeLinear", "d", ["C", "s"], ["f"]), node("MatMul", "m", ["x", "f"], ["z"])],
            [tensor("C", np.ones(32, np.uint8), UINT4, (8, 8)), tensor("s", np.ones((1, 1, 8), np.float32))],
            "",
        ),
        (
            [product, node("DequantizeLinear", "d", ["C", "s"], ["f"]), node("MatMul", "m", ["x", "f"], ["z"])],
            [tensor("C", np.ones(20, np.uint8), UINT4, (8, 5)), tensor("s", np.ones(5, np.float32))],
            "codes of 4 bits, which are no whole bytes",
        ),
    ):
        path = write_onnx(tmp_path / "m.onnx", nodes, [head, *tensors])
        if message:
            with pytest.raises(ModelError, match=message):
                local_onnx(path, CONFIG)
        else:
            local_onnx(path, CONFIG)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret"}, r"tensor 'B' lies in '../secret'; only files in the same directory"),
        ({"location": "/etc/passwd"}, r"tensor 'B' lies in '/etc/passwd'"),
        ({"location": ""}, r"tensor 'B' lies in ''"),
        ({"location": "no.data"}, r"tensor 'B' lies in no.data, which is not there"),
        ({"location": "m.data", "offset": "-1"}, "lies at '-1' with '192' bytes, which are no numbers"),
        ({"location": "m.data", "offset": 64}, r"tensor 'B' ends at byte 256 of m.data, which has 192: cut short"),
        ({"location": "m.data", "length": 8}, "needs 192 bytes, and has 8"),
    ],
)
def test_tensors_outside_of_the_file_are_held_against_it(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(bytes(192))
    with pytest.raises((ModelError, SecurityError), match=message):
        weight(blocks(tmp_path / "m.onnx", inputs={"B": outside("B", UINT8, BYTES.shape, **entries)}))


def test_data_next_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.data").write_bytes(bytes(192 + 48))
    inputs = {"B": outside("B", UINT8, BYTES.shape, location="m.data", offset=48)}
    inputs["s"] = outside("s", FLOAT, SCALES.shape, location="m.data", length=48)
    assert weight(blocks(tmp_path / "m.onnx", inputs=inputs)).element == "i4"
    inputs["s"] = outside("s", FLOAT, SCALES.shape, location="m.data", offset=4)
    with pytest.raises(ModelError, match="tensor 'B' overlaps the tensor before it"):
        weight(blocks(tmp_path / "m.onnx", inputs=inputs))
    inputs.pop("s")
    (tmp_path / "away").mkdir()
    (tmp_path / "m.data").rename(tmp_path / "away" / "m.data")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "m.data").symlink_to(tmp_path / "away" / "m.data")
    path = blocks(tmp_path / "here" / "m.onnx", inputs=inputs)
    with pytest.raises(SecurityError, match=r"m.data is a link to .*, outside the model's directory"):
        local_onnx(path, CONFIG)
    assert local_onnx(path, CONFIG, allow_links=True).checkpoint.files == ("m.onnx", "m.data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
        (b"\x07" * 40, "it is no ONNX file, or damaged at byte 0"),
        (b"\x80" * 40, "it is no ONNX file, or damaged at byte 0"),
        (field(2, "a") + b"\x3a\x7fx", "it states 127 bytes at byte 3, and 1 are left: cut short"),
        (field(2, "a"), "it holds 0 graphs; an ONNX model has one"),
        (field(7, b"") * 2, "it holds 2 graphs"),
        (field(7, field(1, field(3, "n" * 70_000))), "a name at byte .* is longer than 65535 bytes"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_graph(path)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="the file is missing"):
        read_graph(tmp_path / "no.onnx")
    path = blocks(tmp_path / "m.onnx")

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(ModelError, match="it cannot be read: Input/output error"):
        read_graph(path)


def test_more_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.loaders.quantized.onnx import file

    listed = field(2, UINT8) + field(8, "t") + field(5, b"\x01" * 4)
    for limit, path, message in (
        ("MAX_NODES", write_onnx(tmp_path / "a.onnx", [node("Add", "a", [], [])] * 3, []), "more than 2 nodes or 200,"),
        ("_MAX_LISTED", write_onnx(tmp_path / "b.onnx", [], [listed]), "it lists more than 2 numbers one by one"),
        ("_MAX_FIELDS", write_onnx(tmp_path / "c.onnx", [], []), "there are more than 2 fields at byte 0"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(file, limit, 2)
            with pytest.raises(ModelError, match=message):
                read_graph(path)
