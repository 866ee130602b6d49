"""Checkpoints that are quantized already: their codes come through exactly, compressed, and by one command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import FakeHub, running, use
from quantized_fixture import LAYOUTS, Array, quantized, torch_logits, with_mxfp4_experts
from tiny_models import ARCHITECTURES, VOCAB_SIZE, build_checkpoint

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import run as run_command
from llmcompress.cli.dry_run import forecast_source
from llmcompress.errors import ModelError, RecipeError, UsageError
from llmcompress.graph.device import compile_model, executed_precisions, properties_of
from llmcompress.loaders.quantized.packed import common_group_size
from llmcompress.runner.survey import survey
from llmcompress.spec import Access, EvalSpec, load_recipe, packaged_recipes
from llmcompress.spec.plan import load_plan, planned_jobs
from llmcompress.system.progress import silent

# Rounding of sums in f32, in another order: the largest seen is 1.6e-6 of the largest logit.
EXACT = 1e-5
IDS = np.random.default_rng(0).integers(1, VOCAB_SIZE - 1, (2, 24))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 160 columns are no whole number of blocks of 128, nor 96 of groups of 64.
    return build_checkpoint(
        tmp_path_factory.mktemp("plain") / "model",
        "llama",
        dtype="float16",
        num_hidden_layers=1,
        hidden_size=128,
        intermediate_size=320,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def run(model: Any, ids: Array = IDS) -> tuple[Array, set[str]]:
    """Logits in f32, and the precisions of weights that the CPU multiplies with."""
    compiled = compile_model(model, "CPU", properties_of("CPU", "pinned"))
    rows, columns = ids.shape
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.tile(np.arange(columns), (rows, 1)),
        "beam_idx": np.arange(rows, dtype=np.int32),
    }
    names = {name for port in model.inputs for name in port.names}
    given = {name: values for name, values in inputs.items() if name in names}
    logits = compiled.create_infer_request().infer(given)["logits"].copy()
    executed = executed_precisions(compiled)
    return logits, {precision for kind, precision in executed if kind == "FullyConnected"}


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"ct-nvfp4", "bitnet-multiplied"}))
def test_the_logits_are_those_of_the_floats_that_the_codes_stand_for(name: str, plain: Path, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    floats = quantized(plain, tmp_path / "model", layout)
    expected = torch_logits(tmp_path / "model", floats, IDS)
    loaded = llmcompress.load(tmp_path / "model")
    logits, executed = run(loaded.model)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    # The head is not quantized.
    assert executed - {"f16", "f32"} == layout.executed
    dequantized, executed = run(loaded.dequantized().model)
    assert np.abs(dequantized - expected).max() <= EXACT * np.abs(expected).max()
    assert executed <= {"f16", "f32"}


def test_a_quantized_embedding_and_head_are_kept(plain: Path, tmp_path: Path) -> None:
    source, layout = tmp_path / "model", LAYOUTS["ct-int8-asym"]
    floats = quantized(plain, source, layout, also=("proj.weight", "embed_tokens.weight", "lm_head.weight"))
    expected = torch_logits(source, floats, IDS)
    loaded = llmcompress.load(source, tokenizer=False)
    logits, executed = run(loaded.model)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    assert executed == {"u8"}
    dequantized, _ = run(loaded.dequantized().model)
    assert np.abs(dequantized - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.parametrize(("architecture", "name"), [("qwen3_moe", "ct-nvfp4"), ("mixtral", "gptq-4"), ("gpt_oss", "")])
def test_experts_are_the_stacks_that_their_class_multiplies_by(
    architecture: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "gpt_oss", ARCHITECTURES["mixtral"] | {"head_dim": 32})
    plain = build_checkpoint(tmp_path / "plain", architecture, dtype="float16", num_hidden_layers=1)
    source = tmp_path / "model"
    floats = quantized(plain, source, LAYOUTS[name]) if name else with_mxfp4_experts(plain, source)
    expected = torch_logits(source, floats, IDS)
    loaded = llmcompress.load(source)
    for model in (loaded.model, loaded.dequantized().model):
        assert np.abs(run(model)[0] - expected).max() <= EXACT * np.abs(expected).max()
    report = llmcompress.compress(loaded, "keep", tmp_path / "out", tokenizer=False)
    stacks = {layer.name.partition(".experts.")[2]: layer for layer in report.layers if ".experts." in layer.name}
    halves = {"gate_up_proj"} if architecture == "gpt_oss" else {"gate_up_proj.0", "gate_up_proj.1"}
    assert set(stacks) == halves | {"down_proj"}
    modes = LAYOUTS[name].modes if name else {"mxfp4"}
    assert {layer.mode for layer in stacks.values()} == modes
    # Integers stay as they are in one operation with the routing; 4-bit floats are unpacked for each inference.
    assert report.kept is not None
    executed = set(report.kept.executed[modes.copy().pop()].split(", "))
    assert executed & {"u4", "bf16", "f32"} == ({"u4"} if name == "gptq-4" else executed - {"f4e2m1"})
    predicted = forecast_source(str(source), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent)
    actual = (tmp_path / "out" / "openvino_model.bin").stat().st_size
    assert predicted.size_bytes == pytest.approx(actual, rel=0.02)


@pytest.mark.slow
def test_the_manifest_says_what_the_cpu_makes_of_each_kind_of_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(__file__).parent / "quantized_checkpoints" / "compressed-tensors-mixed"
    command = ["compress", str(source), "-o", str(tmp_path / "out"), "--no-tokenizer"]
    assert run_command([*command, "--dry-run"]) == 0
    expanded = re.findall(r"this machine's CPU expands (\w+) to (\w+)", capsys.readouterr().out)
    assert run_command(command) == 0
    kept = read_manifest(tmp_path / "out").kept
    assert kept is not None
    assert [("fp8_e4m3", kept.executed["fp8_e4m3"])] == expanded
    assert kept.executed.pop("fp8_e4m3") in ("f32", "bf16")
    assert kept.executed == {"int4_sym": "i4", "int8_sym": "i8", "mxfp4": "f4e2m1", "nvfp4": "f4e2m1"}
    # Half a unit in the last place of f32.
    assert 0 < kept.max_relative_rounding <= 2**-24
    assert f"scales to within {kept.max_relative_rounding:.1g}; this CPU expands fp8_e4m3" in capsys.readouterr().out


def written(plain: Path, directory: Path, name: str) -> Path:
    quantized(plain, directory, LAYOUTS[name])
    return directory


def test_one_command_without_a_recipe_keeps_the_codes(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(plain, tmp_path / "model", "gptq-4-act-order")
    assert run_command(["compress", str(source), "-o", str(tmp_path / "dry"), "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "7 weights are GPTQ 4 bits, act-order; taken exactly" in dry
    assert run_command(["compress", str(source), "-o", str(tmp_path / "out")]) == 0
    assert "7 of GPTQ 4 bits, act-order; every weight exactly" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest.recipe == llmcompress.load_recipe("keep")
    assert manifest.kept is not None
    assert (manifest.kept.num_layers, manifest.kept.executed) == (7, {"int4_asym": "u4"})
    assert manifest.provenance.quantization is not None
    assert manifest.provenance.quantization.settings == LAYOUTS["gptq-4-act-order"].settings
    kept = [layer for layer in manifest.layers if layer.stored_as]
    assert {(layer.mode, layer.group_size, layer.engine) for layer in kept} == {("int4_asym", 32, None)}
    assert manifest.num_parameters == sum(layer.num_parameters for layer in manifest.layers) + 3 * 128
    # The config of the output says nothing of a quantization that transformers would look for.
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    predicted = forecast_source(
        str(source), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent, tokenizer=False
    )
    actual = next(file.size_bytes for file in manifest.files if file.path == "openvino_model.bin")
    assert predicted.size_bytes == pytest.approx(actual, rel=0.02)
    # The cache is the plugin's choice, as with every compressed model.
    assert "KV_CACHE_PRECISION" not in (tmp_path / "out" / "openvino_model.xml").read_text()
    sizes = (sorted(layer.size_bytes for layer in layers) for layers in (kept, predicted.layers))
    assert next(sizes) == pytest.approx(next(sizes)[: len(kept)], rel=0.01)


def test_what_was_kept_differs_from_its_source_by_nothing(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "awq-gemm")
    llmcompress.compress(source, "keep", tmp_path / "out")
    spec = {"dataset": str(wikitext(tmp_path)), "num_windows": 2, "seq_len": 64, "precision": "pinned"}
    report = llmcompress.evaluate(tmp_path / "out", EvalSpec(**spec), reference=source)
    assert report.divergence is not None
    # f32 sums in another order.
    assert report.divergence.kl_divergence.value < 1e-8


def wikitext(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("Four bits are enough for a weight that was rounded well. " * 40)
    return path


def test_quantized_again_only_when_asked(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "fp8-block")
    with pytest.raises(ModelError, match="recipe int8 would quantize it again") as caught:
        llmcompress.compress(source, "int8", tmp_path / "out")
    assert "`requantize`" in caught.value.hint
    with pytest.raises(ModelError, match="recipe int8 would quantize it again"):
        llmcompress.compress(llmcompress.load(source), "int8", tmp_path / "out")
    report = llmcompress.compress(source, "int8", tmp_path / "out", requantize=True)
    assert report.kept is None
    assert report.provenance.dtype == "fp8"
    assert {layer.mode for layer in report.layers} == {"int8_asym"}
    floats = quantized(plain, tmp_path / "again", LAYOUTS["fp8-block"])
    expected = torch_logits(source, floats, IDS)
    logits, _ = run(llmcompress.load(tmp_path / "out").model)
    # 8 bits a channel: the largest seen is 0.02 of the largest logit.
    assert np.abs(logits - expected).max() < 0.06 * np.abs(expected).max()


def test_a_plan_keeps_the_codes_and_compresses_them_again_where_it_says_so(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "gptq-4")
    for again, failures in (("", 1), (", requantize: true", 0)):
        text = f"models: [{{source: {source}{again}}}]\nrecipes: [keep, int8]\n"
        (tmp_path / "plan.yaml").write_text(text)
        plan = load_plan(tmp_path / "plan.yaml")
        found = survey(planned_jobs(plan, tmp_path / "outputs"), plan)
        refused = [each.outlook.failure.message for each in found if each.outlook.failure is not None]
        assert len(refused) == failures
        assert all("recipe int8 would quantize it again" in message for message in refused)


@pytest.mark.parametrize("name", ["gptq-4", "compressed-tensors-4", "bitsandbytes-nf4-double"])
def test_a_dry_run_of_the_hub_predicts_what_one_of_its_files_does(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = Path(__file__).parent / "quantized_checkpoints" / name
    source = tools if tools.is_dir() else written(plain, tmp_path / "model", name)
    files = {path.name: path.read_bytes() for path in source.iterdir() if path.suffix != ".npy"}
    keep, there = load_recipe("keep"), tmp_path / "no"
    here = forecast_source(str(source), keep, there, Access(), "llmcompress", silent, tokenizer=False)
    with running(FakeHub(files=files)) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        found = forecast_source("acme/tiny", keep, there, Access(), "llmcompress", silent, tokenizer=False)
    assert found.layers == here.layers
    assert found.size_bytes == here.size_bytes


def test_what_has_no_effect_is_refused(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "gptq-4")
    for given, recipe, message in (
        (plain, "int8", "`requantize` has no effect: the source is not quantized already"),
        (source, "keep", "`requantize` has no effect: recipe keep quantizes nothing"),
    ):
        with pytest.raises(UsageError, match=message):
            llmcompress.compress(given, recipe, tmp_path / "out", requantize=True)
    with pytest.raises(RecipeError, match="method keep is for a checkpoint that is quantized already; model is none"):
        llmcompress.compress(plain, "keep", tmp_path / "out")


def test_no_recipe_is_chosen_for_a_model_in_floats(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compress", str(plain)]) == 2
    assert "missing option '--recipe' / '-r', and the model is not quantized already" in capsys.readouterr().err


def test_an_artifact_that_kept_its_codes_is_not_compressed_again(plain: Path, tmp_path: Path) -> None:
    llmcompress.compress(written(plain, tmp_path / "model", "ct-4"), "keep", tmp_path / "out", tokenizer=False)
    with pytest.raises(ModelError, match="the model is already compressed"):
        llmcompress.compress(tmp_path / "out", "int8", tmp_path / "again", tokenizer=False)


def test_none_gives_the_floats(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "ct-4-act-order")
    report = llmcompress.compress(llmcompress.load(source), "none", tmp_path / "out")
    assert {layer.mode for layer in report.layers} == {"f16", "f32"}
    assert report.kept is None


def test_optimums_class_keeps_the_codes(plain: Path, tmp_path: Path) -> None:
    from llmcompress import OVModelForCausalLM

    source = written(plain, tmp_path / "model", "gptq-4-sym")
    model = OVModelForCausalLM.from_pretrained(source, quantization_config="keep")
    model.save_pretrained(tmp_path / "saved")
    kept = read_manifest(tmp_path / "saved").kept
    assert kept is not None
    assert kept.executed == {"int4_sym": "i4"}


def test_zero_biases_that_a_class_has_not_are_left_out(plain: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = written(plain, tmp_path / "model", "gptq-4")
    tensors = load_file(source / "model.safetensors")
    bias = "model.layers.0.mlp.down_proj.bias"
    save_file(
        tensors | {bias: (tensors["model.norm.weight"] * 0).clone()}, source / "model.safetensors", {"format": "pt"}
    )
    llmcompress.load(source, tokenizer=False)
    save_file(tensors | {bias: tensors["model.norm.weight"].clone()}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"1 unexpected, which it would drop \\({bias}"):
        llmcompress.load(source, tokenizer=False)


def tool_checkpoints() -> list[Path]:
    return sorted(path.parent for path in (Path(__file__).parent / "quantized_checkpoints").glob("*/config.json"))


@pytest.mark.parametrize("checkpoint", tool_checkpoints(), ids=lambda path: path.name)
def test_checkpoints_of_a_tool_give_the_logits_of_its_own_dequantization(checkpoint: Path) -> None:
    ids, expected = np.arange(1, 33).reshape(2, 16), np.load(checkpoint / "logits.npy")
    logits, executed = run(llmcompress.load(checkpoint, tokenizer=False).model, ids)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    low = {"awq": "u4", "torchao-int4": "u4", "compressed-tensors-mxfp4": "f4e2m1"}
    low |= dict.fromkeys(("bitsandbytes-nf4", "bitsandbytes-nf4-double"), "nf4")
    low |= dict.fromkeys(("gptq-8", "compressed-tensors-int8", "bitsandbytes-int8", "torchao-8"), "i8")
    expanded = ("compressed-tensors-fp8", "bitsandbytes-fp4")
    kept = set() if checkpoint.name in expanded else {low.get(checkpoint.name, "i4")}
    if checkpoint.name == "compressed-tensors-mixed":
        # And FP8, which is expanded.
        kept = {"i4", "i8", "f4e2m1"}
    assert executed - {"f16", "f32", "bf16"} == kept


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gptq-4", {"bits": True}, "quantization_config.bits is True; accepted: 2, 3, 4, 8"),
        ("gptq-4", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; accepted: gptq, gptq_v2"),
        ("gptq-4", {"group_size": 0}, "the group size in quantization_config is 0; a positive number is needed, or -1"),
        ("gptq-4", {"group_size": "32"}, "the group size in quantization_config is '32'"),
        ("gptq-4", {"group_size": 64}, r"qzeros' has the shape \[10, 16\]; the format needs \[5, 16\]"),
        ("gptq-4", {"bits": 8}, r"qzeros' has the shape \[10, 16\]; the format needs \[5, 32\]"),
        ("gptq-4", {"bits": 3}, "of 40 x 128 words holds no whole number of 3-bit codes"),
        ("gptq-4", {"quant_method": "fp8"}, "quantized with fp8, and no tensor is"),
        (
            "awq-gemm",
            {"version": "marlin"},
            "version is 'marlin'; accepted: gemm, GEMM, gemv, GEMV",
        ),
        ("awq-gemm", {"group_size": 48}, "groups of 48 do not divide the 320 columns of model.layers.0.mlp.down_proj"),
        ("ct-4", {"sparsity_config": {"format": "sparse-24"}}, "quantization_config.sparsity_config is given"),
        ("ct-4", {"transform_config": {"rotate": {}}}, "quantization_config.transform_config is given"),
        ("fp8-block", {"weight_block_size": [128]}, r"the block size in quantization_config is \[128\]"),
        ("fp8-block", {"weight_block_size": [64, 64]}, r"for 128 x 320 in blocks of 64 x 64 it would be \[2, 5\]"),
        ("fp8-block", {"fmt": "e5m2"}, "quantization_config.fmt is 'e5m2'"),
    ],
)
def test_settings_that_the_tensors_do_not_have_are_refused(
    name: str, settings: dict[str, Any], message: str, plain: Path, tmp_path: Path
) -> None:
    source = written(plain, tmp_path / "model", name)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] |= settings
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        llmcompress.load(source, tokenizer=False)
    with pytest.raises(ModelError, match=message):
        forecast_source(str(source), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent)


def _without(part: str) -> Any:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(part)}


def _instead(part: str, change: Any) -> Any:
    return lambda tensors: {
        name: change(tensor).contiguous() if name.endswith(f"down_proj.{part}") else tensor
        for name, tensor in tensors.items()
    }


def _scaled_by_row(tensors: dict[str, Any]) -> dict[str, Any]:
    scale = "model.layers.0.mlp.down_proj.weight_scale"
    return tensors | {scale: tensors[scale][:, :3].contiguous()}


def _in_floats_too(tensors: dict[str, Any]) -> dict[str, Any]:
    name = "model.layers.0.mlp.down_proj"
    return tensors | {f"{name}.weight": tensors[f"{name}.scales"].clone()}


def _scaled_twice(tensors: dict[str, Any]) -> dict[str, Any]:
    name = "model.layers.0.mlp.down_proj.weight_scale"
    return tensors | {name: tensors[f"{name}_inv"].clone()}


def _experts(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("mlp.down_proj", "mlp.experts.0.down_proj"): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gptq-4", _without("down_proj.qzeros"), "down_proj.qzeros' is missing, which the format needs"),
        ("gptq-4", _instead("scales", lambda tensor: tensor.double()), "down_proj.scales' is F64; F16 or BF16 or F32"),
        ("gptq-4", _instead("g_idx", lambda tensor: tensor * 0), "g_idx of model.layers.0.mlp.down_proj does not give"),
        ("gptq-4", _instead("g_idx", lambda tensor: tensor - 7), "g_idx of model.layers.0.mlp.down_proj does not give"),
        ("gptq-4", _instead("qweight", lambda tensor: tensor[:0]), r"has the shape \[0, 128\]; a matrix is needed"),
        ("gptq-4", _in_floats_too, r"the weight model.layers.0.mlp.down_proj.weight is stored in more than one way"),
        ("fp8-block", _scaled_twice, r"the weight model.layers.0.mlp.down_proj.weight is stored in more than one way"),
        ("gptq-4", _experts, r"1 missing, .*mlp.down_proj.weight"),
        ("ct-4", _instead("weight_shape", lambda tensor: tensor * 0), "holds no codes of 4 or 8 bits in the shape"),
        ("ct-4", _scaled_by_row, r"\[128, 3\]; \[128, groups that divide 320\] is needed"),
        ("ct-4", _instead("weight_shape", lambda tensor: tensor.double()), "weight_shape' is F64; I64 or I32"),
        ("awq-gemm", _instead("qzeros", lambda tensor: tensor[1:]), r"qzeros' has the shape \[9, 16\]"),
    ],
)
def test_tensors_that_the_format_does_not_have_are_refused(
    name: str, change: Any, message: str, plain: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = written(plain, tmp_path / "model", name)
    save_file(change(load_file(source / "model.safetensors")), source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        llmcompress.load(source, tokenizer=False)


def test_groups_that_hardly_fit_are_refused() -> None:
    assert common_group_size(576, 128, "layer") == 64
    with pytest.raises(ModelError, match="groups of 128 do not divide 514 columns, and only groups of 2 would"):
        common_group_size(514, 128, "layer")


def test_other_refusals_of_a_quantized_source(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "gptq-4")
    with pytest.raises(UsageError, match="compares with PyTorch, where this quantized checkpoint cannot be opened"):
        llmcompress.check_conversion(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "float64"}))
    with pytest.raises(ModelError, match=r"config.json gives the weights' precision as 'float64'"):
        llmcompress.load(source, tokenizer=False)
    (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    with pytest.raises(ModelError, match="`trust_remote_code` asks for the model's"):
        llmcompress.load(source, tokenizer=False, trust_remote_code=True)


def test_training_on_codes_is_refused(plain: Path, tmp_path: Path) -> None:
    source = written(plain, tmp_path / "model", "gptq-4")
    trained = next(recipe for recipe in packaged_recipes() if recipe.training is not None)
    with pytest.raises(RecipeError, match="in torch, where this quantized checkpoint cannot be opened"):
        llmcompress.compress(source, trained, tmp_path / "out", requantize=True)
