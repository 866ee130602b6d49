"""Adapters beside a model are left out; on request they are merged, as peft merges them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import bench
from llmcompress.compression.compress import reference_ir
from llmcompress.compression.forecast.inventory import checkpoint_inventory
from llmcompress.errors import LlmcompressError, ModelError, ResourceError, SecurityError, UsageError
from llmcompress.loaders import load
from llmcompress.loaders.adapter import adapters_left_out, merge, require_mergeable
from llmcompress.loaders.convertible import require_convertible
from llmcompress.loaders.fetching import fetch_side_files, fetch_weights
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import identity
from llmcompress.runner import run_plan
from llmcompress.runner.state import Original
from llmcompress.spec.access import Access
from llmcompress.spec.plan import load_plan
from tests.fake_hub import COMMIT, FakeHub, running, use
from tests.plan_fixture import in_process
from tests.tiny_models import build_checkpoint

NAMES = ("q_proj", "v_proj")
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs the extra `adapters`")
MERGE = Access(merge_adapter=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("adapters") / "base", "llama", num_hidden_layers=2)


def put_adapter(directory: Path, base: str | Path, *, weights: bool = True, scale: float = 0.3, **config: Any) -> Path:
    """Write a LoRA of rank 4 on the queries and values of a llama of two layers with 128 channels."""
    import torch
    from safetensors.torch import save_file

    directory.mkdir(exist_ok=True)
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(NAMES),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    (directory / "adapter_config.json").write_text(json.dumps(fields | config))
    if weights:
        generator = torch.Generator().manual_seed(7)
        sizes = [(layer, name, 128 if name == "q_proj" else 64) for layer in range(2) for name in NAMES]
        tensors = {}
        for layer, name, size in sizes:
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, 128, generator=generator) * scale
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(size, 4, generator=generator) * scale
        save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})
    return directory


def with_files(base: Path, target: Path, **options: Any) -> Path:
    shutil.copytree(base, target)
    return put_adapter(target, "someone/base", **options)


def weights_of(source: Path) -> list[bytes]:
    model = load(source, tokenizer=False).model
    return sorted(op.data.tobytes() for op in model.get_ops() if op.get_type_name() == "Constant")


def test_an_adapter_beside_a_model_is_left_out_with_or_without_peft(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_files(base, tmp_path / "both")
    expected = weights_of(base)
    for module in ("models.auto.auto_factory", "integrations.peft"):
        # As where peft is installed: the files are looked for.
        monkeypatch.setattr(f"transformers.{module}.is_peft_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        assert weights_of(directory) == expected
    assert "both: the adapter beside the model is left out; `merge_adapter` merges it into the model" in caplog.text


def test_a_configuration_left_behind_by_a_merge_is_left_out(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_files(base, tmp_path / "leftover", weights=False)
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: True)
    with caplog.at_level(logging.WARNING):
        weights_of(directory)
    assert "leftover: adapter_config.json is left out: there are no weights of an adapter" in caplog.text
    with pytest.raises(ModelError, match=r"there is adapter_config\.json and no adapter_model\.safetensors"):
        resolve(directory, MERGE)


def test_transformers_finds_adapters_again_afterwards(base: Path, tmp_path: Path) -> None:
    from transformers.integrations import peft

    before = peft.find_adapter_config_file
    with adapters_left_out():
        assert peft.find_adapter_config_file(str(put_adapter(tmp_path / "lora", base))) is None
    assert peft.find_adapter_config_file is before


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_alone_says_how_it_is_merged(base: Path, tmp_path: Path, with_config: bool) -> None:
    directory = put_adapter(tmp_path / "lora", base)
    if with_config:
        shutil.copy(base / "config.json", directory)
    with pytest.raises(ModelError, match=r"it is an adapter|there is neither model\.safetensors nor") as caught:
        require_convertible(resolve(directory))
    assert "`merge_adapter`" in caught.value.hint


def test_without_peft_the_extra_is_named(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = put_adapter(tmp_path / "lora", base)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else find_spec(name))
    with pytest.raises(ResourceError, match="to merge an adapter, peft must be installed") as caught:
        require_convertible(resolve(directory, MERGE))
    assert caught.value.hint == "pip install 'llmcompress[adapters]'"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "it is an adapter of type 'PREFIX_TUNING'; LORA is merged"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None at revision None; a Hub id or a dir"),
    ],
)
def test_an_adapter_that_cannot_be_merged(base: Path, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(put_adapter(tmp_path / "lora", base, **config), MERGE)


def test_what_is_asked_to_be_merged_must_be_there(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`merge_adapter` has no effect: there is no adapter_config\.json"):
        resolve(base, MERGE)
    directory = put_adapter(tmp_path / "lora", base, weights=False)
    (directory / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(SecurityError, match=r"the adapter's weights are a pickle file \(adapter_model\.bin\)"):
        resolve(directory, MERGE)


def test_a_base_model_that_is_not_there_is_told_with_the_file_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(LlmcompressError) as caught:
        resolve(put_adapter(tmp_path / "lora", "/no/such/base"), MERGE)
    assert caught.value.hint.startswith("adapter_config.json of lora names /no/such/base as its base model; ")


def test_a_base_model_that_is_no_checkpoint_of_floats(base: Path, tmp_path: Path) -> None:
    ir = tmp_path / "ir"
    ir.mkdir()
    shutil.copy(base / "config.json", ir)
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (ir / name).write_bytes(b"")
    with pytest.raises(ModelError, match="is an OpenVINO IR; an adapter is merged into a checkpoint"):
        resolve(put_adapter(tmp_path / "lora", ir), MERGE)


@needs_peft
def test_what_peft_would_stumble_over_is_refused_before_the_work(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    adapter = resolve(put_adapter(tmp_path / "lora", base), MERGE).adapter
    assert adapter is not None
    with pytest.raises(ModelError, match="is quantized, and an adapter is merged into floating-point weights"):
        require_mergeable(adapter, quantized=True)
    save_file({}, adapter.path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors holds no tensor"):
        require_mergeable(adapter, quantized=False)


def test_a_base_on_the_hub_is_pinned_and_the_adapters_tokenizer_goes_first(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = put_adapter(tmp_path / "lora", "acme/tiny", revision="main")
    shutil.copy(base / "tokenizer.json", lora)
    with running(FakeHub(files={path.name: path.read_bytes() for path in base.iterdir()})) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        source = fetch_side_files(resolve(lora, MERGE))
        alone = fetch_side_files(resolve("acme/tiny"))
    assert (source.id, source.revision, source.path) == ("acme/tiny", COMMIT, alone.path)
    assert (source.text_path, alone.text_path) == (lora, alone.path)
    assert identity(source) != identity(alone)


def test_an_adapter_of_the_hub_has_its_commit(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = put_adapter(tmp_path / "lora", base)
    with running(FakeHub(files={path.name: path.read_bytes() for path in lora.iterdir()})) as hub:
        use(hub.url, tmp_path / "cache", monkeypatch)
        found = resolve("acme/tiny", MERGE)
        assert not any("adapter_model" in path for _, path in hub.asked("/resolve/"))
        fetched = fetch_weights(found).adapter
    assert found.path == base
    assert fetched is not None
    assert (fetched.id, fetched.revision, fetched.base) == ("acme/tiny", COMMIT, str(base))
    assert (fetched.path / "adapter_model.safetensors").read_bytes() == (
        lora / "adapter_model.safetensors"
    ).read_bytes()


@needs_peft
def test_the_merged_model_is_pefts(base: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llmcompress.evaluation.conversion import check_conversion
    from llmcompress.graph.device import compile_model, decoder_inputs, input_names, properties_of

    lora = put_adapter(tmp_path / "lora", base)
    before = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    loaded = load(lora, merge_adapter=True, tokenizer=False)
    module = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(module, str(lora)).merge_and_unload().float().eval()
    ids = np.arange(3, 40)[None]
    with torch.no_grad():
        expected = merged(torch.tensor(ids)).logits[0].numpy()
    compiled = compile_model(loaded.model, "CPU", properties_of("CPU", "pinned"))
    request = compiled.create_infer_request()
    request.infer(decoder_inputs(ids, 0, input_names(compiled)))
    # Sums in f32 in another order; the adapter changes the logits by more than a hundred times as much.
    bound = 1e-4 * float(np.abs(expected).max())
    np.testing.assert_allclose(request.get_tensor("logits").data[0], expected, atol=bound)
    with torch.no_grad():
        alone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(torch.tensor(ids)).logits[0].numpy()
    assert float(np.abs(alone - expected).max()) > 100 * bound
    assert hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest() == before
    assert loaded.provenance.adapter is not None
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} <= {
        file.path for file in loaded.provenance.files
    }
    assert check_conversion(lora, merge_adapter=True).passed


@needs_peft
def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = resolve(put_adapter(tmp_path / "lora", base, target_modules=["q_proj"]), MERGE)
    assert source.adapter is not None
    with pytest.raises(ModelError, match="4 of its tensors do not fit the base model: "):
        merge(AutoModelForCausalLM.from_pretrained(base), source.adapter)
    source = resolve(put_adapter(tmp_path / "infinite", base, scale=float("inf")), MERGE)
    assert source.adapter is not None
    with pytest.raises(ModelError, match="8 of its tensors hold NaN or infinite values: "):
        merge(AutoModelForCausalLM.from_pretrained(base), source.adapter)
    config = {"target_modules": ["w_pack"]}
    with pytest.raises(ModelError, match=r"peft could not merge it: .*Target modules"):
        load(put_adapter(tmp_path / "other", base, **config), merge_adapter=True, tokenizer=False)


def test_the_forecast_counts_what_merging_copies(base: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    alone = checkpoint_inventory(resolve(base))
    lora = put_adapter(tmp_path / "lora", base)
    with safe_open(base / "model.safetensors", "pt") as file:
        adapted = sum(
            2 * file.get_tensor(f"model.layers.{layer}.self_attn.{name}.weight").numel()
            for layer in range(2)
            for name in NAMES
        )
    merged = checkpoint_inventory(resolve(lora, MERGE))
    assert (merged.merged_bytes, merged.mapped_bytes) == (alone.merged_bytes + adapted, alone.mapped_bytes - adapted)
    every = checkpoint_inventory(resolve(put_adapter(lora, base, target_modules="all-linear"), MERGE))
    linear = sum(weight.num_parameters * 2 for weight in alone.weights if weight.kind == "matmul")
    assert every.merged_bytes == alone.merged_bytes + linear


@needs_peft
def test_a_plan_merges_an_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = put_adapter(tmp_path / "lora", base)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "models: [{source: ./lora, merge_adapter: true}]\nrecipes: [none]\n"
        "evaluation: {dataset: text.txt, seq_len: 16, num_windows: 2}\n"
    )
    (tmp_path / "text.txt").write_text("Many words, and no two of them alike. " * 20)
    calls = in_process(monkeypatch)
    first = run_plan(load_plan(plan))
    assert [row.failure for row in first.rows] == [None]
    made = tmp_path / "plan" / "lora" / "none"
    manifest = read_manifest(made)
    assert manifest.provenance.adapter is not None
    llmcompress.compress(lora, "none", tmp_path / "direct", merge_adapter=True)
    assert (made / "openvino_model.bin").read_bytes() == (tmp_path / "direct" / "openvino_model.bin").read_bytes()
    assert json.loads((made / "eval.json").read_text())["divergence"]["kl_divergence"]["value"] < 1e-6
    calls.clear()
    run_plan(load_plan(plan))
    assert [name for name, _ in calls] == ["survey"]
    put_adapter(lora, base, scale=0.2)
    assert Original(resolve(lora, MERGE)).is_of(manifest.provenance) is False
    assert Original(resolve(base)).is_of(manifest.provenance) is False


@needs_peft
def test_a_benchmarks_reference_has_the_adapter_merged(base: Path, tmp_path: Path) -> None:
    lora = put_adapter(tmp_path / "lora", base)
    found = Path(reference_ir(str(lora), merge_adapter=True))
    assert found.name == "lora-none-ov"
    assert read_manifest(found).provenance.adapter is not None
    with pytest.raises(UsageError, match="`merge_adapter` has no effect on OpenVINO directories"):
        bench._merged([str(found)])
    assert bench._merged([str(found), str(lora)]) == {str(lora)}
