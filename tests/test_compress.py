"""From a checkpoint to a complete directory: every format and method against stock NNCF on stock optimum's IR."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.compression import output
from llmcompress.compression.layers import layer_table
from llmcompress.errors import ModelError, RecipeError, UsageError, WriteError
from llmcompress.loaders import LoadedModel, load
from llmcompress.loaders.tokenizer import REQUIRED_FILES
from llmcompress.spec import Recipe, load_recipe, override_recipe, packaged_recipes

NUM_WINDOWS, SEQ_LEN = 4, 24
CODEBOOK = (-1.0, -0.5, -0.1, 0.0, 0.1, 0.5, 1.0)
DATA_AWARE_METRICS = (
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama", hidden_size=128, num_hidden_layers=2)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load(checkpoint)


@pytest.fixture(scope="module")
def stock_ir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from optimum.intel import OVModelForCausalLM

    directory = tmp_path_factory.mktemp("stock-ir")
    model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, load_in_8bit=False)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "calibration.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 60, encoding="utf-8")
    return path


def _calibration(text: Path) -> dict[str, Any]:
    return {"dataset": str(text), "num_samples": NUM_WINDOWS, "seq_len": SEQ_LEN}


def _stock_samples(checkpoint: Path, recipe: Recipe) -> list[dict[str, Any]]:
    import numpy as np
    from transformers import AutoTokenizer

    from llmcompress.data import calibration_windows

    assert recipe.calibration is not None
    windows = calibration_windows(recipe.calibration, AutoTokenizer.from_pretrained(checkpoint)).token_ids
    return [
        {
            "input_ids": window[None],
            "attention_mask": np.ones((1, SEQ_LEN), dtype=np.int64),
            "position_ids": np.arange(SEQ_LEN)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        for window in windows
    ]


def _data_free() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, our weights block, and NNCF's own arguments, written by hand."""
    modes = [
        *((mode, {}) for mode in ("int8_sym", "int8_asym", "mxfp4", "mxfp8_e4m3", "nvfp4", "cb4")),
        *((mode, {"group_size": 32}) for mode in ("int4_sym", "int4_asym", "int3_sym", "int2_sym")),
        *((mode, {"group_size": 32}) for mode in ("nf4", "fp4", "fp8_e4m3")),
    ]
    cases = [(mode, {"mode": mode, **options}, {"mode": mode, **options}) for mode, options in modes]
    int4 = {"mode": "int4_asym", "group_size": 32}
    for name, options in {
        "all_layers": {"all_layers": True},
        "ratio": {"ratio": 0.5},
        "awq": {"awq": True},
        "per_channel": {"group_size": -1},
        "backup_int8_sym": {"backup_mode": "int8_sym"},
        "backup_none": {"backup_mode": "none"},
    }.items():
        cases.append((name, {**int4, **options}, {**int4, **options}))
    return cases


def _nncf(stock_ir: Path, output: Path, **arguments: Any) -> Path:
    import nncf
    import openvino as ov

    for name, kind in (
        ("mode", nncf.CompressWeightsMode),
        ("backup_mode", nncf.BackupMode),
        ("sensitivity_metric", nncf.SensitivityMetric),
    ):
        if name in arguments:
            arguments[name] = kind(arguments[name])
    model = ov.Core().read_model(stock_ir / "openvino_model.xml")
    ov.save_model(nncf.compress_weights(model, **arguments), output / "stock.xml", compress_to_fp16=False)
    return output / "stock.bin"


@pytest.mark.parametrize(("name", "weights", "arguments"), _data_free(), ids=[case[0] for case in _data_free()])
def test_data_free_equals_nncf(
    name: str,
    weights: dict[str, Any],
    arguments: dict[str, Any],
    loaded: LoadedModel,
    stock_ir: Path,
    tmp_path: Path,
) -> None:
    report = llmcompress.compress(loaded, Recipe(name=name, weights=weights), tmp_path / "ours", tokenizer=False)
    stock = _nncf(stock_ir, tmp_path, **arguments)
    assert filecmp.cmp(tmp_path / "ours" / "openvino_model.bin", stock, shallow=False)
    assert weights["mode"] in {layer.mode for layer in report.layers}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("scale_estimation", {"scale_estimation": True}),
        ("awq", {"awq": True}),
        ("gptq", {"gptq": True}),
        pytest.param("lora_correction", {"lora_correction": True}, marks=pytest.mark.slow),
        *((metric, {"ratio": 0.5, "sensitivity_metric": metric}) for metric in DATA_AWARE_METRICS),
    ],
)
def test_data_aware_equals_nncf(
    name: str,
    options: dict[str, Any],
    checkpoint: Path,
    loaded: LoadedModel,
    stock_ir: Path,
    text: Path,
    tmp_path: Path,
) -> None:
    import nncf

    weights = {"mode": "int4_sym", "group_size": 32, **options}
    recipe = Recipe(name=name, weights=weights, calibration=_calibration(text))
    # Our own sums of GPTQ are compared in test_kernels_gptq.py.
    engine: Any = "nncf" if name == "gptq" else "llmcompress"
    report = llmcompress.compress(loaded, recipe, tmp_path / "ours", tokenizer=False, engine=engine)
    samples = nncf.Dataset(_stock_samples(checkpoint, recipe))
    stock = _nncf(stock_ir, tmp_path, dataset=samples, subset_size=NUM_WINDOWS, **weights)
    assert filecmp.cmp(tmp_path / "ours" / "openvino_model.bin", stock, shallow=False)
    assert report.calibration is not None
    assert report.calibration.dataset == text.name


def test_codebook_equals_nncf(loaded: LoadedModel, stock_ir: Path, tmp_path: Path) -> None:
    import nncf
    import numpy as np

    fixed = Recipe(name="codebook", weights={"mode": "codebook", "advanced": {"codebook": CODEBOOK}})
    report = llmcompress.compress(loaded, fixed, tmp_path / "fixed", tokenizer=False)
    advanced = nncf.AdvancedCompressionParameters(codebook=np.array(CODEBOOK, dtype=np.float32))
    stock = _nncf(stock_ir, tmp_path, mode="codebook", advanced_parameters=advanced)
    assert filecmp.cmp(tmp_path / "fixed" / "openvino_model.bin", stock, shallow=False)
    assert "codebook" in {layer.mode for layer in report.layers}


@pytest.mark.slow
def test_adaptive_codebook_equals_nncf(
    checkpoint: Path, loaded: LoadedModel, stock_ir: Path, text: Path, tmp_path: Path
) -> None:
    import nncf

    adaptive = Recipe(name="adaptive", weights={"mode": "adaptive_codebook"}, calibration=_calibration(text))
    report = llmcompress.compress(loaded, adaptive, tmp_path / "adaptive", tokenizer=False)
    samples = nncf.Dataset(_stock_samples(checkpoint, adaptive))
    stock = _nncf(stock_ir, tmp_path, mode="adaptive_codebook", dataset=samples, subset_size=NUM_WINDOWS)
    assert filecmp.cmp(tmp_path / "adaptive" / "openvino_model.bin", stock, shallow=False)
    assert "adaptive_codebook" in {layer.mode for layer in report.layers}


def test_ratio_zero_means_no_layer(loaded: LoadedModel, tmp_path: Path) -> None:
    recipe = Recipe(name="backup-only", weights={"mode": "int4_sym", "group_size": 32, "ratio": 0.0})
    report = llmcompress.compress(loaded, recipe, tmp_path / "out", tokenizer=False)
    assert {layer.mode for layer in report.layers} == {"int8_asym"}
    assert '<ratio value="0.0"' in (tmp_path / "out" / "openvino_model.xml").read_text(encoding="utf-8")


def test_ignored_layers_stay(loaded: LoadedModel, tmp_path: Path) -> None:
    scope = {"patterns": (".*layers.0.*down_proj.*",)}
    recipe = Recipe(name="scoped", weights={"mode": "int8_sym", "ignored_scope": scope})
    report = llmcompress.compress(loaded, recipe, tmp_path / "out", tokenizer=False)
    modes = {layer.name: layer.mode for layer in report.layers}
    assert [mode for name, mode in modes.items() if "layers.0.mlp.down_proj" in name] == ["bf16"]
    assert [mode for name, mode in modes.items() if "layers.1.mlp.down_proj" in name] == ["int8_sym"]


def test_scope_that_matches_nothing_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    recipe = Recipe(name="scoped", weights={"mode": "int8_sym", "ignored_scope": {"names": ("no such node",)}})
    with pytest.raises(ModelError, match="NNCF refuses these settings for this model") as caught:
        llmcompress.compress(loaded, recipe, tmp_path / "out", tokenizer=False)
    assert "no such node" in str(caught.value)
    assert "weights.ignored_scope" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [recipe.name for recipe in packaged_recipes() if recipe.method != "keep"])
def test_packaged_recipe(name: str, loaded: LoadedModel, text: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    if recipe.calibration is not None:
        windows = [f"calibration.num_samples={NUM_WINDOWS}", f"calibration.seq_len={SEQ_LEN}"]
        recipe = load_recipe(name, [f"calibration.dataset={text}", *windows])
    if recipe.training is not None:
        few = ["num_samples=4", "num_validation_samples=2", f"seq_len={SEQ_LEN}", "num_steps=1", "batch_size=2"]
        recipe = override_recipe(recipe, [f"training.{each}" for each in (f"dataset={text}", *few)])
    report = llmcompress.compress(loaded, recipe, tmp_path / "out")
    assert llmcompress.verify(tmp_path / "out").ok
    assert report.tokenizer == report.chat_template == "equal"
    present = {path.name for path in (tmp_path / "out").iterdir()}
    for runtime, files in REQUIRED_FILES.items():
        assert set(files) <= present, runtime
    assert load_recipe(tmp_path / "out" / "recipe.yaml").weights == recipe.weights


def test_manifest_is_the_report_and_adds_up(loaded: LoadedModel, checkpoint: Path, tmp_path: Path) -> None:
    import openvino as ov

    report = llmcompress.compress(loaded, "int4", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "llmcompress.json").read_text()) == report.model_dump(mode="json")
    bin_bytes = (tmp_path / "out" / "openvino_model.bin").stat().st_size
    assert report.bits_per_weight == pytest.approx(bin_bytes * 8 / report.num_parameters)
    assert sum(layer.size_bytes for layer in report.layers) == pytest.approx(bin_bytes, rel=0.02)
    assert sum(layer.num_parameters for layer in report.layers) == pytest.approx(report.num_parameters, rel=0.01)
    model = ov.Core().read_model(tmp_path / "out" / "openvino_model.xml")
    grouped = [op for op in model.get_ops() if op.get_type_name() == "Constant" and len(op.shape) == 3]
    stored = [op for op in grouped if op.get_element_type() == ov.Type.u4 and op.shape[2] > 1]
    assert len(stored) == len([layer for layer in report.layers if layer.mode == "int4_asym"]) == 14
    assert {op.shape[2] for op in stored} == {layer.group_size for layer in report.layers if "int4" in layer.mode}
    engines = {layer.name for layer in report.layers if layer.engine == "llmcompress"}
    assert report.layers == layer_table(model, "int4_asym", engines)
    sizes = {file.path: file.size_bytes for file in report.provenance.files}
    assert sizes == {path.name: path.stat().st_size for path in checkpoint.iterdir()}
    assert str(tmp_path) not in (tmp_path / "out" / "llmcompress.json").read_text()


def test_same_bytes_from_another_load(loaded: LoadedModel, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed" / "model"
    shutil.copytree(checkpoint, other)
    recipe = load_recipe("int4-awq-se", [f"calibration.dataset={text}", "calibration.num_samples=4"])
    first = llmcompress.compress(loaded, recipe, tmp_path / "first")
    second = llmcompress.compress(other, recipe, tmp_path / "second")
    assert first.model_dump(exclude={"measured"}) == second.model_dump(exclude={"measured"})
    for file in first.files:
        assert filecmp.cmp(tmp_path / "first" / file.path, tmp_path / "second" / file.path, shallow=False), file.path


def test_the_model_is_hashed_while_the_tokenizers_directories_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_model.bin").write_bytes(b"weights")
    (tmp_path / "openvino_model.xml").write_bytes(b"graph")
    (tmp_path / "temporary").mkdir()
    scandir = os.scandir

    def vanished(path: Path) -> object:
        if Path(path).name == "temporary":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanished)
    found = {record.path: (record.size_bytes, record.sha256) for record in output._model_records(tmp_path, None)}
    assert found == {
        "openvino_model.bin": (7, hashlib.sha256(b"weights").hexdigest()),
        "openvino_model.xml": (5, hashlib.sha256(b"graph").hexdigest()),
    }


def test_a_device_that_refuses_the_weights_is_told_of(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bytes that it does not take the system tells once, and here that is before the directory is put in place."""

    def refuse(path: Path) -> None:
        assert path.name in {"openvino_model.bin", "openvino_model.xml"}
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(output, "sync", refuse)
    with pytest.raises(WriteError, match="Input/output error"):
        llmcompress.compress(loaded, load_recipe("int4"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_no_tokenizer(loaded: LoadedModel, tmp_path: Path) -> None:
    report = llmcompress.compress(loaded, "int8", tmp_path / "out", tokenizer=False)
    assert (report.tokenizer, report.chat_template) == ("none", "none")
    assert not list((tmp_path / "out").glob("*tokenizer*"))
    assert llmcompress.verify(tmp_path / "out").ok


def test_code_of_a_repository_goes_along_for_stock_optimum(tmp_path: Path) -> None:
    from optimum.intel import OVModelForCausalLM

    source = build_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((source / "config.json").read_text()) | {"auto_map": classes}
    (source / "config.json").write_text(json.dumps(config))
    (source / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\nclass OwnConfig(LlamaConfig):\n    pass\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    report = llmcompress.compress(source, "int8", tmp_path / "out", trust_remote_code=True)
    assert "own.py" in {file.path for file in report.files}
    opened = OVModelForCausalLM.from_pretrained(tmp_path / "out", compile=False, trust_remote_code=True)
    assert type(opened.config).__name__ == "OwnConfig"


def test_hints_reach_the_compiled_model(loaded: LoadedModel, tmp_path: Path) -> None:
    import openvino as ov

    hints = {"dynamic_quantization_group_size": 64, "kv_cache_precision": "u4"}
    recipe = Recipe(name="hinted", weights={"mode": "int4_sym", "group_size": 64}, runtime=hints)
    llmcompress.compress(loaded, recipe, tmp_path / "out", tokenizer=False)
    compiled = ov.Core().compile_model(tmp_path / "out" / "openvino_model.xml", "CPU")
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.u4


def test_a_hint_follows_the_groups_that_the_weights_were_given(tmp_path: Path) -> None:
    """Its channels leave one kind of layers half the groups that were asked for; what is left alone has none."""
    import openvino as ov

    source = build_checkpoint(tmp_path / "odd", "llama", hidden_size=128, intermediate_size=320, num_hidden_layers=1)
    loaded = llmcompress.load(source, tokenizer=False)
    ignoring = ["weights.group_size=256", "weights.group_size_fallback=ignore"]
    for name, overrides, group_size in (("adjusted", [], 64), ("ignored", ignoring, None)):
        recipe = llmcompress.load_recipe("int4", overrides)
        assert recipe.runtime.follows_weights
        report = llmcompress.compress(loaded, recipe, tmp_path / name, tokenizer=False)
        groups = {layer.group_size for layer in report.layers if layer.mode == "int4_asym"}
        assert groups == ({128, 64} if group_size else set())
        assert report.recipe == llmcompress.load_recipe(tmp_path / name / "recipe.yaml") == recipe
        assert report.runtime_options == ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"} if group_size else {})
        model = ov.Core().read_model(tmp_path / name / "openvino_model.xml")
        assert model.has_rt_info(["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]) == (group_size is not None)
        compiled = ov.Core().compile_model(model, "CPU")
        default = ov.Core().get_property("CPU", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == (group_size or default)


def test_uncompressed_ir_as_source(loaded: LoadedModel, stock_ir: Path, tmp_path: Path) -> None:
    report = llmcompress.compress(stock_ir, "int4", tmp_path / "from-ir")
    llmcompress.compress(loaded, "int4", tmp_path / "from-checkpoint")
    paths = [tmp_path / name / "openvino_model.bin" for name in ("from-ir", "from-checkpoint")]
    assert filecmp.cmp(*paths, shallow=False)
    assert (report.provenance.kind, report.provenance.dtype) == ("ir", "bf16")


def test_compressed_ir_is_not_compressed_again(loaded: LoadedModel, tmp_path: Path) -> None:
    llmcompress.compress(loaded, "int8", tmp_path / "int8")
    with pytest.raises(ModelError, match="the model is already compressed"):
        llmcompress.compress(tmp_path / "int8", "int4", tmp_path / "int4")
    assert not (tmp_path / "int4").exists()


def test_infinite_weight_of_an_ir_is_named(stock_ir: Path, tmp_path: Path) -> None:
    import openvino as ov

    damaged = tmp_path / "damaged"
    shutil.copytree(stock_ir, damaged)
    model = ov.Core().read_model(stock_ir / "openvino_model.xml")
    # bf16 is shown as a 16-bit float of another kind: 0x7F80 is its infinity and 0x7FC0 its NaN.
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant" and len(op.shape) == 2]
    constant = next(op for op in constants if op.get_element_type() == ov.Type.bf16)
    bits = constant.data.copy().view("u2")
    bits[3, 5], bits[7, 0] = 0x7F80, 0x7FC0
    tensor = ov.Tensor(ov.Type.bf16, constant.get_output_shape(0))
    tensor.data[:] = bits.view("f2")
    replacement = ov.op.Constant(tensor)
    replacement.set_friendly_name(constant.get_friendly_name())
    for port in list(constant.output(0).get_target_inputs()):
        port.replace_source_output(replacement.output(0))
    ov.save_model(model, damaged / "openvino_model.xml", compress_to_fp16=False)

    name = re.escape(constant.get_friendly_name())
    expected = rf"1 tensors hold NaN or infinite weights: openvino_model.bin: {name}: 1 NaN and 1 Inf, .* \[3, 5\]"
    with pytest.raises(ModelError, match=expected):
        llmcompress.compress(damaged, "int8", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    llmcompress.compress(damaged, "none", tmp_path / "out", allow_nonfinite=True)
    assert filecmp.cmp(damaged / "openvino_model.bin", tmp_path / "out" / "openvino_model.bin", shallow=False)


@pytest.mark.parametrize("option", [{"revision": "main"}, {"trust_remote_code": True}, {"allow_nonfinite": True}])
def test_options_of_loading_are_refused_for_a_loaded_model(
    option: dict[str, Any], loaded: LoadedModel, tmp_path: Path
) -> None:
    (name,) = option
    with pytest.raises(UsageError, match=f"{name} given for a model that is loaded already"):
        llmcompress.compress(loaded, "int8", tmp_path / "out", **option)
    assert list(tmp_path.iterdir()) == []


def test_npu_contract_is_checked_in_the_graph(loaded: LoadedModel, tmp_path: Path) -> None:
    # The tiny model's channels leave no room for groups of 128 in every layer.
    odd = Recipe.model_construct(
        **{
            **dict(load_recipe("int4-npu")),
            "weights": load_recipe("int4-sym", ["weights.group_size=32"]).weights,
        }
    )
    with pytest.raises(RecipeError, match="target npu takes int4_sym in groups of 128 or per channel") as caught:
        llmcompress.compress(loaded, odd, tmp_path / "out", tokenizer=False)
    assert "group size 32" in caught.value.message
    assert not (tmp_path / "out").exists()


def test_seq_len_beyond_the_context_is_refused(loaded: LoadedModel, text: Path, tmp_path: Path) -> None:
    recipe = load_recipe("int4-gptq", [f"calibration.dataset={text}", "calibration.seq_len=4096"])
    with pytest.raises(UsageError, match=re.escape("seq_len is 4096, the model's context is 256 tokens")):
        llmcompress.compress(loaded, recipe, tmp_path / "out")
