"""GGUF files: their codes come through as they are, their metadata becomes a configuration and a tokenizer."""

from __future__ import annotations

import filecmp
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import FakeHub, environment, running, use
from gguf_fixture import Array, as_transformers, blocks, experts_as_transformers, write_gguf
from layers_fixture import folder_with, logits_of_gemma
from push_fixture import TOKEN
from test_quantized_sources import EXACT, run, wikitext
from tiny_models import ARCHITECTURES, build_checkpoint

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import run as run_command
from llmcompress.cli.compress import default_output_name, is_quantized
from llmcompress.cli.compression_report import _kept_text
from llmcompress.cli.dry_run import forecast_source
from llmcompress.errors import ModelError, SecurityError, UsageError
from llmcompress.graph.model import read_ir
from llmcompress.loaders.environments import fitting_layer
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.quantized.gguf.blocks import BLOCK_FORMATS
from llmcompress.loaders.quantized.gguf.source import gguf_names
from llmcompress.loaders.quantized.packed import dequantized
from llmcompress.loaders.quantized.source_weights import source_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import source_checkpoint
from llmcompress.spec import Access, EvalSpec, load_recipe
from llmcompress.spec.plan import load_plan
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import silent

MODELS = Path(__file__).parent / "gguf_models"
TOKENS = json.loads((MODELS / "tokens.json").read_text(encoding="utf-8"))
IDS = np.arange(1, 33).reshape(2, 16)
SMALL: dict[str, Any] = {
    "dtype": "float32",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("gguf") / "model", **SMALL)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    """Q4_1, whose zero points are rounded."""
    said = {"general.name": "Tiny", "general.license": "mit", "general.quantized_by": "somebody"}
    said["general.base_model.0.repo_url"] = "https://huggingface.co/acme/tiny"
    return write_gguf(checkpoint, checkpoint.parent / "tiny.gguf", blocks("Q4_1"), **said)


def kl_divergence(expected: Array, logits: Array) -> float:
    def log_softmax(values: Array) -> Array:
        shifted = values.astype(np.float64) - values.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    right, found = log_softmax(expected), log_softmax(logits)
    return float((np.exp(right) * (right - found)).sum(-1).mean())


def test_blocks_become_what_the_package_gguf_makes_of_them() -> None:
    seen = set()
    for name in ("legacy", "k-quants", "dequantized"):
        source = resolve(MODELS / f"{name}.gguf")
        found = source_weights(source, source_checkpoint(source))
        assert found is not None
        config = llmcompress_config(source)
        expected = as_transformers(MODELS / f"{name}.gguf", config)
        for weight in found.weights:
            seen.add(weight.format.split()[1].rstrip(","))
            packed = weight.repack(found.mapped.read)
            right = expected[weight.name]
            # f32 zero points and one more product: a unit of the last place or two.
            assert np.abs(dequantized(packed) - right).max() <= 3e-7 * np.abs(right).max(), weight.format
            rounded = dequantized(packed._replace(unrounded=None))
            assert (np.abs(rounded - right).max() <= 3e-7 * np.abs(right).max()) == (packed.rounding == 0)
            assert packed.rounding <= 2**-11
            assert bool(weight.rounding) == (packed.unrounded is not None)
        for name, values in found.floats().items() if found.floats else ():
            assert np.array_equal(values, expected[name])
    assert seen >= set(BLOCK_FORMATS)
    assert seen >= {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "F16", "BF16"}


@pytest.mark.parametrize("name", ["legacy", "dequantized"])
def test_what_was_rounded_goes_to_another_process_with_its_source(name: str) -> None:
    source = resolve(MODELS / f"{name}.gguf")
    found = source_weights(source, source_checkpoint(source))
    assert found is not None
    rounded = [each for weight in found.weights if (each := weight.repack(found.mapped.read)).unrounded]
    assert rounded
    for packed in rounded:
        there = pickle.loads(pickle.dumps(packed))
        assert np.array_equal(dequantized(there), dequantized(packed))


def llmcompress_config(source: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source.path)


@pytest.mark.parametrize(
    ("name", "executed"),
    [("legacy", {"i4", "u4", "i8", "u8", "f4e2m1"}), ("k-quants", {"u4", "i4", "u8", "i8"}), ("dequantized", {"i8"})],
)
def test_the_logits_are_those_of_the_package_gguf(name: str, executed: set[str]) -> None:
    expected = np.load(MODELS / f"{name}.npy")
    loaded = llmcompress.load(MODELS / f"{name}.gguf", tokenizer=False)
    logits, found = run(loaded.model, IDS)
    assert found - {"f16", "f32", "bf16"} == executed
    assert kl_divergence(expected, logits) <= 2e-5
    if name == "k-quants":
        assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    exact, found = run(loaded.dequantized().model, IDS)
    assert np.abs(exact - expected).max() <= EXACT * np.abs(expected).max()
    assert found <= {"f16", "f32", "bf16"}


def test_k_quants_take_little_more_than_in_their_file(tmp_path: Path) -> None:
    report = llmcompress.compress(MODELS / "k-quants.gguf", "keep", tmp_path / "out", tokenizer=False)
    # Codes, a byte for each group's scale and zero point, and two for each block's.
    expected = {"Q2_K": 5.125, "Q3_K": 4.5625, "Q4_K": 4.625, "Q5_K": 8.625, "Q6_K": 8.5625, "IQ4_XS": 8.3125}
    found = {
        layer.stored_as.split()[1]: (8 * layer.size_bytes / layer.num_parameters, layer.group_size)
        for layer in report.layers
        if layer.stored_as
    }
    for name, bits in expected.items():
        # The shapes of groups take some bytes more.
        assert bits <= found[name][0] <= bits + 0.25, name
        assert found[name][1] == (16 if name in ("Q2_K", "Q3_K", "Q6_K") else 32)
    predicted = forecast_source(
        str(MODELS / "k-quants.gguf"), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent,
        tokenizer=False,
    )  # fmt: skip
    actual = (tmp_path / "out" / "openvino_model.bin").stat().st_size
    assert predicted.size_bytes == pytest.approx(actual, rel=0.02)


def exact_types(name: str, values: Array) -> Any:
    kinds = {"attn_q": "Q4_0", "attn_k": "Q5_0", "attn_v": "Q5_1", "ffn_gate": "BF16", "ffn_up": "F16"}
    return blocks(kinds.get(name.split(".")[-2], "Q8_0"))(name, values)


def test_what_is_exact_gives_the_logits_of_its_floats(checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    path = write_gguf(checkpoint, tmp_path / "model.gguf", exact_types)
    torch_model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tensors = as_transformers(path, torch_model.config)
    torch_model.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(IDS)).logits.numpy()
    logits, _ = run(llmcompress.load(path, tokenizer=False).model, IDS)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()


GEMMA: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 32},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 32, "num_hidden_layers": 7},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GEMMA)
def test_gemma_is_converted_on_a_layer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = fitting_layer(kind)
    assert layer is not None
    folder = folder_with(layer)
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    monkeypatch.setitem(ARCHITECTURES, kind, ARCHITECTURES["llama"])
    vocabulary = TOKENS["vocabularies"]["llama"] | {"tokenizer.ggml.add_space_prefix": False}
    num_tokens = len(vocabulary["tokenizer.ggml.tokens"])
    sizes = {**SMALL, "head_dim": 32, "vocab_size": num_tokens, "tie_word_embeddings": True, **GEMMA[kind]}
    checkpoint = build_checkpoint(tmp_path / "model", kind, **sizes)
    for name, store in (("exact", exact_types), ("rounded", blocks("Q4_1"))):
        path = write_gguf(checkpoint, tmp_path / f"{name}.gguf", store, **vocabulary)
        given = {"checkpoint": checkpoint, "path": path, "ids": IDS}
        expected = run_supervised(logits_of_gemma, given, search_path=(folder,))
        if name == "exact":
            assert run_command(["compress", str(path), "-o", str(tmp_path / "out")]) == 0
            logits, executed = run(read_ir(tmp_path / "out"), IDS)
            assert executed - {"f16", "f32", "bf16"} == {"i4", "i8", "u8"}
            manifest = read_manifest(tmp_path / "out")
            assert manifest.environment.versions["transformers"] == layer.version
            assert manifest.kept is not None
        else:
            loaded = llmcompress.load(path)
            assert kl_divergence(expected, run(loaded.model, IDS)[0]) <= 2e-5
            logits, _ = run(loaded.dequantized().model, IDS)
        assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.slow
def test_a_file_of_the_hub_is_converted_on_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header says which layer, before anything large is fetched; the worker finds the file in the local cache."""
    layer = fitting_layer("gemma")
    assert layer is not None
    folder = folder_with(layer)
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    monkeypatch.setitem(ARCHITECTURES, "gemma", ARCHITECTURES["llama"])
    vocabulary = TOKENS["vocabularies"]["llama"] | {"tokenizer.ggml.add_space_prefix": False}
    num_tokens = len(vocabulary["tokenizer.ggml.tokens"])
    sizes = {**SMALL, "head_dim": 32, "vocab_size": num_tokens, "tie_word_embeddings": True}
    checkpoint = build_checkpoint(tmp_path / "model", "gemma", **sizes)
    path = write_gguf(checkpoint, tmp_path / "tiny.gguf", exact_types, **vocabulary)
    expected = run_supervised(
        logits_of_gemma, {"checkpoint": checkpoint, "path": path, "ids": IDS}, search_path=(folder,)
    )
    other = write_gguf(checkpoint, tmp_path / "other.gguf", **vocabulary)
    files = {"tiny.gguf": path.read_bytes(), "other.gguf": other.read_bytes(), "README.md": b"# card"}
    command = ["compress", "acme/tiny", "--file", "tiny.gguf"]
    with running(FakeHub(files=files)) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        # The command works in a process of its own.
        for name, value in environment(hub, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        assert run_command([*command, "-o", str(tmp_path / "no"), "--dry-run"]) == 0
        assert run_command([*command, "-o", str(tmp_path / "out")]) == 0
        assert run_command([*command, "-o", str(tmp_path / "again"), "--offline"]) == 0
        fetched = hub.asked("other.gguf")
    assert not fetched
    logits, _ = run(read_ir(tmp_path / "out"), IDS)
    assert np.abs(logits - expected).max() <= EXACT * np.abs(expected).max()
    manifest = read_manifest(tmp_path / "out")
    assert manifest.environment.versions["transformers"] == layer.version
    assert (manifest.provenance.id, [file.path for file in manifest.provenance.weight_files]) == (
        "acme/tiny",
        ["tiny.gguf"],
    )
    assert manifest.kept is not None
    bins = (tmp_path / name / "openvino_model.bin" for name in ("out", "again"))
    assert filecmp.cmp(*bins, shallow=False)


@pytest.mark.parametrize(
    ("kind", "types", "modes"),
    [("qwen3_moe", ("Q4_0", "Q8_0"), {"int4_sym"}), ("qwen2_moe", ("Q5_1", "F16"), {"int8_asym"})],
)
def test_experts_are_the_stacks_of_their_class(
    kind: str, types: tuple[str, str], modes: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setitem(ARCHITECTURES, "qwen2_moe", ARCHITECTURES["qwen3_moe"])
    sizes = {"num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    sizes |= {"shared_expert_intermediate_size": 96} if kind == "qwen2_moe" else {"norm_topk_prob": True}
    checkpoint = build_checkpoint(tmp_path / "model", kind, **{**SMALL, **sizes, "head_dim": 16})

    def store(name: str, values: Array) -> Any:
        if "gate_inp" in name:
            return None
        return blocks(types[0] if "exps" in name else types[1])(name, values)

    path = write_gguf(checkpoint, tmp_path / "model.gguf", store)
    torch_model = AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="eager").eval()
    tensors = {name: torch.from_numpy(values.copy()) for name, values in experts_as_transformers(path).items()}
    torch_model.load_state_dict(tensors)
    with torch.no_grad():
        expected = torch_model(torch.from_numpy(IDS)).logits.numpy()
    loaded = llmcompress.load(path, tokenizer=False)
    for model in (loaded.model, loaded.dequantized().model):
        assert np.abs(run(model, IDS)[0] - expected).max() <= EXACT * np.abs(expected).max()
    report = llmcompress.compress(loaded, "keep", tmp_path / "out", tokenizer=False)
    stacks = [layer for layer in report.layers if ".experts." in layer.name]
    assert {layer.name.partition(".experts.")[2] for layer in stacks} == {
        "gate_up_proj.0", "gate_up_proj.1", "down_proj"
    }  # fmt: skip
    assert {layer.mode for layer in stacks} == modes
    predicted = forecast_source(
        str(path), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent, tokenizer=False
    )
    actual = (tmp_path / "out" / "openvino_model.bin").stat().st_size
    assert predicted.size_bytes == pytest.approx(actual, rel=0.02)


def test_a_file_needs_no_recipe_and_says_what_is_rounded(model: Path, tmp_path: Path) -> None:
    assert is_quantized(str(model), Access(), silent)
    assert default_output_name(str(model), "keep") == "tiny-keep-ov"
    predicted = forecast_source(str(model), load_recipe("keep"), tmp_path / "no", Access(), "llmcompress", silent)
    assert "16 weights are GGUF Q4_1; their zero points become f16" in predicted.notes
    manifest = llmcompress.compress(model, "keep", tmp_path / "out")
    assert manifest.kept is not None
    assert re.match(r"16 of GGUF Q4_1; every weight at most 0\.0004\d? off", _kept_text(manifest.kept, manifest.layers))
    assert manifest.kept.executed == {"int4_asym": "u4"}
    assert 0 < manifest.kept.max_relative_rounding <= 2**-11
    assert all(0 < (layer.relative_rounding or 0) <= 2**-11 for layer in manifest.layers)
    sizes = (sorted(layer.size_bytes for layer in layers) for layers in (manifest.layers, predicted.layers))
    assert next(sizes) == pytest.approx(next(sizes), rel=0.02)
    assert [file.path for file in manifest.provenance.files] == ["tiny.gguf"]
    assert manifest.provenance.weight_bytes == model.stat().st_size
    assert manifest.provenance.quantization is not None
    said = manifest.provenance.quantization.settings
    assert said["general"]["quantized_by"] == "somebody"
    assert said["types"] == {"F32": 5, "Q4_1": 16}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 257
    card = llmcompress.render_card(tmp_path / "out")
    assert "base_model:\n- acme/tiny" in card
    assert "quantized by `somebody`" in card
    assert "license: mit" in card
    with pytest.raises(ModelError, match="recipe int8 would quantize it again"):
        llmcompress.compress(model, "int8", tmp_path / "again")
    spec = EvalSpec(dataset=str(wikitext(tmp_path)), num_windows=2, seq_len=64, precision="pinned")
    report = llmcompress.evaluate(tmp_path / "out", spec, reference=model)
    assert report.divergence is not None
    # The reference has the file's own zero points: with rounded ones it would be sums in another order, below 1e-9.
    assert 1e-9 < report.divergence.kl_divergence.value <= 2e-5


def test_floats_in_gguf_are_a_model_like_any_other(checkpoint: Path, tmp_path: Path) -> None:
    path = write_gguf(checkpoint, tmp_path / "model-f16.gguf", blocks("F16"))
    with pytest.raises(llmcompress.errors.RecipeError, match="method keep is for a checkpoint that is quantized"):
        llmcompress.compress(path, "keep", tmp_path / "out")
    report = llmcompress.compress(path, "int8", tmp_path / "out")
    assert {layer.mode for layer in report.layers} == {"int8_asym"}
    report = llmcompress.compress(path, "none", tmp_path / "none")
    assert {layer.mode for layer in report.layers} == {"f16"}
    assert report.kept is None
    assert report.provenance.dtype == "mixed"


def test_split_files_directories_and_names(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    first = write_gguf(checkpoint, folder / "tiny.gguf", blocks("Q8_0"), num_parts=3)
    assert first.name == "tiny-00001-of-00003.gguf"
    alone = write_gguf(checkpoint, tmp_path / "alone.gguf", blocks("Q8_0"))
    expected = source_checkpoint(resolve(alone)).tensors
    for place in (folder, first, folder / "tiny-00002-of-00003.gguf"):
        source = resolve(place)
        assert source.container is not None
        assert len(source.container.files) == 3
        assert {name: tensor.shape for name, tensor in source.container.tensors.items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
    logits, _ = run(llmcompress.load(folder, tokenizer=False).model, IDS)
    assert np.array_equal(logits, run(llmcompress.load(alone, tokenizer=False).model, IDS)[0])
    shutil.copy(alone, folder / "other.gguf")
    with pytest.raises(UsageError, match="there are 2 GGUF models") as caught:
        resolve(folder)
    assert "name one of these with `file`: other.gguf, tiny-00001-of-00003.gguf" in caught.value.hint
    assert resolve(folder, Access(file="other.gguf")).path.name == "other"
    with pytest.raises(UsageError, match=r"there is no GGUF file 'third.gguf'"):
        resolve(folder, Access(file="third.gguf"))
    with pytest.raises(UsageError, match="`file` has no effect on a single file"):
        resolve(alone, Access(file="other.gguf"))
    with pytest.raises(UsageError, match="`merge_adapter` has no effect on a GGUF file"):
        resolve(alone, Access(merge_adapter=True))
    (folder / "tiny-00003-of-00003.gguf").rename(folder / "tiny-00004-of-00004.gguf")
    with pytest.raises(ModelError, match="it is split into 3 files, and 2 are there"):
        resolve(folder, Access(file="tiny-00001-of-00003.gguf"))
    with pytest.raises(ModelError, match="it is split into 4 files, and 1 are there"):
        resolve(folder / "tiny-00004-of-00004.gguf")
    (folder / "tiny-00004-of-00004.gguf").rename(folder / "tiny-00003-of-00003.gguf")
    shutil.copy(folder / "tiny-00002-of-00003.gguf", folder / "tiny-00003-of-00003.gguf")
    with pytest.raises(ModelError, match="it is part 1 of 3, by its name part 2 of 3"):
        resolve(first)


def test_one_of_several_files_of_the_hub(
    checkpoint: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight = write_gguf(checkpoint, tmp_path / "eight.gguf", blocks("Q8_0"))
    files = {"tiny.gguf": model.read_bytes(), "eight.gguf": eight.read_bytes(), "README.md": b"# card"}
    with running(FakeHub(files=files)) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        with pytest.raises(UsageError, match="there are 2 GGUF models"):
            resolve("acme/tiny")
        source = resolve("acme/tiny", Access(file="eight.gguf"))
        assert (source.kind, source.id, source.path.name) == ("hub", "acme/tiny", "eight")
        # Headers alone tell what it is and what it becomes.
        assert source_checkpoint(source).tensors == source_checkpoint(resolve(eight)).tensors
        fetched = fetch_weights(source)
        assert fetched.container is not None
        assert sorted(path.name for path in fetched.container.path.iterdir()) == ["eight.gguf"]
        found = source_weights(fetched, source_checkpoint(fetched))
        assert found is not None
        assert {weight.format for weight in found.weights} == {"GGUF Q8_0"}
        assert resolve("acme/tiny", Access(file="eight.gguf", offline=True)).config == source.config


@pytest.mark.slow
def test_bench_and_chat_take_one_of_several_files(
    checkpoint: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "several"
    folder.mkdir()
    shutil.copy(model, folder)
    write_gguf(checkpoint, folder / "eight.gguf", blocks("Q8_0"))
    assert run_command(["chat", str(folder), "--file", "eight.gguf", "-p", "a", "-n", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["num_tokens"] <= 2
    options = ["-p", "4", "-n", "2", "-r", "1", "--file", "eight.gguf", "--json"]
    assert run_command(["bench", str(folder), *options]) == 0
    # What chat has made.
    assert json.loads(capsys.readouterr().out)[0]["source"].endswith("eight-keep-ov")
    kept = [path.name for path in (tmp_path / "cache" / "reference-ir").glob("*/*")]
    assert kept == ["eight-keep-ov"]


@pytest.mark.parametrize("command", ["bench", "chat"])
def test_a_file_that_no_source_has_is_refused(command: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, str(model.parent), "--file", "third.gguf"]) == 2
    assert "--file has no effect: no source is a directory with 'third.gguf', or a Hub id" in capsys.readouterr().err


def test_a_projector_is_no_second_model() -> None:
    assert gguf_names(["mmproj-f16.gguf", "model.gguf", "README.md"], None, "here") == ("model.gguf",)


def test_a_link_that_leaves_the_directory_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "linked.gguf").symlink_to(model)
    with pytest.raises(SecurityError, match=r"linked.gguf is a link to"):
        resolve(tmp_path)
    assert resolve(tmp_path, Access(allow_links=True)).path.name == "linked"


def test_plans_and_optimums_class_take_the_file(model: Path, tmp_path: Path) -> None:
    from llmcompress import OVModelForCausalLM

    plan = tmp_path / "plan.yaml"
    models = f"[{model}, {{source: {model.parent}, file: tiny.gguf}}]"
    plan.write_text(f"models: {models}\nrecipes: [keep]\noutput: out\n")
    first, second = load_plan(plan).models
    assert (first.short_name, second.access(offline=True).file) == ("tiny", "tiny.gguf")
    opened = OVModelForCausalLM.from_pretrained(model, quantization_config="keep")
    opened.save_pretrained(tmp_path / "saved")
    assert read_manifest(tmp_path / "saved").kept is not None


@pytest.mark.slow
def test_everything_that_follows_works_on_what_was_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluated, measured, compared and pushed as any other artifact, by the commands."""
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out, again = str(tmp_path / "out"), str(tmp_path / "again")
    text = ["--dataset", str(wikitext(tmp_path)), "--seq-len", "64", "--num-windows", "2"]
    assert run_command(["compress", str(model), "-o", out]) == 0
    assert run_command(["compress", str(model), "-r", "int8", "--requantize", "-o", again]) == 0
    for directory in (out, again):
        assert run_command(["eval", directory, "--reference", str(model), *text]) == 0
    capsys.readouterr()
    assert run_command(["bench", out, again, "-p", "4", "-n", "2", "-r", "1", "--json"]) == 0
    assert [report["source"] for report in json.loads(capsys.readouterr().out)] == ["out", "again"]
    assert run_command(["compare", out, again, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    kept, compressed = (row["evaluation"]["divergence"]["kl_divergence"]["value"] for row in rows)
    assert kept < compressed
    with running(FakeHub()) as hub:
        use(hub.url, tmp_path / "hub", monkeypatch)
        assert run_command(["card", out]) == 0
        assert run_command(["push", out, "acme/made"]) == 0
        pushed = hub.repos["acme/made"].head.files
    assert {"README.md", "llmcompress.json", "eval.json", "bench.json"} <= pushed.keys()
    assert "quantized by `somebody`" in pushed["README.md"].decode()
