"""Predictions against what stock optimum and NNCF really write, and against the peak of a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcompress.compression.forecast import Forecast, forecast, inventory, require_fits
from llmcompress.compression.forecast.inventory import _by_part
from llmcompress.compression.forecast.precision import assign, primary_share
from llmcompress.compression.forecast.records import Weight
from llmcompress.compression.forecast.stored_bytes import compressed_bytes, layout
from llmcompress.errors import ModelError, RecipeError, ResourceError
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.spec import AdvancedCompression, IgnoredScope, Recipe, WeightCompression, load_recipe
from tests.tiny_models import ARCHITECTURES, build_checkpoint

GIGABYTE = 10**9


def recipe_of(**weights: Any) -> Recipe:
    if not weights:
        return Recipe(name="none", method="none")
    return Recipe(name="test", weights=WeightCompression(**weights))


def stock_ir(checkpoint: Path, directory: Path) -> Path:
    """The IR that optimum's exporter writes, untouched by our code."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        str(checkpoint),
        directory,
        task="text-generation-with-past",
        library_name="transformers",
        ov_config=OVConfig(dtype="auto"),
        convert_tokenizer=False,
        local_files_only=True,
    )
    return directory


def stock_size(ir: Path, scratch: Path, **arguments: Any) -> int:
    """Size of the ``.bin`` that NNCF with these arguments leads to."""
    import nncf
    import openvino as ov

    if not arguments:
        return (ir / "openvino_model.bin").stat().st_size
    enums: dict[str, Callable[[str], Any]] = {"mode": nncf.CompressWeightsMode, "backup_mode": nncf.BackupMode}
    given = {name: enums.get(name, lambda value: value)(value) for name, value in arguments.items()}
    fallback = given.pop("group_size_fallback", None)
    if fallback is not None:
        given["advanced_parameters"] = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode(fallback)
        )
    if "ignored_scope" in given:
        given["ignored_scope"] = nncf.IgnoredScope(**given["ignored_scope"])
    model = nncf.compress_weights(ov.Core().read_model(ir / "openvino_model.xml"), **given)
    ov.save_model(model, scratch / "compressed.xml", compress_to_fp16=False)
    return (scratch / "compressed.bin").stat().st_size


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llama", "llama")


@pytest.fixture(scope="module")
def llama_ir(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock_ir(llama, tmp_path_factory.mktemp("ir") / "llama")


def config_only(tmp_path: Path, **fields: Any) -> Source:
    """A source of which only config.json is there, as before a download."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config |= ARCHITECTURES["llama"] | fields
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return Source(kind="checkpoint", layout="checkpoint", path=tmp_path, config=config)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"mode": "int8_asym"},
        {"mode": "int4_sym", "group_size": 64},
        {"mode": "int4_asym", "group_size": 64, "ratio": 0.7},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())) or "none",
)
def test_size_of_a_llama(llama: Path, llama_ir: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    predicted = forecast(resolve(llama), recipe_of(**arguments))
    tolerance = 0.02 if "ratio" in arguments else 0.002
    assert predicted.size_bytes == pytest.approx(stock_size(llama_ir, tmp_path, **arguments), rel=tolerance)


@pytest.mark.parametrize(
    ("model_type", "dtype"), [("gpt2", "float32"), pytest.param("mixtral", "bfloat16", marks=pytest.mark.slow)]
)
def test_size_of_odd_layouts(model_type: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "checkpoint", model_type, dtype=dtype)
    ir = stock_ir(checkpoint, tmp_path / "ir")
    predicted = forecast(resolve(checkpoint), recipe_of(mode="int4_asym", group_size=64))
    real = stock_size(ir, tmp_path, mode="int4_asym", group_size=64)
    assert predicted.size_bytes == pytest.approx(real, rel=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "options"),
    [(model_type, {}) for model_type in ARCHITECTURES]
    + [
        ("llama", {"tied": True}),
        ("llama", {"dtype": "float32"}),
        ("llama", {"dtype": "float16"}),
        ("gpt_neox", {"tied": True}),
        ("falcon", {"dtype": "float32"}),
        ("mixtral", {"dtype": "float32"}),
    ],
    ids=str,
)
def test_size_and_mapped_share_of_every_architecture(model_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    from llmcompress.loaders.loaded_model import load

    checkpoint = build_checkpoint(tmp_path / "checkpoint", model_type, **options)
    ir = stock_ir(checkpoint, tmp_path / "ir")
    for arguments in ({}, {"mode": "int8_sym"}, {"mode": "int4_sym", "group_size": 64}):
        predicted = forecast(resolve(checkpoint), recipe_of(**arguments))
        assert predicted.size_bytes == pytest.approx(stock_size(ir, tmp_path, **arguments), rel=0.002)
    loaded = load(checkpoint, offline=True, tokenizer=False)
    assert predicted.mapped_share == pytest.approx(loaded.mapped_share, abs=0.01)
    assert predicted.num_parameters == pytest.approx(loaded.num_parameters, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "int4_asym", "group_size": -1},
        {"mode": "int4_sym", "group_size": 64, "all_layers": True},
        {"mode": "int4_asym", "group_size": 64, "backup_mode": "none"},
        {"mode": "int4_asym", "group_size": 64, "backup_mode": "fp8_e4m3"},
        {"mode": "nf4", "group_size": 32},
        {"mode": "fp4", "group_size": 64},
        {"mode": "fp8_e4m3", "group_size": 128},
        {"mode": "mxfp4"},
        {"mode": "mxfp8_e4m3"},
        {"mode": "nvfp4"},
        {"mode": "cb4"},
        {"mode": "int3_sym", "group_size": 64},
        {"mode": "int2_sym", "group_size": 64},
        {"mode": "int4_sym", "group_size": 256, "group_size_fallback": "adjust"},
        {"mode": "int4_sym", "group_size": 256, "group_size_fallback": "ignore"},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_size_in_every_mode(llama: Path, llama_ir: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    predicted = forecast(resolve(llama), recipe_of(**arguments))
    assert predicted.size_bytes == pytest.approx(stock_size(llama_ir, tmp_path, **arguments), rel=0.002)


def test_an_ir_is_judged_by_its_graph(llama_ir: Path, tmp_path: Path) -> None:
    scope = {"patterns": [".*mlp.*"]}
    arguments = {"mode": "int4_asym", "group_size": 64}
    real = stock_size(llama_ir, tmp_path, **arguments, ignored_scope=scope)
    predicted = forecast(resolve(llama_ir), recipe_of(**arguments, ignored_scope=IgnoredScope(patterns=(".*mlp.*",))))
    assert predicted.size_bytes == pytest.approx(real, rel=0.002)
    assert predicted.mapped_share == 1.0
    modes = {layer.name.split(".")[-2]: layer.mode for layer in predicted.layers}
    assert modes["lm_head"] == "int8_asym"
    assert modes["down_proj"] == "bf16"


def test_nothing_but_the_configuration_is_read(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    source = resolve(llama)._replace(path=tmp_path)
    recipe = recipe_of(mode="int4_sym", group_size=64)
    without_files, with_files = forecast(source, recipe), forecast(resolve(llama), recipe)
    assert without_files.layers == with_files.layers
    assert without_files.size_bytes == with_files.size_bytes


def test_a_model_is_listed_once_for_several_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = inventory._meta_model
    monkeypatch.setattr(inventory, "_meta_model", lambda *given: built.append(given) or build(*given))
    source = resolve(build_checkpoint(tmp_path / "llama"))
    forecasts = [forecast(source, recipe_of(mode=mode)) for mode in ("int8_asym", "int4_sym", "int8_sym")]
    assert len(built) == 1
    assert forecasts[1].size_bytes < forecasts[0].size_bytes
    larger = resolve(build_checkpoint(tmp_path / "llama", num_hidden_layers=5))
    assert forecast(larger, recipe_of(mode="int8_asym")).num_parameters > forecasts[0].num_parameters
    # The same directory, and what its files say about their precision.
    in_f32 = source._replace(config={**source.config, "dtype": "float32", "torch_dtype": "float32"})
    forecast(in_f32, recipe_of(mode="int8_asym"))
    (tmp_path / "llama" / "model.safetensors").unlink()
    forecast(in_f32, recipe_of(mode="int8_asym"))
    assert len(built) == 4


def test_layers_of_a_llama(tmp_path: Path) -> None:
    predicted = forecast(config_only(tmp_path), recipe_of(mode="int4_sym", group_size=64))
    layers = {layer.name: layer for layer in predicted.layers}
    assert len(layers) == 2 + 4 * 7
    assert (layers["model.embed_tokens.weight"].mode, layers["lm_head.weight"].mode) == ("int8_asym", "int8_asym")
    down = layers["model.layers.3.mlp.down_proj.weight"]
    assert (down.shape, down.mode, down.group_size) == ((128, 384), "int4_sym", 64)
    assert down.size_bytes == 128 * 384 // 2 + 128 * (384 // 64) * 2
    assert predicted.num_parameters == 2 * 512 * 128 + 4 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384) + 9 * 128
    assert predicted.bits_per_weight == pytest.approx(8 * predicted.size_bytes / predicted.num_parameters)


def test_tied_weights_are_one_embedding(tmp_path: Path) -> None:
    predicted = forecast(config_only(tmp_path, tie_word_embeddings=True), recipe_of(mode="int4_sym", group_size=64))
    assert [layer.name for layer in predicted.layers if layer.mode == "int8_asym"] == ["model.embed_tokens.weight"]


def test_a_model_too_large_for_this_machine_is_still_predicted(tmp_path: Path) -> None:
    huge = config_only(tmp_path, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, head_dim=128)
    predicted = forecast(huge, recipe_of(mode="int4_sym"), engine="nncf")
    assert predicted.num_parameters > 300 * GIGABYTE
    assert predicted.peak_rss_bytes > predicted.size_bytes > 160 * GIGABYTE


def test_codes_wait_on_disk_where_memory_is_short(tmp_path: Path) -> None:
    source = config_only(tmp_path, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, head_dim=128)
    predicted = forecast(source, recipe_of(mode="int4_sym"), held=True)
    assert predicted.codes_on_disk
    assert predicted.min_memory_bytes < 3 * GIGABYTE
    assert predicted.disk_bytes > 2 * 0.95 * predicted.size_bytes
    assert predicted.notes[-2].startswith(
        "memory is short: codes that are done, and weights that AWQ has scaled, wait in a file"
    )
    for kept in (
        forecast(source, recipe_of(mode="int4_sym"), engine="nncf"),
        forecast(source, recipe_of(mode="mxfp4")),
    ):
        assert kept.min_memory_bytes > 0.95 * kept.size_bytes
        assert kept.disk_bytes < 1.05 * kept.size_bytes
    assert not forecast(config_only(tmp_path), recipe_of(mode="int4_sym"), held=True).codes_on_disk


def test_codes_that_are_made_where_they_are_saved_take_no_memory(tmp_path: Path) -> None:
    source = config_only(tmp_path, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, head_dim=128)
    predicted = forecast(source, recipe_of(mode="int4_sym"))
    assert not predicted.codes_on_disk
    assert predicted.min_memory_bytes < 3 * GIGABYTE
    assert predicted.size_bytes < predicted.disk_bytes < 1.05 * predicted.size_bytes


def test_group_size_that_does_not_divide(tmp_path: Path) -> None:
    source = config_only(tmp_path, intermediate_size=352)
    with pytest.raises(RecipeError) as caught:
        forecast(source, recipe_of(mode="int4_sym", group_size=64))
    message = str(caught.value)
    assert "group size 64 does not divide the input channels of 4 layers" in message
    assert "model.layers.0.mlp.down_proj.weight (352)" in message
    assert "divide every layer: 32, 16, 8, -1" in message
    modes = {
        fallback: {
            layer.name: (layer.mode, layer.group_size)
            for layer in forecast(
                source, recipe_of(mode="int4_sym", group_size=64, group_size_fallback=fallback)
            ).layers
        }["model.layers.0.mlp.down_proj.weight"]
        for fallback in ("adjust", "ignore")
    }
    assert modes == {"adjust": ("int4_sym", 32), "ignore": ("bf16", None)}


def test_mixed_precision_may_spare_undivided_layers(tmp_path: Path) -> None:
    source = config_only(tmp_path, intermediate_size=352)
    predicted = forecast(source, recipe_of(mode="int4_sym", group_size=64, ratio=0.5))
    assert any("the run fails unless" in note for note in predicted.notes)
    assert {layer.mode for layer in predicted.layers} == {"int8_asym", "by sensitivity"}
    with pytest.raises(RecipeError, match="group size 64 does not divide"):
        forecast(source, recipe_of(mode="int4_sym", group_size=64, ratio=0.9))


def test_backup_mode_with_groups_that_do_not_divide(tmp_path: Path) -> None:
    source = config_only(tmp_path, hidden_size=96, intermediate_size=384)
    with pytest.raises(RecipeError) as caught:
        forecast(
            source, recipe_of(mode="int4_sym", group_size=64, group_size_fallback="adjust", backup_mode="fp8_e4m3")
        )
    assert "weights.backup_mode: group size 64 does not divide" in str(caught.value)
    assert "set weights.backup_mode to int8_asym" in caught.value.hint


def test_mx_modes_have_fixed_groups(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        forecast(config_only(tmp_path, intermediate_size=400), recipe_of(mode="mxfp4"))
    assert "group size 32 does not divide" in caught.value.message
    assert "group_size_fallback ignore" in caught.value.hint


def test_what_a_configuration_cannot_show_is_said(tmp_path: Path) -> None:
    scope = IgnoredScope(types=("Gather",))
    predicted = forecast(config_only(tmp_path), recipe_of(mode="int8_asym", ignored_scope=scope))
    assert any("ignored_scope names nodes of the converted graph" in note for note in predicted.notes)
    unsaid = forecast(config_only(tmp_path, dtype=None), recipe_of(mode="int8_asym"))
    assert any("f32 is assumed" in note for note in unsaid.notes)
    moe = ARCHITECTURES["mixtral"] | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    copied = forecast(config_only(tmp_path, **moe), recipe_of(mode="int8_asym"))
    assert copied.mapped_share < 0.2
    assert any("is copied into memory" in note for note in copied.notes)


def test_files_in_another_precision_are_said(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path, dtype="float32", tokenizer=False)
    config = json.loads((checkpoint / "config.json").read_text()) | {"dtype": "bfloat16"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    predicted = forecast(resolve(checkpoint), recipe_of())
    assert any("the files hold f32, config.json says bf16" in note for note in predicted.notes)
    assert predicted.mapped_share == 0.0
    assert predicted.layers[0].mode == "bf16"


def test_a_configuration_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"transformers cannot build the model that config\.json describes"):
        forecast(config_only(tmp_path, num_hidden_layers="four"), recipe_of())
    with pytest.raises(ModelError, match=r"precision as 'float8_e4m3fn'; bfloat16, float16 and float32 are accepted"):
        forecast(config_only(tmp_path, dtype="float8_e4m3fn"), recipe_of())


def test_what_fits(tmp_path: Path) -> None:
    predicted = forecast(config_only(tmp_path), recipe_of(mode="int8_asym"), tmp_path / "not" / "yet" / "there")
    assert predicted.fits
    assert predicted.disk_bytes > predicted.size_bytes
    assert predicted.min_memory_bytes < predicted.peak_rss_bytes
    require_fits(predicted)


@pytest.mark.parametrize(
    ("short", "message", "hint"),
    [
        (
            {"available_memory_bytes": GIGABYTE, "min_memory_bytes": 2 * GIGABYTE},
            "memory: it needs at least 2.00 GB of memory, 1.00 GB are available",
            "close other programs",
        ),
        (
            {"free_disk_bytes": GIGABYTE, "disk_bytes": 3 * GIGABYTE},
            "disk: the output needs 3.00 GB, 1.00 GB are free",
            "free some space",
        ),
    ],
    ids=["memory", "disk"],
)
def test_what_does_not_fit(short: dict[str, int], message: str, hint: str, tmp_path: Path) -> None:
    predicted: Forecast = forecast(config_only(tmp_path), recipe_of()).model_copy(update=short)
    with pytest.raises(ResourceError) as caught:
        require_fits(predicted)
    assert str(caught.value).startswith(message)
    assert caught.value.hint.startswith(hint)
    assert caught.value.exit_code == 3


def test_primary_share_stays_below_the_ratio() -> None:
    weights = [Weight(str(i), (100, 100), "matmul", 1, "bf16") for i in range(10)]
    assert primary_share(weights, 1.0) == 1.0
    assert primary_share(weights, 0.0) == 0.0
    assert primary_share(weights, 0.8) == pytest.approx(0.75)
    many = [Weight(str(i), (10, 10), "matmul", 1, "bf16") for i in range(1000)]
    assert primary_share(many, 0.8) == pytest.approx(0.8, abs=0.001)


def test_ratio_zero_leaves_the_primary_precision_out() -> None:
    weights = [Weight(str(i), (64, 64), "matmul", 1, "bf16", is_head=i == 3) for i in range(4)]
    assigned, _ = assign(weights, WeightCompression(mode="int4_sym", group_size=64, ratio=0.0))
    assert {choice.backup.mode for choice in assigned} == {"int8_asym"}
    assert primary_share(weights, 0.0) == 0.0


def test_codebooks() -> None:
    weight = Weight("w", (64, 128), "matmul", 1, "bf16")
    short = layout("codebook", AdvancedCompression(codebook=tuple(range(16))))
    assert compressed_bytes(weight, short, -1) == 64 * 128 // 2 + 64 * 2 + 16 * 4
    long = layout("codebook", AdvancedCompression(codebook=tuple(range(17))))
    assert compressed_bytes(weight, long, 32) == 64 * 128 + 64 * 4 * 2 + 17 * 4


WATCHED_RUN = """
import sys
from llmcompress.compression.compress import compress
compress(sys.argv[1], sys.argv[2], sys.argv[3], offline=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the constants were fitted on Linux")
@pytest.mark.parametrize(
    ("model_type", "dtype", "recipe"),
    [("llama", "bfloat16", "int4"), ("gpt2", "float32", "int8"), ("qwen3_moe", "bfloat16", "int8")],
)
def test_peak_memory_of_a_real_run(model_type: str, dtype: str, recipe: str, tmp_path: Path) -> None:
    from llmcompress.spec import load_recipe

    larger: dict[str, Any] = {"vocab_size": 16_000, "hidden_size": 512, "num_hidden_layers": 6}
    if model_type == "gpt2":
        larger = {"vocab_size": 16_000, "n_embd": 512, "n_layer": 12}
    elif model_type == "qwen3_moe":
        larger |= {"moe_intermediate_size": 512, "num_experts": 16}
    else:
        larger |= {"intermediate_size": 1536}
    checkpoint = build_checkpoint(tmp_path / "checkpoint", model_type, dtype=dtype, **larger)
    predicted = forecast(resolve(checkpoint), load_recipe(recipe))
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED_RUN, str(checkpoint), recipe, str(tmp_path / "out")],
        cwd=Path(__file__).parents[1],
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    assert predicted.peak_rss_bytes == pytest.approx(usage.ru_maxrss * 1024, rel=0.2)


@pytest.mark.parametrize(("name", "mode"), [("int8-ptq", "int8_sym"), ("fp8-ptq", "fp8_e4m3")])
def test_quantized_activations(name: str, mode: str, tmp_path: Path) -> None:
    """The weights are predicted as they become, and the memory that NNCF takes is in the peak."""
    from llmcompress.compression.compress import compress
    from llmcompress.spec import load_recipe

    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(400)))
    changes = [f"calibration.dataset={text}", "calibration.num_samples=4", "calibration.seq_len=32"]
    checkpoint = build_checkpoint(tmp_path / "tiny")
    predicted = forecast(resolve(checkpoint), load_recipe(name, changes))
    report = compress(checkpoint, load_recipe(name, changes), tmp_path / "out")
    assert {layer.mode for layer in predicted.layers} == {layer.mode for layer in report.layers} == {mode}
    actual = (tmp_path / "out" / "openvino_model.bin").stat().st_size
    assert abs(predicted.size_bytes - actual) < 0.04 * actual
    weights_alone = forecast(resolve(checkpoint), recipe_of(mode="int8_sym"))
    assert predicted.peak_rss_bytes > weights_alone.peak_rss_bytes


@pytest.mark.parametrize("path", ["vision_embed_tokens", "embed_tokens_extend"])
def test_what_sees_inside_a_decoder_is_no_part_of_the_language_model(path: str) -> None:
    """As Phi-3-vision and Phi-4-multimodal have it."""
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens, self.layers = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4)
            self.add_module(path, torch.nn.Sequential(torch.nn.Linear(4, 4)))

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embed_tokens

    names = ("embed_tokens.weight", f"{path}.0.weight", "layers.weight")
    weights = tuple(Weight(name=name, kind="matmul", shape=(4, 4), in_axis=1, dtype="f32") for name in names)
    language, parts = _by_part(Decoder(), weights)
    # Without a head of its own, the table is that once more.
    assert [weight.name for weight in language] == ["layers.weight", "embed_tokens.weight"]
    assert [weight.name for weight in parts["vision_embeddings_model"]] == [f"{path}.0.weight"]
    assert [weight.name for weight in parts["text_embeddings_model"]] == ["embed_tokens.weight"]


def test_what_gptq_reads_waits_in_no_file(tmp_path: Path) -> None:
    """Long windows: the inputs of one layer are more than all weights, whatever else may wait on disk."""
    checkpoint = resolve(build_checkpoint(tmp_path / "tiny"))
    (tmp_path / "text.txt").write_text("text")
    needed = []
    for num_samples in (128, 1024):
        changes = [f"calibration.dataset={tmp_path / 'text.txt'}", "calibration.seq_len=256"]
        changes += [f"calibration.num_samples={num_samples}", "weights.group_size=64"]
        changes += [f"weights.advanced.gptq_params.subset_size={num_samples}"]
        needed.append(forecast(checkpoint, load_recipe("int4-gptq", changes)).min_memory_bytes)
    # 384 input channels in f32, twice; what the statistics keep is next to nothing.
    assert needed[1] - needed[0] > 0.9 * 2 * 4 * (1024 - 128) * 256 * 384
