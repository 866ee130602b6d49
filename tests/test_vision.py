"""Vision-language models: every part against stock Optimum, what opens the output, and what is refused."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llava_fixture import KIND, checkpoint, int8, loaded
from vision_fixture import QUESTION, picture

import llmcompress
from llmcompress.artifact import read_manifest
from llmcompress.cli import chat_model
from llmcompress.cli import run as run_command
from llmcompress.cli.chat_model import TalkSpec, open_model
from llmcompress.compression.parts import require_parts
from llmcompress.compression.replay.key import why_not
from llmcompress.errors import ModelError, RecipeError, ResourceError, UsageError
from llmcompress.graph.joining import text_decoder
from llmcompress.loaders.architecture import check_architecture
from llmcompress.loaders.environments import needed_layer
from llmcompress.loaders.exporter import TASK, VISION_TASK, task_of
from llmcompress.loaders.processor import check_processor, open_processor
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.seeing import Sight, picture_prompt
from llmcompress.loaders.source import Source, save_code
from llmcompress.spec import Recipe, dump_recipe, load_recipe
from llmcompress.spec.parts import INT8

__all__ = ["checkpoint", "int8", "loaded"]

PARTS = ("language_model", "vision_embeddings_model", "text_embeddings_model")


def stock(checkpoint: Path, output: Path, **options: Any) -> Path:
    from optimum.intel import OVModelForVisualCausalLM, OVWeightQuantizationConfig

    OVModelForVisualCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(**options)
    ).save_pretrained(output)
    return output


def weights(recipe: str) -> Recipe:
    overrides = {"int4": ["weights.group_size=32", "weights.group_size_fallback=adjust"]}
    return load_recipe(recipe, overrides.get(recipe, []))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("int8", {"bits": 8, "sym": False}),
        ("int4", {"bits": 4, "sym": False, "group_size": 32, "ratio": 1.0, "group_size_fallback": "adjust"}),
    ],
)
def test_the_weights_of_every_part_are_stocks(
    recipe: str, options: dict[str, Any], loaded: llmcompress.LoadedModel, checkpoint: Path, tmp_path: Path
) -> None:
    llmcompress.compress(loaded, weights(recipe), tmp_path / "ours")
    theirs = stock(checkpoint, tmp_path / "stock", **options)
    files = [f"openvino_{part}.bin" for part in PARTS]
    assert filecmp.cmpfiles(tmp_path / "ours", theirs, files, shallow=False)[0] == files


def test_a_directory_has_all_that_opens_it_and_says_what_its_parts_became(int8: Path, checkpoint: Path) -> None:
    manifest = read_manifest(int8)
    files = {file.path: file for file in manifest.files}
    assert tuple(part.name for part in manifest.parts) == PARTS
    for part in manifest.parts:
        stored = files[f"openvino_{part.name}.bin"]
        assert (part.size_bytes, part.sha256) == (stored.size_bytes, stored.sha256)
        expected = "int8_asym" if part.name == "language_model" else "int8_sym"
        assert {layer.mode for layer in part.layers if layer.mode.startswith("int")} == {expected}
    assert manifest.layers == manifest.parts[0].layers
    assert manifest.bits_per_weight == pytest.approx(
        sum(part.size_bytes for part in manifest.parts) * 8 / manifest.num_parameters
    )
    assert llmcompress.verify(int8).ok
    for name in ("processor_config.json", "tokenizer.json"):
        assert (int8 / name).read_bytes() == (checkpoint / name).read_bytes()
    assert (int8 / "preprocessor_config.json").is_file()


def test_genai_answers_about_a_picture(int8: Path) -> None:
    import openvino as ov
    import openvino_genai

    pipeline = openvino_genai.VLMPipeline(str(int8), "CPU")
    image = ov.Tensor(np.asarray(picture())[None])
    answer = pipeline.generate("What is it?", images=[image], max_new_tokens=4, ignore_eos=True)
    assert answer.perf_metrics.get_num_generated_tokens() == 4


@pytest.mark.slow
def test_stock_optimum_says_what_torch_says_with_and_without_a_picture(
    loaded: llmcompress.LoadedModel, checkpoint: Path, tmp_path: Path
) -> None:
    import torch
    from optimum.intel import OVModelForVisualCausalLM
    from transformers import AutoModelForImageTextToText, AutoProcessor

    llmcompress.compress(loaded, "none", tmp_path / "none")
    f32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    model = OVModelForVisualCausalLM.from_pretrained(tmp_path / "none", ov_config=f32)
    module = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    seen = AutoProcessor.from_pretrained(checkpoint)(images=[picture()], text=[QUESTION[KIND]], return_tensors="pt")
    ids = torch.arange(3, 27)[None]
    with torch.no_grad():
        for inputs in ({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, dict(seen)):
            # Of logits up to 1; rounding in another order, 1e-6 as measured.
            assert (model(**inputs).logits - module(**inputs).logits).abs().max() < 1e-4
        how = {"do_sample": False, "max_new_tokens": 8}
        assert torch.equal(model.generate(**seen, **how), module.generate(**seen, **how))


def test_a_part_takes_its_own_format_or_stays(loaded: llmcompress.LoadedModel, tmp_path: Path) -> None:
    parts = ["parts.vision_embeddings_model=none", "parts.text_embeddings_model.mode=int8_asym"]
    recipe = load_recipe("int4", ["weights.group_size=32", "weights.group_size_fallback=adjust", *parts])
    report = llmcompress.compress(loaded, recipe, tmp_path / "out")
    modes = {part.name: {layer.mode for layer in part.layers} for part in report.parts}
    assert modes["vision_embeddings_model"] == {"f32"}
    assert modes["text_embeddings_model"] == {"int8_asym"}
    assert "int4_asym" in modes["language_model"]


def test_what_was_predicted_is_what_was_written(checkpoint: Path, int8: Path, tmp_path: Path) -> None:
    from llmcompress.compression.forecast import forecast

    predicted = forecast(resolve(checkpoint, vision=True), load_recipe("int8"), tmp_path)
    manifest = read_manifest(int8)
    written = sum(part.size_bytes for part in manifest.parts)
    assert predicted.num_parameters == manifest.num_parameters
    assert predicted.size_bytes == pytest.approx(written, rel=0.02)


def test_the_card_names_the_parts_and_how_to_run_them(int8: Path) -> None:
    card = llmcompress.render_card(int8)
    assert "pipeline_tag: image-text-to-text" in card.replace('"', "")
    assert "VLMPipeline" in card
    assert "LLMPipeline" not in card
    assert all(f"`{part}`" in card for part in PARTS)


def test_what_takes_text_models_names_the_model_and_refuses_it(checkpoint: Path, int8: Path) -> None:
    for place in (checkpoint, int8):
        with pytest.raises(ModelError, match="llava is a vision-language model, which this cannot take yet") as caught:
            resolve(place)
        assert "llmcompress eval measures it on text" in caught.value.hint
    with pytest.raises(ModelError, match="llava is a vision-language model"):
        llmcompress.prepare_for_training(checkpoint, "int4")


def test_what_reads_pictures_is_not_measured_by_tasks(int8: Path) -> None:
    with pytest.raises(UsageError, match="task scores are measured of text models, this is a vision-language model"):
        llmcompress.evaluate(int8, llmcompress.EvalSpec(), tasks=["arc_easy"])


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"model_type": "llama"}, TASK),
        ({"model_type": "gemma3_text"}, TASK),
        ({"model_type": "gemma3", "vision_config": {}}, VISION_TASK),
        ({"model_type": "qwen2_vl"}, VISION_TASK),
        ({"model_type": "llama4"}, TASK),
        ({"model_type": "llama4", "vision_config": {}}, VISION_TASK),
    ],
)
def test_what_sees_is_exported_for_it(config: dict[str, Any], task: str) -> None:
    assert task_of(config) == task


def test_a_type_that_was_not_tried_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"of a type that was not tried \(minicpmv\)") as caught:
        check_architecture({"model_type": "minicpmv", "architectures": ["MiniCPMV"]}, trust_remote_code=True)
    assert "of those with pictures gemma3, " in caught.value.hint


def source(model_type: str, **more: Any) -> Source:
    return Source("checkpoint", "checkpoint", Path("m"), {"model_type": model_type, **more})


def test_what_sees_has_its_layer_too(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"qwen2_vl": "5.0.0", "qwen3_5": "5.2.0", "smolvlm": "4.57.6", "gemma3": None}
    found = {name: needed_layer(source(name, vision_config={})) for name in expected}
    assert {name: layer and layer.version for name, layer in found.items()} == expected
    assert run_command(["doctor", "--layers", "--json"]) == 0
    listed = {each["version"]: each["architectures"] for each in json.loads(capsys.readouterr().out)["layers"]}
    assert "qwen2_vl" in listed["5.0.0"]


def test_no_graph_is_kept_of_what_has_several() -> None:
    assert why_not(source("llava", vision_config={}), load_recipe("int8"), "llmcompress") == (
        "a vision-language model is several graphs"
    )


def test_parts_are_of_vision_language_models(int8: Path) -> None:
    recipe = load_recipe("int8", ["parts.vision_embeddings_model=none"])
    with pytest.raises(RecipeError, match="has no effect: m is a text model, which has one part") as caught:
        require_parts(source("llama"), recipe)
    assert caught.value.where == "recipe int8: parts"
    require_parts(source("qwen2_vl"), recipe)
    with pytest.raises(ModelError, match="codes are not taken over from a vision-language model"):
        require_parts(source("qwen2_vl", quantization_config={"quant_method": "awq", "bits": 4}), recipe)
    with pytest.raises(ModelError, match="an OpenVINO vision-language model is not compressed again"):
        require_parts(Source("ir", "ir", int8, {}), load_recipe("int4"))
    require_parts(source("qwen2_vl"), load_recipe("int4", ["weights.gptq=true", "calibration.dataset=text.txt"]))


def test_the_formats_of_parts_are_those_of_weights(tmp_path: Path) -> None:
    recipe = load_recipe("int4")
    assert recipe.weights_of("vision_embeddings_model") == INT8
    assert recipe.weights_of("mtp_model") == recipe.weights
    assert load_recipe("none").weights_of("vision_embeddings_model") is None
    kept = load_recipe("int4", ["parts.vision_embeddings_model=none", "parts.mtp_model.mode=int8_asym"])
    assert kept.weights_of("vision_embeddings_model") is None
    assert json.loads(kept.model_dump_json())["parts"]["mtp_model"]["mode"] == "int8_asym"
    written = tmp_path / "kept.yaml"
    written.write_text(dump_recipe(kept))
    assert load_recipe(written) == kept
    for changes, said in (
        (["parts.eyes=none"], "unknown key 'eyes'; accepted: text_embeddings_model, "),
        (["parts.vision_embeddings_model.gptq=true", "parts.vision_embeddings_model.mode=int4_sym"], "needs data, and"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe("int4", changes)
    with pytest.raises(RecipeError, match="has no effect without weights"):
        load_recipe("none", ["parts.vision_embeddings_model=none"])


def test_text_alone_is_read_as_torch_reads_it(loaded: llmcompress.LoadedModel, checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from llmcompress.graph.decoding import Decoder
    from llmcompress.graph.device import compile_model, properties_of

    ids = np.random.default_rng(0).integers(3, 256, (2, 24))
    with torch.no_grad():
        expected = AutoModelForImageTextToText.from_pretrained(checkpoint)(torch.from_numpy(ids)).logits.numpy()
    decoder = Decoder(compile_model(loaded.reading_text().model, "CPU", properties_of("CPU", "pinned")))
    found = []
    for start, end in ((0, 13), (13, 23), (23, 24)):
        decoder.run(decoder.tensors(ids[:, start:end], start))
        found.append(decoder.request.get_tensor("logits").data.copy())
    # Of logits up to 1; rounding in another order, 1e-6 as measured.
    assert np.abs(np.concatenate(found, axis=1) - expected).max() < 1e-4


@pytest.mark.slow
def test_it_is_measured_on_text_against_its_checkpoint(int8: Path, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    spec = llmcompress.EvalSpec(dataset=str(text), seq_len=64, num_windows=4)
    report = llmcompress.evaluate(int8, spec, reference=checkpoint)
    # Of 8 bits and random weights; 1e-4 as measured.
    lost = {each.backend: each.divergence.kl_divergence.value for each in report.backends if each.divergence}
    assert lost.keys() == {"stateful", "paged"}
    assert all(0 < value < 0.01 for value in lost.values())
    same = llmcompress.evaluate(checkpoint, spec, reference=checkpoint)
    assert same.divergence is not None
    # The reference is computed in exact arithmetic; 1e-6 as measured.
    assert same.divergence.kl_divergence.value < 1e-5


def test_a_processor_that_is_not_the_sources_is_refused(int8: Path, checkpoint: Path, tmp_path: Path) -> None:
    found = resolve(checkpoint, vision=True)
    output = shutil.copytree(int8, tmp_path / "out")
    check_processor(found, output)
    settings = json.loads((output / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (output / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="makes other numbers of a picture than the source's: pixel_values"):
        check_processor(found, output)
    with pytest.raises(ModelError, match="its processor cannot be opened"):
        open_processor(tmp_path)


def test_a_model_without_a_processors_class_has_its_tokenizer_and_its_pictures(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    from optimum.intel.openvino.modeling_visual_language import MODEL_TYPE_TO_CLS_MAPPING
    from transformers import CLIPImageProcessor

    checkpoint = shutil.copytree(demo_checkpoint, tmp_path / "internvl")
    CLIPImageProcessor(size={"shortest_edge": 56}).save_pretrained(checkpoint)
    found = open_processor(checkpoint)
    assert found.image_processor.size["shortest_edge"] == 56
    sizes = SimpleNamespace(image_size=56, patch_size=14)
    model = SimpleNamespace(
        preprocess_inputs=MODEL_TYPE_TO_CLS_MAPPING["internvl_chat"].preprocess_inputs,
        config=SimpleNamespace(vision_config=sizes, downsample_ratio=0.5),
    )
    prompt = picture_prompt(Sight(model, found, frozenset(), "m"), "What is it?", picture())
    # Of a square of 112 pixels four parts of 56, and the whole; a quarter of 16 patches each.
    assert prompt["pixel_values"].shape == (5, 3, 56, 56)
    text = found.tokenizer.decode(prompt["input_ids"][0])
    assert text.count("<IMG_CONTEXT>") == 5 * 4
    with pytest.raises(ModelError, match="it has no processor of pictures"):
        open_processor(demo_checkpoint)


def test_code_of_a_repository_goes_along_where_it_may_run(checkpoint: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (copied / "own.py").write_text("NUMBER = 1\n")
    for trusted in (False, True):
        save_code(source("llava")._replace(path=copied, trust_remote_code=trusted), tmp_path)
        assert (tmp_path / "own.py").exists() == trusted


def test_a_language_model_that_takes_more_than_text_says_so() -> None:
    import openvino as ov
    from openvino import opset13 as ops

    heard = ops.parameter(ov.PartialShape([-1, -1]), ov.Type.f32, name="sound")
    heard.output(0).set_names({"sound"})
    model = ov.Model([ops.result(heard)], [heard], "model")
    with pytest.raises(ModelError, match="its language model takes sound, which text alone does not give"):
        text_decoder(model, {}, where="m")


def test_chat_shows_a_picture_with_the_first_question(int8: Path, tmp_path: Path) -> None:
    import openvino as ov
    import openvino_genai

    picture().save(tmp_path / "picture.png")
    talk = open_model(int8, TalkSpec(max_new_tokens=4, pictures=(tmp_path / "picture.png",)))
    asked: list[dict[str, str]] = [{"role": "user", "content": "What is it?"}]
    answer = talk(asked, lambda piece: False)
    pipeline = openvino_genai.VLMPipeline(str(int8), "CPU")
    seen = [ov.Tensor(np.asarray(picture()))]
    assert answer.text == pipeline.generate("What is it?", images=seen, max_new_tokens=4).texts[0]
    assert answer.text != pipeline.generate("What is it?", max_new_tokens=4).texts[0]
    asked += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And now?"}]
    assert talk(asked, lambda piece: False).num_tokens == 4
    # Another conversation begins with the picture again.
    assert talk(asked[:1], lambda piece: False).text == answer.text


def test_chat_says_why_it_shows_no_picture(int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="a text model sees no pictures"):
        open_model(tmp_path, TalkSpec(pictures=(tmp_path / "picture.png",)))
    (tmp_path / "picture.png").write_text("none")
    with pytest.raises(UsageError, match="the picture cannot be read: "):
        open_model(int8, TalkSpec(pictures=(tmp_path / "picture.png",)))
    monkeypatch.setattr(chat_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="is talked to by OpenVINO GenAI, which is not installed"):
        open_model(int8, TalkSpec())


@pytest.mark.slow
def test_optimums_class_takes_recipes(checkpoint: Path, int8: Path, tmp_path: Path) -> None:
    from optimum.intel import OVModelForVisualCausalLM as Stock

    model = llmcompress.OVModelForVisualCausalLM.from_pretrained(checkpoint, quantization_config="int8")
    assert isinstance(model, llmcompress.OVModelForVisualCausalLM)
    assert isinstance(model, Stock)
    model.save_pretrained(tmp_path / "saved")
    assert llmcompress.verify(tmp_path / "saved").ok
    files = [f"openvino_{part}.bin" for part in PARTS]
    assert filecmp.cmpfiles(tmp_path / "saved", int8, files, shallow=False)[0] == files
    # Without a recipe it is Optimum's own.
    plain = llmcompress.OVModelForVisualCausalLM.from_pretrained(str(int8), export=False, compile=False)
    assert not isinstance(plain, llmcompress.OVModelForVisualCausalLM)


def test_optimums_class_says_what_it_does_not_take(checkpoint: Path, demo_checkpoint: Path) -> None:
    opened = llmcompress.OVModelForVisualCausalLM.from_pretrained
    with pytest.raises(UsageError, match="1 positional arguments after the model"):
        opened(checkpoint, "main", quantization_config="int8")
    with pytest.raises(UsageError, match="it is a text model, which has no parts"):
        opened(demo_checkpoint, quantization_config="int8")
    with pytest.raises(UsageError, match="a vision-language model has its cache inside"):
        opened(checkpoint, quantization_config="int8", use_cache=False)


def test_optimums_class_names_the_transformers_that_opens_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "vision_config": {}}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=r"opens 'qwen2_vl' only with transformers>=4\.57,<=5\.0"):
        llmcompress.OVModelForVisualCausalLM.from_pretrained(tmp_path, quantization_config="int8")
