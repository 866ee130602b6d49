"""Our OVModelForCausalLM and the stock one with our configuration: the same weights, the same behaviour."""

from __future__ import annotations

import filecmp
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FakeHub, running, use
from tiny_models import build_checkpoint

import llmcompress
from llmcompress import OVModelForCausalLM, Recipe, load_recipe
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.errors import ModelError, RecipeError, UsageError

WINDOWS = ("calibration.num_samples=8", "calibration.seq_len=64")
PROMPT = "def add(a, b):"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


def _stock(checkpoint: Path, config: Any, **options: Any) -> Any:
    from optimum.intel import OVModelForCausalLM as Stock

    return Stock.from_pretrained(checkpoint, export=True, quantization_config=config, **options)


def _answer(model: Any, checkpoint: Path, prompt: str = PROMPT) -> list[int]:
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(checkpoint)(prompt, return_tensors="pt")
    answer: list[int] = model.generate(**tokens, max_new_tokens=12, do_sample=False)[0].tolist()
    return answer


def _same(one: Path, other: Path) -> bool:
    return filecmp.cmp(one / "openvino_model.bin", other / "openvino_model.bin", shallow=False)


def _case(name: str, demo_checkpoint: Path) -> tuple[str, list[str]]:
    """A packaged recipe and what is changed in it."""
    text = f"calibration.dataset={BUNDLED_TEXT}"
    cases: dict[str, tuple[str, list[str]]] = {
        "int8": ("int8", []),
        "int4": ("int4", []),
        "awq-se": ("int4-awq-se", [text, *WINDOWS]),
        "int3": ("int4-sym", ["weights.mode=int3_sym", "weights.group_size=64"]),
        "nvfp4": ("mxfp4", ["weights.mode=nvfp4"]),
        "ratio": ("int4-mixed", []),
    }
    return cases[name]


@pytest.fixture(scope="module")
def stock_and_ours(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a case by stock from_pretrained with our configuration and by our class, each once."""
    root = tmp_path_factory.mktemp("ways")

    def make(name: str) -> Path:
        if not (root / name).exists():
            chosen = load_recipe(*_case(name, demo_checkpoint))
            stock = _stock(demo_checkpoint, chosen.to_quantization_config())
            ours = OVModelForCausalLM.from_pretrained(demo_checkpoint, quantization_config=chosen)
            assert _answer(ours, demo_checkpoint) == _answer(stock, demo_checkpoint)
            stock.save_pretrained(root / name / "stock")
            ours.save_pretrained(root / name / "ours")
        return root / name

    return make


@pytest.mark.parametrize(
    "name",
    ["int4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("int8", "awq-se", "int3", "nvfp4", "ratio"))],
)
def test_the_same_bytes_by_the_stock_class_and_by_ours(name: str, stock_and_ours: Callable[[str], Path]) -> None:
    assert _same(stock_and_ours(name) / "ours", stock_and_ours(name) / "stock")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("int4", "int8", "awq-se", "int3", "ratio")]
)
def test_the_same_bytes_by_the_command_line(
    name: str, stock_and_ours: Callable[[str], Path], demo_checkpoint: Path, tmp_path: Path
) -> None:
    recipe, changes = _case(name, demo_checkpoint)
    sets = [argument for change in changes for argument in ("--set", change)]
    command = [sys.executable, "-m", "llmcompress", "compress", str(demo_checkpoint), "-r", recipe, *sets]
    done = subprocess.run([*command, "-o", str(tmp_path / "cli")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _same(stock_and_ours(name) / "ours", tmp_path / "cli")
    manifests = [
        json.loads((place / "llmcompress.json").read_text())
        for place in (stock_and_ours(name) / "ours", tmp_path / "cli")
    ]
    # The same windows, too.
    assert manifests[0]["calibration"] == manifests[1]["calibration"]
    assert manifests[0]["files"] == manifests[1]["files"]


@pytest.mark.slow
def test_a_configuration_serves_twice_after_pickling_and_in_another_process(
    demo_checkpoint: Path, tmp_path: Path
) -> None:
    changes = [f"calibration.dataset={BUNDLED_TEXT}", *WINDOWS, "weights.scale_estimation=false"]
    config = load_recipe("int4-awq-se", changes).to_quantization_config()
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    program = f"""
        import pickle, pathlib
        from optimum.intel import OVModelForCausalLM
        config = pickle.loads(pathlib.Path({str(tmp_path / "config.pickle")!r}).read_bytes())
        model = OVModelForCausalLM.from_pretrained(
            {str(demo_checkpoint)!r}, export=True, compile=False, quantization_config=config
        )
        model.save_pretrained({str(tmp_path / "elsewhere")!r})
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.PIPE, text=True)
    before = config.to_dict()
    for place in ("first", "second"):
        _stock(demo_checkpoint, config, compile=False).save_pretrained(tmp_path / place)
    pickled = pickle.loads(pickle.dumps(config))
    _stock(demo_checkpoint, pickled, compile=False).save_pretrained(tmp_path / "pickled")
    assert config.to_dict() == before
    assert config.tokenizer is None
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    for place in ("second", "pickled", "elsewhere"):
        assert _same(tmp_path / "first", tmp_path / place)


def test_the_hint_that_stock_writes_arrives(tiny: Path, tmp_path: Path) -> None:
    recipe = load_recipe("int8", ["runtime.dynamic_quantization_group_size=64"])
    model = _stock(tiny, recipe.to_quantization_config(), compile=False)
    assert model.model.get_rt_info(["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]).value == "64"


def test_hints_that_only_ours_writes_are_in_force(tiny: Path) -> None:
    recipe = load_recipe("int8", ["runtime.kv_cache_precision=u4", "runtime.dynamic_quantization_group_size=64"])
    model = OVModelForCausalLM.from_pretrained(tiny, quantization_config=recipe)
    compiled = model.request.get_compiled_model()
    assert str(compiled.get_property("KV_CACHE_PRECISION").get_type_name()) == "u4"
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == 64


@pytest.mark.slow
@pytest.mark.parametrize("method", ["activations", "weights_and_activations"])
def test_activations_go_through_the_stock_class(method: str, tiny: Path, tmp_path: Path) -> None:
    """Compared with stock configurations, fed with the same windows by Optimum's quantizer."""
    import nncf
    from optimum.intel import (
        OVConfig,
        OVMixedQuantizationConfig,
        OVQuantizationConfig,
        OVQuantizer,
        OVWeightQuantizationConfig,
    )
    from transformers import AutoTokenizer

    from llmcompress.compression.nncf.runs import model_inputs
    from llmcompress.data import calibration_windows

    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(300)))
    fields: dict[str, Any] = {
        "name": "r",
        "method": method,
        "activations": {"smooth_quant_alpha": 0.6},
        "calibration": {"dataset": str(text), "num_samples": 4, "seq_len": 32},
    }
    stock: Any = OVQuantizationConfig(smooth_quant_alpha=0.6, num_samples=4)
    if method == "weights_and_activations":
        fields["weights"] = {"mode": "int4_sym", "group_size": 32, "ignored_scope": {"patterns": [".*down_proj.*"]}}
        weights = OVWeightQuantizationConfig(
            bits=4, sym=True, group_size=32, ignored_scope={"patterns": [".*down_proj.*"]}, num_samples=4
        )
        stock = OVMixedQuantizationConfig(weight_quantization_config=weights, full_quantization_config=stock)
    recipe = Recipe.model_validate(fields)
    _stock(tiny, recipe.to_quantization_config(), compile=False).save_pretrained(tmp_path / "ours")
    model = _stock(tiny, None, compile=False, load_in_8bit=False)
    assert recipe.calibration is not None
    windows = calibration_windows(recipe.calibration, AutoTokenizer.from_pretrained(tiny)).token_ids
    OVQuantizer(model).quantize(
        calibration_dataset=nncf.Dataset(list(model_inputs(model.model, windows))),
        ov_config=OVConfig(quantization_config=stock),
        save_directory=tmp_path / "stock",
    )
    assert _same(tmp_path / "ours", tmp_path / "stock")
    ours = OVModelForCausalLM.from_pretrained(tiny, quantization_config=recipe, compile=False)
    ours.save_pretrained(tmp_path / "by-our-class")
    assert _same(tmp_path / "by-our-class", tmp_path / "stock")


def test_a_bad_text_fails_with_its_own_error(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("too short")
    recipe = load_recipe("int4-awq-se", [f"calibration.dataset={text}", *WINDOWS, "weights.group_size=32"])
    with pytest.raises(llmcompress.DataError, match="the text gives 0 windows"):
        _stock(tiny, recipe.to_quantization_config())


@pytest.fixture(scope="module")
def ours(tiny: Path) -> Any:
    return OVModelForCausalLM.from_pretrained(tiny, quantization_config="int8")


def test_it_saves_what_compress_writes(ours: Any, tiny: Path, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path / "saved")
    report = llmcompress.compress(tiny, "int8", tmp_path / "compressed")
    assert llmcompress.verify(tmp_path / "saved").problems == ()
    manifest = json.loads((tmp_path / "saved" / "llmcompress.json").read_text())
    assert manifest["files"] == [json.loads(record.model_dump_json()) for record in report.files]
    assert manifest["layers"] == [json.loads(record.model_dump_json()) for record in report.layers]
    stages = [stage["stage"] for stage in manifest["measured"]["stages"]]
    assert stages == [stage.stage for stage in report.measured.stages]


def test_what_it_saved_opens_everywhere(ours: Any, tiny: Path, tmp_path: Path) -> None:
    import openvino_genai
    from optimum.intel import OVModelForCausalLM as Stock

    ours.save_pretrained(tmp_path / "saved")
    expected = _answer(ours, tiny)
    for cls in (Stock, OVModelForCausalLM):
        assert _answer(cls.from_pretrained(tmp_path / "saved"), tmp_path / "saved") == expected
    pipeline = openvino_genai.LLMPipeline(tmp_path / "saved", "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=2, apply_chat_template=False)
    assert isinstance(str(pipeline.generate(PROMPT, config)), str)


def test_saving_again_replaces_and_foreign_directories_stay(ours: Any, tiny: Path, tmp_path: Path) -> None:
    for _ in range(2):
        ours.save_pretrained(tmp_path / "saved")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no llmcompress artifact"):
        ours.save_pretrained(foreign)
    with pytest.raises(UsageError, match="is the input itself"):
        ours.save_pretrained(tiny)
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_changed_settings_are_saved(tiny: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    model = OVModelForCausalLM.from_pretrained(
        tiny,
        quantization_config="int8",
        compile=False,
        generation_config=GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.3, eos_token_id=257),
    )
    model.generation_config.bos_token_id = None
    model.config.use_cache = False
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {key: saved.get(key) for key in ("max_new_tokens", "do_sample", "temperature", "eos_token_id")} == {
        "max_new_tokens": 7,
        "do_sample": True,
        "temperature": 0.3,
        "eos_token_id": 257,
    }
    assert "bos_token_id" not in saved
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["use_cache"] is False
    assert "pad_token_id" not in config
    assert config["hidden_size"] == 128


@pytest.mark.slow
def test_a_graph_that_was_changed_is_saved_without_a_manifest(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import nncf
    from optimum.intel import OVConfig, OVQuantizer, OVWeightQuantizationConfig

    model = OVModelForCausalLM.from_pretrained(tiny, quantization_config="none", compile=False)
    OVQuantizer(model).quantize(ov_config=OVConfig(quantization_config=OVWeightQuantizationConfig(bits=8)))
    model.save_pretrained(tmp_path / "in-place")
    other = OVModelForCausalLM.from_pretrained(tiny, quantization_config="none", compile=False)
    other.model = nncf.compress_weights(other.model.clone())
    other.save_pretrained(tmp_path / "replaced")
    for place in ("in-place", "replaced"):
        assert not (tmp_path / place / "llmcompress.json").exists()
        weights = Recipe.from_artifact(tmp_path / place).weights
        assert weights is not None
        assert weights.mode == "int8_asym"
    assert caplog.text.count("saved without a manifest") == 2


def test_no_model_is_written_before_it_is_saved(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen: list[str] = []
    remove = shutil.rmtree

    def watched(path: Any, *args: Any, **kwargs: Any) -> None:
        seen.extend(entry.name for entry in Path(path).rglob("*") if entry.is_file())
        remove(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watched)
    model = OVModelForCausalLM.from_pretrained(tiny, quantization_config="int8", compile=False)
    assert "config.json" in seen
    assert not [name for name in seen if name.endswith((".bin", ".xml", ".safetensors"))]
    assert list(scratch.iterdir()) == []
    assert model.model_save_dir is None


def test_it_behaves_as_its_parent(ours: Any, tiny: Path) -> None:
    from optimum.intel import OVModelForCausalLM as Stock
    from transformers import AutoTokenizer, pipeline

    assert isinstance(ours, Stock)
    assert type(ours) is OVModelForCausalLM
    assert ours.stateful
    assert ours.use_cache
    assert ours.name_or_path == str(tiny)
    stock = _stock(tiny, load_recipe("int8").to_quantization_config())
    expected = _answer(stock, tiny)
    assert _answer(ours, tiny) == expected
    generator = pipeline("text-generation", model=ours, tokenizer=AutoTokenizer.from_pretrained(tiny))
    reference = pipeline("text-generation", model=stock, tokenizer=AutoTokenizer.from_pretrained(tiny))
    assert generator(PROMPT, max_new_tokens=6, do_sample=False) == reference(PROMPT, max_new_tokens=6, do_sample=False)


def test_options_of_the_parent(tiny: Path) -> None:
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(tiny)
    model = OVModelForCausalLM.from_pretrained(
        str(tiny),
        export=True,
        quantization_config="int8",
        compile=False,
        device="cpu",
        ov_config={"INFERENCE_PRECISION_HINT": "f32"},
        config=config,
        generation_config=GenerationConfig(max_new_tokens=2, eos_token_id=257),
        use_cache=True,
        trust_remote_code=False,
        local_files_only=True,
        token=None,
    )
    assert model.request is None
    assert model.config is config
    assert model.ov_config["INFERENCE_PRECISION_HINT"] == "f32"
    assert model.generation_config.max_new_tokens == 2
    model.compile()
    precision = model.request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    assert precision.get_type_name() == "f32"


@pytest.mark.slow
def test_without_a_cache_it_takes_optimums_own_path(tiny: Path) -> None:
    model = OVModelForCausalLM.from_pretrained(
        tiny, quantization_config="optimum-default-8bit", use_cache=False, preprocessors=["a tokenizer"]
    )
    assert not model.use_cache
    assert model.preprocessors == ["a tokenizer"]
    assert not model.stateful
    stock = _stock(tiny, load_recipe("int8").to_quantization_config(), use_cache=False)
    assert _answer(model, tiny) == _answer(stock, tiny)


def test_what_a_model_without_a_cache_leaves_no_room_for(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="have no effect with use_cache=False"):
        OVModelForCausalLM.from_pretrained(tiny, quantization_config="int8", use_cache=False, tokenizer=False)
    llmcompress.compress(tiny, "none", tmp_path / "none", tokenizer=False)
    with pytest.raises(UsageError, match="with its cache inside cannot be opened without it"):
        OVModelForCausalLM.from_pretrained(tmp_path / "none", quantization_config="int8", stateful=False)


@pytest.mark.slow
def test_without_a_recipe_it_is_its_parent(tiny: Path, tmp_path: Path) -> None:
    for given in (None, {"bits": 8, "sym": True}):
        model = OVModelForCausalLM.from_pretrained(tiny, export=True, compile=False, quantization_config=given)
        assert model.model.has_rt_info(["nncf", "weight_compression"]) is (given is not None)
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "llmcompress.json").exists()


@pytest.mark.parametrize("form", ["name", "file", "path", "recipe", "config", "dictionary", "optimum-default"])
def test_a_recipe_in_every_form(form: str, tiny: Path, tmp_path: Path) -> None:
    from llmcompress.spec import dump_recipe

    recipe = load_recipe("int4-sym")
    file = tmp_path / "mine.yaml"
    file.write_text(dump_recipe(recipe))
    given: dict[str, Any] = {
        "name": "int4-sym",
        "file": str(file),
        "path": file,
        "recipe": recipe,
        "config": recipe.to_quantization_config(),
        "dictionary": recipe.to_quantization_config().to_dict(),
        "optimum-default": "optimum-default",
    }
    model = OVModelForCausalLM.from_pretrained(tiny, quantization_config=given[form], compile=False)
    mode = model.model.get_rt_info(["nncf", "weight_compression", "mode"]).value
    assert mode == ("int4_asym" if form == "optimum-default" else "int4_sym")


def test_an_uncompressed_ir_is_compressed_and_a_compressed_one_refused(tiny: Path, tmp_path: Path) -> None:
    llmcompress.compress(tiny, "none", tmp_path / "none")
    llmcompress.compress(tiny, "int8", tmp_path / "int8")
    model = OVModelForCausalLM.from_pretrained(tmp_path / "none", quantization_config="int8")
    model.save_pretrained(tmp_path / "saved")
    assert _same(tmp_path / "saved", tmp_path / "int8")
    with pytest.raises(ModelError, match="the model is already compressed"):
        OVModelForCausalLM.from_pretrained(tmp_path / "int8", quantization_config="int8")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ({"token": "secret"}, "log in, or set HF_TOKEN"),
        ({"cache_dir": "/elsewhere"}, "set HF_HUB_CACHE instead"),
        ({"force_download": True}, "files in the cache are checked"),
        ({"subfolder": "onnx"}, "give the directory that holds config.json"),
        ({"load_in_8bit": True}, "take the recipe int8"),
        ({"torch_dtype": "float16"}, "start from the checkpoint's own precision"),
        ({"task": "text-classification"}, "remove it"),
        ({"compile_only": True}, "open the saved directory with compile_only=True"),
        ({"variant": "fp16"}, "give a directory with the files of that variant"),
        ({"from_onnx": True}, "give the original checkpoint"),
        ({"file_name": "model.xml"}, "give the directory that holds openvino_model.xml"),
        ({"preprocessors": ["a tokenizer"]}, "save_pretrained writes the model's own tokenizer"),
        ({"groupsize": 64}, "remove it"),
    ],
)
def test_options_that_a_recipe_leaves_no_room_for(option: dict[str, Any], hint: str, tiny: Path) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(option))} has no effect together with a recipe") as caught:
        OVModelForCausalLM.from_pretrained(tiny, quantization_config="int8", **option)
    assert hint in caught.value.hint
    assert "secret" not in str(caught.value)


def test_positional_options_are_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="1 positional arguments after the model"):
        OVModelForCausalLM.from_pretrained(tiny, True, quantization_config="int8")


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "bare", tokenizer=False)
    with pytest.raises(ModelError, match="no tokenizer") as caught:
        OVModelForCausalLM.from_pretrained(checkpoint, quantization_config="int8")
    assert "tokenizer=False" in caught.value.hint
    model = OVModelForCausalLM.from_pretrained(checkpoint, quantization_config="int8", tokenizer=False, compile=False)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "llmcompress.json").read_text())["tokenizer"] == "none"


def test_an_unknown_recipe_is_named(tiny: Path) -> None:
    with pytest.raises(RecipeError, match="no packaged recipe of this name"):
        OVModelForCausalLM.from_pretrained(tiny, quantization_config="int5")


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    with running(FakeHub(files=files, revisions=("main", "v1"))) as started:
        use(started.url, tmp_path / "hub-cache", monkeypatch)
        yield started


def test_a_model_on_the_hub_is_pinned(hub: FakeHub, tmp_path: Path) -> None:
    model = OVModelForCausalLM.from_pretrained("acme/tiny", revision="v1", quantization_config="int8", compile=False)
    assert model.name_or_path == "acme/tiny"
    model.save_pretrained(tmp_path / "saved")
    provenance = json.loads((tmp_path / "saved" / "llmcompress.json").read_text())["provenance"]
    assert (provenance["id"], provenance["revision"]) == ("acme/tiny", COMMIT)


def test_a_hub_models_tokenizer_alone_is_fetched_for_its_windows(hub: FakeHub, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(300)))
    recipe = load_recipe("int4-awq-se", [f"calibration.dataset={text}", *WINDOWS])
    config = recipe.to_quantization_config()
    config.tokenizer = "acme/tiny"
    assert config.dataset is not None
    assert len(config.dataset) == 8
    assert not hub.asked("model.safetensors")


def test_a_tokenizer_with_code_of_its_own_needs_leave(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "custom")
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    settings["tokenizer_class"] = "OwnTokenizer"
    (tmp_path / "custom" / "tokenizer_config.json").write_text(json.dumps(settings))
    code = (
        "from transformers import PreTrainedTokenizerFast\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (tmp_path / "custom" / "own.py").write_text(code)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text that is long enough" for number in range(300)))
    recipe = load_recipe("int4-awq-se", [f"calibration.dataset={text}", *WINDOWS])
    with pytest.raises(llmcompress.SecurityError):
        recipe.to_quantization_config().tokenizer = str(tmp_path / "custom")
    trusting = recipe.to_quantization_config(trust_remote_code=True, revision="of-the-hub", offline=True)
    trusting.tokenizer = str(tmp_path / "custom")
    assert trusting.dataset is not None
    assert trusting == recipe.to_quantization_config()


@pytest.mark.slow
def test_classes_that_optimum_chooses_by_itself_stay_ours(tmp_path: Path) -> None:
    from optimum.intel.openvino.modeling_decoder import OVPhi3ForCausalLM

    checkpoint = build_checkpoint(tmp_path / "phi3", "phi3")
    model = OVModelForCausalLM.from_pretrained(checkpoint, quantization_config="int8")
    assert isinstance(model, OVPhi3ForCausalLM)
    assert isinstance(model, OVModelForCausalLM)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "llmcompress.json").is_file()
    stock = _stock(checkpoint, load_recipe("int8").to_quantization_config())
    assert _answer(model, checkpoint) == _answer(stock, checkpoint)
