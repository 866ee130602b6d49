"""The language model of a vision-language checkpoint, taken alone."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from summary_fixture import write_evaluation, write_model
from vision_fixture import build_vision, text_checkpoint

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import run as run_command
from llmcompress.compression.forecast import forecast
from llmcompress.compression.pruned import require_prunable_source
from llmcompress.compression.replay.key import why_not
from llmcompress.errors import ModelError, RecipeError, UsageError
from llmcompress.loaders.environments import needed_layer
from llmcompress.loaders.language_model import configuration, language_model
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import identity
from llmcompress.loaders.text_config import text_config
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.runner.state import Original, answers, compress_reason
from llmcompress.spec import Access, load_recipe

ALONE = Access(text_only=True)
TEXT_TYPES = {"llava": "llama", "mistral3": "mistral", "idefics3": "llama"}
"""Those that the installed transformers converts."""
OVERRIDES = ["weights.group_size=32", "weights.group_size_fallback=adjust"]
PINNED = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vision("llava", tmp_path_factory.mktemp("text") / "llava")


@pytest.fixture(scope="module")
def int4(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("text") / "int4"
    llmcompress.compress(checkpoint, load_recipe("int4", OVERRIDES), output, text_only=True)
    return output


def torch_logits(checkpoint: Path, ids: np.ndarray[Any, Any]) -> Any:
    """What the whole model, as transformers opens it, says of a text."""
    import torch
    from transformers import AutoModelForImageTextToText

    module = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        return module(torch.from_numpy(ids)).logits.numpy()


def graph_logits(loaded: llmcompress.LoadedModel, ids: np.ndarray[Any, Any]) -> Any:
    from llmcompress.graph.decoding import Decoder
    from llmcompress.graph.device import compile_model

    decoder = Decoder(compile_model(loaded.model, "CPU", PINNED))
    decoder.run(decoder.tensors(ids, 0))
    return decoder.request.get_tensor("logits").data


def test_it_says_of_text_what_the_whole_model_says_in_torch(checkpoint: Path) -> None:
    loaded = llmcompress.load(checkpoint, text_only=True)
    assert not loaded.parts
    assert loaded.config["model_type"] == "llama"
    assert loaded.config["architectures"] == ["LlamaForCausalLM"]
    ids = np.random.default_rng(0).integers(3, 256, (2, 24))
    expected = torch_logits(checkpoint, ids)
    # Of logits up to 1; rounding in another order, 1e-6 as measured.
    assert np.abs(graph_logits(loaded, ids) - expected).max() < 1e-4
    module = load_torch_model(resolve(checkpoint, ALONE))
    assert loaded.num_parameters == sum(each.numel() for each in module.parameters())
    import torch

    with torch.no_grad():
        assert np.abs(module(torch.from_numpy(ids)).logits.numpy() - expected).max() < 1e-5


def test_the_libraries_of_text_models_open_it(int4: Path) -> None:
    import openvino_genai
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    model, tokenizer = OVModelForCausalLM.from_pretrained(int4, ov_config=PINNED), AutoTokenizer.from_pretrained(int4)
    prompt = tokenizer("What is it?", return_tensors="pt")
    said = model.generate(**prompt, do_sample=False, max_new_tokens=6, min_new_tokens=6)[0, -6:]
    pipeline = openvino_genai.LLMPipeline(str(int4), "CPU", **PINNED)
    answer = pipeline.generate("What is it?", max_new_tokens=6, ignore_eos=True, apply_chat_template=False)
    assert tokenizer.decode(said, skip_special_tokens=True) == str(answer)


def test_the_manifest_the_card_and_the_forecast_say_whose_it_is(int4: Path, checkpoint: Path, tmp_path: Path) -> None:
    manifest = read_manifest(int4)
    assert (manifest.provenance.language_model_of, manifest.provenance.model_type) == ("llava", "llama")
    assert not manifest.parts
    assert llmcompress.verify(int4).ok
    card = llmcompress.render_card(int4)
    assert "The language model of the vision-language checkpoint on a local disk" in card
    assert "--text-only" in card
    assert "LLMPipeline" in card
    predicted = forecast(resolve(checkpoint, ALONE), load_recipe("int4", OVERRIDES), tmp_path)
    assert predicted.num_parameters == manifest.num_parameters
    assert predicted.size_bytes == pytest.approx((int4 / "openvino_model.bin").stat().st_size, rel=0.02)
    assert "the language model alone: llama, a causal language model" in predicted.notes
    assert not (int4 / "preprocessor_config.json").exists()


def test_models_without_such_a_part_are_refused_by_name(
    checkpoint: Path, int4: Path, demo_checkpoint: Path, tmp_path: Path
) -> None:
    for place in (demo_checkpoint, int4):
        with pytest.raises(UsageError, match="takes the language model of a vision-language checkpoint, and this is"):
            resolve(place, ALONE)
    configs = {
        r"of qwen2_vl is of a type that is not exported alone \(qwen2_vl_text\)": {
            "model_type": "qwen2_vl",
            "text_config": {"model_type": "qwen2_vl_text"},
        },
        r"of phi3_v is of a type that is not exported alone \(none that its configuration names\)": {
            "model_type": "phi3_v"
        },
    }
    for said, config in configs.items():
        with pytest.raises(ModelError, match=said):
            text_config({"vision_config": {}, **config}, "m")
    quantized = {"model_type": "llava", "vision_config": {}, "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(ModelError, match="codes are not taken over from a vision-language model"):
        text_config(quantized, "m")
    with pytest.raises(UsageError, match="text_only given for a model that is loaded already"):
        llmcompress.compress(llmcompress.load(int4), "none", tmp_path / "out", text_only=True)


def test_its_configuration_is_the_texts_with_what_the_whole_states() -> None:
    made = text_config(
        {
            "model_type": "gemma3",
            "vision_config": {},
            "torch_dtype": "bfloat16",
            "eos_token_id": [1, 106],
            "text_config": {"model_type": "gemma3_text", "hidden_size": 64},
        },
        "m",
    )
    assert made == {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106],
        "architectures": ["Gemma3ForCausalLM"],
    }


def test_what_goes_by_a_checkpoints_files_takes_no_part_of_it(checkpoint: Path) -> None:
    found = resolve(checkpoint, ALONE)
    assert not found.sees
    assert needed_layer(found) is None
    assert configuration(found).model_type == "llama"
    assert identity(found) != identity(resolve(checkpoint, vision=True))
    assert why_not(found, load_recipe("int8"), "llmcompress") == "it is a part of a vision-language checkpoint"
    recipe = load_recipe("int8", ["pruning.method=magnitude", "pruning.sparsity=0.5"])
    with pytest.raises(RecipeError, match="it is the language model of a vision-language checkpoint"):
        require_prunable_source(found, recipe)


def test_another_decoder_than_that_of_the_class_is_refused(checkpoint: Path) -> None:
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_pretrained(checkpoint)
    whole.model.language_model.__class__ = type("OtherModel", (type(whole.model.language_model),), {})
    with pytest.raises(ModelError, match="its decoder is a OtherModel, that of LlamaForCausalLM another one"):
        language_model(whole, "m")


@pytest.mark.slow
@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_its_bytes_are_those_of_a_text_checkpoint_by_stock_optimum(kind: str, tmp_path: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    whole = build_vision(kind, tmp_path / kind)
    loaded = llmcompress.load(whole, text_only=True)
    assert loaded.config["model_type"] == TEXT_TYPES[kind]
    ids = np.random.default_rng(0).integers(3, 256, (2, 24))
    assert np.abs(graph_logits(loaded, ids) - torch_logits(whole, ids)).max() < 1e-4
    llmcompress.compress(loaded, load_recipe("int4", OVERRIDES), tmp_path / "ours")
    options = {"bits": 4, "sym": False, "group_size": 32, "ratio": 1.0, "group_size_fallback": "adjust"}
    OVModelForCausalLM.from_pretrained(
        text_checkpoint(whole, tmp_path / "text"),
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(**options),
    ).save_pretrained(tmp_path / "stock")
    assert filecmp.cmp(tmp_path / "ours" / "openvino_model.bin", tmp_path / "stock" / "openvino_model.bin", False)
    ours, theirs = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("ours", "stock"))
    assert {name for name in ours if ours[name] != theirs.get(name)} <= {"_name_or_path", "transformers_version"}


@pytest.mark.slow
def test_it_is_compared_with_the_whole_model(int4: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    spec = llmcompress.EvalSpec(dataset=str(tmp_path / "text.txt"), seq_len=64, num_windows=4)
    report = llmcompress.evaluate(int4, spec, reference=checkpoint)
    assert report.divergence is not None
    # Of 4 bits and random weights; 1e-2 as measured.
    assert 0 < report.divergence.kl_divergence.value < 0.1
    assert report.pictures is None


@pytest.mark.slow
def test_the_command_takes_it(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compress", str(checkpoint), "--text-only", "-r", "int8", "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "the language model of llava" in printed
    assert "--text-only" not in printed


def test_a_plan_takes_it_and_knows_the_part_from_the_whole(checkpoint: Path, int4: Path, tmp_path: Path) -> None:
    rows = {"models": [{"source": str(checkpoint), "text_only": True}], "recipes": ["int4"]}
    (tmp_path / "plan.yaml").write_text(json.dumps(rows))
    (model,) = llmcompress.load_plan(tmp_path / "plan.yaml").models
    assert model.access(offline=True) == Access(offline=True, text_only=True)
    manifest = read_manifest(int4)
    alone, whole = Original(resolve(checkpoint, ALONE)), Original(resolve(checkpoint, vision=True))
    recipe = manifest.recipe
    assert compress_reason(int4, recipe, alone) is None
    assert compress_reason(int4, recipe, whole) == "the model changed"


def test_a_plan_reads_pictures_from_its_folder(checkpoint: Path, tmp_path: Path) -> None:
    evaluation = {"pictures": "seen.jsonl", "dataset": "bundled"}
    plan = {"models": [{"source": str(checkpoint)}], "recipes": ["int4"], "evaluation": evaluation}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    with pytest.raises(RecipeError, match=r"there is no file .*seen\.jsonl"):
        llmcompress.load_plan(tmp_path / "plan.yaml")
    (tmp_path / "seen.jsonl").touch()
    read = llmcompress.load_plan(tmp_path / "plan.yaml").evaluation
    assert read is not None
    assert read.pictures == str(tmp_path / "seen.jsonl")
    report = write_evaluation(write_model(tmp_path / "model"), 10.0)
    asked = report.spec.model_copy(update={"pictures": "seen.jsonl", "backend": "stateful"})
    again = read.model_copy(update={**asked.model_dump(), "pictures": str(tmp_path / "seen.jsonl")})
    assert answers(report.model_copy(update={"spec": asked}), again)
    assert not answers(report, again)
