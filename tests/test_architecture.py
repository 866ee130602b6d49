from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixture import all_logits

import llmcompress
from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders import exporter
from llmcompress.loaders.architecture import check_architecture
from llmcompress.loaders.checkpoint import Given, _instrumented_exporter
from llmcompress.loaders.exporter import VISION_TASK, auto_class, task_of
from llmcompress.loaders.quantized.declaration import check_quantization
from llmcompress.loaders.remote_code import ALLOW, check_tokenizer

LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("falcon", "FalconForCausalLM"),
        ("mixtral", "MixtralForCausalLM"),
        ("phimoe", "PhiMoEForCausalLM"),  # as published; transformers spells it PhimoeForCausalLM
        ("phi3", "Phi3ForCausalLM"),
    ],
)
def test_causal_language_models_pass(model_type: str, name: str) -> None:
    found = check_architecture({"model_type": model_type, "architectures": [name], "torch_dtype": "bfloat16"})
    assert found == (model_type, name, "bf16", "none", "", False)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "float16"}, "fp16"),
        ({"torch_dtype": "torch.float32"}, "fp32"),
        ({"dtype": "float8"}, "float8"),
        ({}, None),
    ],
)
def test_the_declared_precision(config: dict[str, str], dtype: str | None) -> None:
    assert check_architecture({**LLAMA, **config}).torch_dtype == dtype


def test_the_class_is_known_without_architectures() -> None:
    assert check_architecture({"model_type": "qwen2"}).class_name == "Qwen2ForCausalLM"


@pytest.mark.parametrize("model_type", [None, "", 5, ["llama"]])
def test_without_a_model_type(model_type: object) -> None:
    with pytest.raises(ModelError, match=r"model_type is .*; the name of an architecture"):
        check_architecture({**LLAMA, "model_type": model_type})


@pytest.mark.parametrize("names", ["LlamaForCausalLM", [1], {"a": 1}])
def test_architectures_of_a_wrong_form(names: object) -> None:
    with pytest.raises(ModelError, match=r"architectures is .*; a list of class names is needed"):
        check_architecture({**LLAMA, "architectures": names})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "an encoder (masked language model)"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "an encoder-decoder"),
        ({"model_type": "bart", "architectures": ["BartModel"], "is_encoder_decoder": True}, "an encoder-decoder"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "a classifier"),
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
            "a classifier with one score: a reward or rerank model",
        ),
        (
            {
                "model_type": "qwen3",
                "architectures": ["Qwen3ForSequenceClassification"],
                "sentence_transformers": {"version": "5.0.0"},
            },
            "a rerank model of sentence-transformers (a classifier)",
        ),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForProcessRewardModel"]}, "a reward model"),
        (
            {"model_type": "llama", "architectures": ["AutoModelForCausalLMWithValueHead"]},
            "a language model with",
        ),
        ({"model_type": "mistral", "architectures": ["MistralReranker"]}, "a rerank model"),
        ({"model_type": "llama", "architectures": ["LlamaBidirectionalModel"]}, "an embedding model"),
        ({"model_type": "mistral", "architectures": ["NVEmbedModel"]}, "an embedding model"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "is_causal": False}, "an embedding model"),
        ({"model_type": "llama", "use_bidirectional_attention": True}, "an embedding model"),
        ({"model_type": "llama", "architectures": ["LlamaForTokenClassification"]}, "a token classifier"),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "a bare model without an output head"),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLMEagle3"]},
            "a draft model for speculative decoding",
        ),
        ({"model_type": "paligemma", "vision_config": {"model_type": "clip"}}, "a vision-language model"),
        ({"model_type": "llama", "mm_vision_tower": "evil/repo"}, "a multimodal model"),
        ({"model_type": "minicpmv", "architectures": ["MiniCPMV"]}, "a vision-language model of a type that was not"),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, "a speech model"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "an image classifier"),
        ({"model_type": "llama", "architectures": ["Strange"]}, "something else"),
    ],
)
def test_other_kinds_of_models_are_named(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_architecture(config)
    assert f"is no causal language model but {reason}" in caught.value.message
    assert "ForCausalLM" in caught.value.hint


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "mamba", "deepseek_v3"])
def test_a_type_that_needs_an_older_transformers(model_type: str) -> None:
    import transformers
    from optimum.exporters.tasks import TasksManager

    window = rf"only with transformers .*at most [\d.]+; {transformers.__version__}"
    with pytest.raises(ModelError, match=window) as caught:
        check_architecture({"model_type": model_type, "transformers_version": "99.0"})
    exporter = TasksManager._SUPPORTED_MODEL_TYPE[model_type]["openvino"]["text-generation-with-past"].func
    high = exporter.MAX_TRANSFORMERS_VERSION
    assert re.search(rf"pip install 'transformers(>=[\d.]+,)?<={re.escape(str(high))}'", caught.value.hint)


def test_version_limits_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Limits:
        MIN_TRANSFORMERS_VERSION = "4.57"
        MAX_TRANSFORMERS_VERSION = "5.0"

    class Newer:
        MIN_TRANSFORMERS_VERSION = "9.1"

    class Never:
        MIN_TRANSFORMERS_VERSION, MAX_TRANSFORMERS_VERSION = "5.5", "5.0"

    monkeypatch.setattr(exporter, "_exporters", lambda task: {"a": Limits, "b": Newer, "c": Never})
    for installed, reason in (
        ("5.0.0", ""),
        ("4.57.0.dev0", ""),
        (
            "4.56.2",
            "optimum-intel converts 'a' only with transformers at least 4.57 and at most 5.0; 4.56.2 is installed",
        ),
        (
            "5.0.1",
            "optimum-intel converts 'a' only with transformers at least 4.57 and at most 5.0; 5.0.1 is installed",
        ),
    ):
        monkeypatch.setattr(exporter, "installed_transformers", lambda version=installed: version)
        assert exporter.not_convertible("a") == reason
    assert "at least 9.1; 5.0.1" in exporter.not_convertible("b")
    assert "works with no transformers version (from 5.5 up to 5.0)" in exporter.not_convertible("c")
    assert "pip install 'transformers>=4.57,<=5.0'" in exporter.remedy("a")
    assert "pip install 'transformers>=9.1'" in exporter.remedy("b")
    assert "another version of optimum-intel is needed" in exporter.remedy("c")


def test_clipping_that_the_exporter_leaves_out_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"attn_config.clip_qkv is 6, and the exporter's graph leaves out the clipping"
    ):
        check_architecture({"model_type": "mpt", "attn_config": {"clip_qkv": 6}})
    for attention in ({"clip_qkv": None}, {}, None):
        assert check_architecture({"model_type": "mpt", "attn_config": attention}).model_type == "mpt"


@pytest.mark.slow
def test_the_exporter_does_leave_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import MptConfig, MptForCausalLM

    torch.manual_seed(0)
    config = MptConfig(
        d_model=64, n_heads=4, n_layers=2, max_seq_len=128, vocab_size=256, attn_config={"clip_qkv": 0.02}
    )
    model = MptForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "source")
    monkeypatch.setattr("llmcompress.loaders.architecture._refuse_clipping", lambda *_: None)
    recipe = llmcompress.Recipe(name="n", method="none")
    llmcompress.compress(tmp_path / "source", recipe, tmp_path / "out", tokenizer=False)
    token_ids = np.arange(40)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids)[None]).logits[0].numpy()
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    # Where this fails the exporter has learned it, and the refusal can go.
    assert np.abs(all_logits(tmp_path / "out", token_ids, exact) - expected).max() > 0.05


def test_an_unknown_type_without_code_has_neighbours() -> None:
    with pytest.raises(ModelError, match="optimum-intel has no export of model type 'qwen33'") as caught:
        check_architecture({"model_type": "qwen33", "architectures": ["Qwen33ForCausalLM"]})
    assert "qwen3" in caught.value.hint


def test_a_model_of_a_newer_transformers_says_so() -> None:
    with pytest.raises(ModelError, match="no export") as caught:
        check_architecture({"model_type": "qwen9", "transformers_version": "99.1.0"})
    assert "saved with transformers 99.1.0, newer than the installed" in caught.value.hint


def test_a_type_the_exporter_knows_and_transformers_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcompress.loaders.architecture.not_convertible", lambda model_type, transformers, task: "")
    with pytest.raises(ModelError, match="does not know the model type 'tiny', and the model brings no code for it"):
        check_architecture({"model_type": "tiny"})
    allowed = check_architecture({"model_type": "tiny", "auto_map": {"AutoConfig": "a.B"}}, trust_remote_code=True)
    assert allowed.remote_code is True
    with pytest.raises(SecurityError) as caught:
        check_architecture({"model_type": "tiny", "auto_map": {"AutoConfig": "a.B"}})
    assert "`trust_remote_code` then allows it" in caught.value.hint


def test_remote_code_is_refused_and_the_flag_is_not_recommended_in_vain() -> None:
    config = {"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"], "auto_map": {"AutoConfig": "c.C"}}
    with pytest.raises(SecurityError, match="'minicpm' is not part of transformers: loading it runs Python") as caught:
        check_architecture(config)
    assert "`trust_remote_code` would not help: optimum-intel converts 'minicpm' only with" in caught.value.hint
    with pytest.raises(ModelError, match="at most"):
        check_architecture(config, trust_remote_code=True)
    config = {**config, "model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"]}
    with pytest.raises(SecurityError) as caught:
        check_architecture(config)
    assert caught.value.hint == "`trust_remote_code` would not help: it is no causal language model but a reward model"


def test_a_native_type_with_auto_map_uses_the_native_class() -> None:
    config = {**LLAMA, "auto_map": {"AutoModelForCausalLM": "modeling.M"}}
    assert check_architecture(config).remote_code is False
    assert check_architecture(config, trust_remote_code=True).remote_code is True


@pytest.mark.parametrize(
    "nested",
    [
        {"text_config": {"auto_map": {"AutoModel": "m.M"}}},
        {"img": [{"deep": {"auto_map": {"AutoModel": "evil/repo--m.M"}}}]},
        {"quantization_config": {"auto_map": {"x": "y"}}},
    ],
)
def test_nested_code_is_refused_at_any_depth(nested: dict[str, Any]) -> None:
    with pytest.raises(SecurityError, match=r"\.auto_map: loading that part runs Python code"):
        check_architecture({**LLAMA, **nested})


@pytest.mark.parametrize("trust", [True, False])
def test_the_exporters_own_override_is_always_refused(trust: bool) -> None:
    with pytest.raises(SecurityError, match="export_model_type makes the exporter treat the model as another type"):
        check_architecture({**LLAMA, "export_model_type": "llava-qwen2"}, trust_remote_code=trust)


@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel:flash"}])
def test_a_kernel_of_the_hub_is_refused(value: object) -> None:
    with pytest.raises(SecurityError, match="a compute kernel would be fetched from the Hub and run"):
        check_architecture({**LLAMA, "attn_implementation": value})
    assert check_architecture({**LLAMA, "attn_implementation": "sdpa"}).class_name == "LlamaForCausalLM"


def test_where_optimum_trusts_unasked_is_where_this_was_looked_at() -> None:
    """Each place that hard-codes the flag serves a kind of model that is refused; a new one must be looked at."""
    spec = importlib.util.find_spec("optimum.exporters.openvino")
    assert spec is not None
    assert spec.origin is not None
    places = set()
    for path in Path(spec.origin).parent.glob("*.py"):
        for outer in ast.parse(path.read_text()).body:
            for node in ast.walk(outer):
                is_call = isinstance(node, ast.Call)
                for keyword in node.keywords if is_call else ():
                    if keyword.arg == "trust_remote_code" and getattr(keyword.value, "value", None) is True:
                        places.add(getattr(outer, "name", "module"))
    assert places <= {"LlavaQwen2OpenVINOConfig", "Phi3VisionOpenVINOConfig"}
    with pytest.raises(ModelError):
        check_architecture({"model_type": "llava-qwen2", "mm_vision_tower": "x"}, trust_remote_code=True)


def test_the_encoder_that_a_phi3_vision_names_is_never_opened(tmp_path: Path) -> None:
    from optimum.exporters.openvino import model_configs
    from transformers import AutoConfig, Phi3Config

    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = Phi3Config(img_processor={"model_name": str(tmp_path)})
    with _instrumented_exporter(Given(), VISION_TASK, {}, []):
        exported = model_configs.Phi3VisionOpenVINOConfig(config, "image-text-to-text")
    assert not (tmp_path / "ran").exists()
    # That of CLIP's large encoder, as the published ones name it.
    assert exported._normalized_config.image_size == 336
    assert model_configs.AutoConfig is AutoConfig


@pytest.mark.parametrize(
    ("model_type", "more", "version"),
    [("internvl_chat", {"vision_config": {}}, "4.57.6"), ("phi3_v", {"img_processor": {}}, "4.53.3")],
)
def test_what_sees_by_code_of_its_repository_needs_that_to_be_allowed(
    model_type: str, more: dict[str, Any], version: str
) -> None:
    code = {"AutoConfig": "c.Config", "AutoModelForCausalLM": "m.Model"}
    config = {"model_type": model_type, "architectures": ["Model"], "auto_map": code, **more}
    assert task_of(config) == VISION_TASK
    with pytest.raises(SecurityError, match="is not part of transformers") as caught:
        check_architecture(config, transformers=version)
    assert caught.value.hint == ALLOW
    assert check_architecture(config, trust_remote_code=True, transformers=version).remote_code
    assert auto_class(config).__name__ == "AutoModelForCausalLM"
    assert auto_class({"model_type": "llava", "vision_config": {}}).__name__ == "AutoModelForImageTextToText"


@pytest.mark.parametrize("name", ["TinyTokenizer", None])
def test_a_tokenizer_with_code(name: str | None) -> None:
    config = {"auto_map": {"AutoTokenizer": ["t.T", None]}, "tokenizer_class": name}
    with pytest.raises(SecurityError, match="auto_map: loading it runs Python code"):
        check_tokenizer(config, model_type="chatglm")
    check_tokenizer(config, model_type="chatglm", trust_remote_code=True)
    check_tokenizer({**config, "tokenizer_class": "LlamaTokenizerFast"}, model_type="chatglm")
    check_tokenizer(config, model_type="qwen2")
    with pytest.raises(SecurityError, match="auto_map"):
        check_tokenizer(config, model_type="qwen2", where="processor_config.json")


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ({"quant_method": "mxfp4"}, ("keep", "MXFP4 weights are kept")),
        ({"quant_method": "bitnet"}, ("keep", "BitNet ternary weights are kept as they are")),
        ({"quant_method": "fbgemm_fp8"}, ("keep", "FBGEMM FP8 weights are kept")),
        ({"quant_method": "torchao"}, ("keep", "torchao weights are kept")),
        ({"load_in_4bit": True}, ("keep", "bitsandbytes weights are kept")),
        ({"quant_method": "gptq", "bits": 4}, ("keep", "GPTQ 4-bit weights are kept")),
        ({"quant_method": "gptq", "bits": 8}, ("keep", "GPTQ 8-bit weights are kept")),
        ({"quant_method": "awq"}, ("keep", "AWQ 4-bit weights are kept")),
        ({"quant_method": "compressed-tensors"}, ("keep", "compressed-tensors weights are kept")),
        ({"quant_method": "fp8"}, ("keep", "FP8 weights are kept")),
    ],
)
def test_quantized_checkpoints_that_convert(declared: dict[str, Any], what: tuple[str, str]) -> None:
    kind, note = check_quantization({"quantization_config": declared})
    assert kind == what[0]
    assert what[1] in note


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"quant_method": "quanto"}, "quantized already with 'quanto', which cannot be converted"),
        ({"quant_method": ["gptq"]}, "quantized already with \\['gptq'\\]"),
        ({"bits": 4}, "quantized already with None"),
        ({"quant_method": "gptq", "bits": 5}, "quantization_config.bits is 5; accepted: 2, 3, 4, 8"),
        ("fp8", "quantization_config is 'fp8'; an object is needed"),
    ],
)
def test_quantized_checkpoints_that_do_not(declared: object, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        check_architecture({**LLAMA, "quantization_config": declared})
    assert "before quantization" in caught.value.hint


def test_the_windows_read_without_an_import_are_the_exporters_own() -> None:
    for task in (exporter.TASK, exporter.VISION_TASK):
        found = exporter.declared_windows(task)
        assert found == {name: exporter._window(name, task) for name in exporter._exporters(task)}


@pytest.mark.parametrize("config", [{"model_type": "llava", "vision_config": {}}, {"model_type": "gemma3"}])
def test_vision_language_models_that_were_tried_are_taken(config: dict[str, Any]) -> None:
    assert check_architecture(config).model_type == config["model_type"]


def test_vision_language_models_have_windows_too() -> None:
    config = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    with pytest.raises(ModelError, match=r"converts 'qwen2_vl' only with transformers at least 4\.57 and at most 5\.0"):
        check_architecture(config)
