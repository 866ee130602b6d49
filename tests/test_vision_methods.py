"""Vision-language models: weights compressed with data, speed, plans, settings and searches of their language model."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llava_fixture import checkpoint, int8, loaded
from plan_fixture import in_process
from vision_fixture import picture

import llmcompress
from llmcompress import BenchSpec, Recipe, TuneSpec
from llmcompress.artifact import read_manifest, read_measurements
from llmcompress.benchmarking.benchmark import _require_shown, bench_case
from llmcompress.benchmarking.ratios import ratios
from llmcompress.benchmarking.timing import Run
from llmcompress.benchmarking.worker import Opened, open_model, run_model, runtime_of
from llmcompress.cli import run as run_command
from llmcompress.compression.parts import require_parts
from llmcompress.compression.picture_samples import picture_samples
from llmcompress.data.picture_pairs import picture_pairs
from llmcompress.errors import DataError, ModelError, RecipeError, SecurityError, UsageError
from llmcompress.graph.joining import text_feed
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.layout import decoder_part
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.benchmark import LoadTime, shape_text
from llmcompress.report.estimate import Estimate
from llmcompress.searching.search import _require_searchable
from llmcompress.spec import Calibration, load_recipe
from llmcompress.spec.benchmark import Setting, Shape
from llmcompress.spec.search import SearchSpec
from llmcompress.spec.tuning import parse_workload
from llmcompress.spec.validation import from_options
from llmcompress.tuning import trials
from llmcompress.tuning.application import _save
from llmcompress.tuning.race import Race, race

__all__ = ["checkpoint", "int8", "loaded"]

INT4 = {"mode": "int4_asym", "group_size": 32, "group_size_fallback": "adjust"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["a", "bird", "sings", "of", "the", "sea", "and", "light", "falls", "on", "old", "stones"]
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 6000)))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a picture, of another size each, and a question."""
    from PIL import Image

    folder, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(1)
    rows = []
    for number in range(4):
        points = random.integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(20, 0).repeat(15 + 5 * number, 1)
        Image.fromarray(points).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"What is in number {number} of these?"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def with_pictures(pairs: Path, **more: Any) -> dict[str, Any]:
    named = {"text_field": "question", "image_field": "image"}
    return {"dataset": str(pairs), **named, "num_samples": 4, "seq_len": 512, **more}


def recipe(text: Path, **more: Any) -> Recipe:
    weights = {**INT4, **more}
    calibration = {"dataset": str(text), "num_samples": 3, "seq_len": 24}
    return Recipe.model_validate({"name": "with-data", "weights": weights, "calibration": calibration})


def weights_of(directory: Path) -> bytes:
    return (directory / "openvino_language_model.bin").read_bytes()


def fed_by_hand(checkpoint: Path, windows: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Inputs of a language model as Optimum's class feeds a text, from the checkpoint's own table."""
    from transformers import AutoModelForImageTextToText

    table = AutoModelForImageTextToText.from_pretrained(checkpoint).get_input_embeddings().weight.detach().numpy()
    return [
        {
            "inputs_embeds": table[window][None],
            "attention_mask": np.ones((1, len(window)), np.int64),
            "position_ids": np.arange(len(window))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        for window in windows
    ]


def windows_of(checkpoint: Path, wanted: Recipe) -> np.ndarray:
    from transformers import AutoTokenizer

    from llmcompress.data import calibration_windows

    assert wanted.calibration is not None
    return calibration_windows(wanted.calibration, AutoTokenizer.from_pretrained(checkpoint)).token_ids


@pytest.mark.parametrize(
    "method",
    ["scale_estimation", pytest.param("awq", marks=pytest.mark.slow), pytest.param("ratio", marks=pytest.mark.slow)],
)
def test_with_data_the_language_models_bytes_are_nncfs(
    method: str, loaded: llmcompress.LoadedModel, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    import nncf
    import openvino as ov

    given: dict[str, Any] = {"ratio": 0.6} if method == "ratio" else {method: True}
    wanted = recipe(text, **given)
    llmcompress.compress(loaded, wanted, tmp_path / "ours")
    inputs = fed_by_hand(checkpoint, windows_of(checkpoint, wanted))
    stock = loaded.clone().model
    advanced = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    nncf.compress_weights(
        stock,
        mode=nncf.CompressWeightsMode.INT4_ASYM,
        group_size=32,
        dataset=nncf.Dataset(inputs),
        subset_size=3,
        advanced_parameters=advanced,
        **given,
    )
    (tmp_path / "stock").mkdir()
    ov.save_model(stock, tmp_path / "stock" / "openvino_language_model.xml", compress_to_fp16=False)
    assert weights_of(tmp_path / "ours") == weights_of(tmp_path / "stock")
    manifest = read_manifest(tmp_path / "ours")
    assert manifest.calibration is not None
    assert (manifest.calibration.num_windows, manifest.calibration.seq_len) == (3, 24)


@pytest.mark.slow
def test_gptq_of_the_language_model_is_nncfs(
    loaded: llmcompress.LoadedModel, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    import nncf

    from llmcompress.graph.integer_weights import integer_weights

    wanted = recipe(text, gptq=True, mode="int4_sym")
    llmcompress.compress(loaded, wanted, tmp_path / "ours")
    inputs, stock = fed_by_hand(checkpoint, windows_of(checkpoint, wanted)), loaded.clone().model
    nncf.compress_weights(
        stock,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=32,
        dataset=nncf.Dataset(inputs),
        subset_size=3,
        gptq=True,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    )
    ours = integer_weights(llmcompress.load(tmp_path / "ours", tokenizer=False).model)
    theirs = integer_weights(stock)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        code = float(np.abs(expected.scales.astype(np.float32)).mean())
        # Sums are rounded in another order: what lies half way between two codes may take the other one.
        assert float(np.abs(expected.values() - ours[name].values()).mean()) < 0.1 * code


@pytest.mark.slow
def test_activations_of_the_language_model_are_nncfs(
    loaded: llmcompress.LoadedModel, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    import nncf
    import openvino as ov

    from llmcompress.compression.nncf.activations import quantize_arguments

    wanted = load_recipe(
        "int8-ptq",
        [f"calibration={json.dumps({'dataset': str(text), 'num_samples': 3, 'seq_len': 24})}"],
    )
    llmcompress.compress(loaded, wanted, tmp_path / "ours")
    assert wanted.activations is not None
    samples = nncf.Dataset(fed_by_hand(checkpoint, windows_of(checkpoint, wanted)))
    stock = nncf.quantize(loaded.clone().model, samples, **quantize_arguments(wanted.activations, num_windows=3))
    (tmp_path / "stock").mkdir()
    ov.save_model(stock, tmp_path / "stock" / "openvino_language_model.xml", compress_to_fp16=False)
    assert weights_of(tmp_path / "ours") == weights_of(tmp_path / "stock")
    modes = {part.name: {layer.mode for layer in part.layers} for part in read_manifest(tmp_path / "ours").parts}
    assert modes["vision_embeddings_model"] == {"int8_sym"}


def test_what_text_alone_gives_is_fed() -> None:
    """Of a graph with all inputs of the exporter's: positions in rows, and what marks pictures."""
    import openvino as ov
    from openvino import opset13 as ops

    def parameter(name: str, shape: list[int], kind: ov.Type) -> ov.Node:
        made = ops.parameter(ov.PartialShape(shape), kind, name=name)
        made.output(0).set_names({name})
        return made

    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    ids = parameter("input", [-1, -1], ov.Type.i64)
    embedding = ov.Model([ops.result(ops.gather(ops.constant(table), ids, ops.constant(0)))], [ids], "embedding")
    taken = [
        parameter("inputs_embeds", [-1, -1, 4], ov.Type.f32),
        parameter("attention_mask", [-1, -1], ov.Type.i64),
        parameter("position_ids", [3, -1, -1], ov.Type.i64),
        parameter("visual_pos_masks", [-1, -1], ov.Type.boolean),
        parameter("deepstack_visual_embeds", [2, -1, 4], ov.Type.f32),
        parameter("beam_idx", [-1], ov.Type.i32),
    ]
    model = ov.Model([ops.result(each) for each in taken], taken, "model")
    fed = text_feed(model, {"text_embeddings_model": embedding})(np.array([7, 0, 3]))
    assert np.array_equal(fed["inputs_embeds"], table[[[7, 0, 3]]])
    assert np.array_equal(fed["attention_mask"], [[1, 1, 1]])
    assert np.array_equal(fed["position_ids"], np.tile([0, 1, 2], (3, 1, 1)))
    assert fed["visual_pos_masks"].dtype == np.bool_
    assert np.array_equal(fed["visual_pos_masks"], [[False] * 3])
    assert np.array_equal(fed["deepstack_visual_embeds"], np.zeros((2, 3, 4)))
    assert np.array_equal(fed["beam_idx"], [0])
    assert fed.keys() == {each.get_friendly_name() for each in taken}


def test_what_is_not_done_with_it_is_refused_by_name(checkpoint: Path, text: Path) -> None:
    found = resolve(checkpoint, vision=True)
    pruned = load_recipe("int4", ['pruning={"method": "magnitude", "sparsity": 0.5}'])
    with pytest.raises(RecipeError, match="of which nothing is pruned") as caught:
        require_parts(found, pruned)
    assert caught.value.where == "recipe int4: pruning"
    controlled = load_recipe(
        "int8-ptq-accuracy", [f"calibration={json.dumps(with_pictures(text.with_suffix('.jsonl')))}"]
    )
    with pytest.raises(RecipeError, match="accuracy control goes by text, which the calibration is not") as caught:
        require_parts(found, controlled)
    assert caught.value.where == "recipe int8-ptq-accuracy: activations.accuracy_control"
    with_adapters = load_recipe("int4-learned", [f"training.dataset={text}", "training.method=fq_lora"])
    with pytest.raises(RecipeError, match="and NNCF puts adapters on all of its parts") as caught:
        require_parts(found, with_adapters)
    assert caught.value.where == "recipe int4-learned: training.method"


def test_of_code_of_a_repository_nothing_is_learned_or_searched(text: Path) -> None:
    config = {"model_type": "internvl_chat", "vision_config": {}, "auto_map": {"AutoConfig": "c.Config"}}
    found = Source("checkpoint", "checkpoint", Path("m"), config, trust_remote_code=True)
    learned = load_recipe("int4-learned", [f"training.dataset={text}"])
    with pytest.raises(
        RecipeError, match="whose class is code of its repository, of which nothing is learned"
    ) as caught:
        require_parts(found, learned)
    assert caught.value.where == "recipe int4-learned: training"
    with pytest.raises(ModelError, match="that of what sees is code of its repository here"):
        _require_searchable(found, SearchSpec(max_bytes=1000))


def test_its_mtp_part_takes_the_format_without_the_data(text: Path) -> None:
    rule = {"match": ".*", "mode": "int8_sym"}
    wanted = recipe(text, scale_estimation=True, awq=True, rules=[rule], statistics_precision="bf16")
    assert (
        wanted.weights_of("mtp_model")
        == load_recipe(
            "int4", ["weights.group_size=32", "weights.group_size_fallback=adjust", "weights.awq=true"]
        ).weights
    )
    clustered = recipe(text, mode="adaptive_codebook", group_size=-1, group_size_fallback="error")
    assert clustered.weights_of("mtp_model") == load_recipe("int8-sym").weights


def drawn(rows: int) -> list[int]:
    return [int(index) for index in np.random.Generator(np.random.PCG64(0)).permutation(rows)]


def test_of_pictures_with_texts_it_is_fed_what_torch_computes(
    loaded: llmcompress.LoadedModel, checkpoint: Path, pairs: Path
) -> None:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    samples = picture_samples(loaded.source, Calibration.model_validate(with_pictures(pairs)), offline=True)
    found = samples.inputs(loaded, lambda step: None)
    module = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor, taken, num_tokens = AutoProcessor.from_pretrained(checkpoint), list[Any](), 0
    module.model.language_model.register_forward_pre_hook(
        lambda _, args, named: taken.append(named["inputs_embeds"].numpy()), with_kwargs=True
    )
    for index, fed in zip(drawn(4), found, strict=True):
        row = json.loads(pairs.read_text().splitlines()[index])
        # In the order in which Optimum asks this type.
        content = [{"type": "text", "text": row["question"]}, {"type": "image"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        seen = processor(images=[Image.open(pairs.parent / row["image"])], text=[prompt], return_tensors="pt")
        with torch.no_grad():
            module(**seen)
        # Embeddings of about 0.1; rounding in another order.
        assert np.abs(fed["inputs_embeds"] - taken[-1]).max() < 1e-5
        assert np.array_equal(fed["position_ids"][0], np.arange(fed["inputs_embeds"].shape[1]))
        num_tokens = max(num_tokens, fed["inputs_embeds"].shape[1])
    record = samples.record
    assert (record.dataset, record.num_windows, record.seq_len) == ("pairs.jsonl", 4, num_tokens)
    again = picture_samples(loaded.source, Calibration.model_validate(with_pictures(pairs)), offline=True)
    other = picture_samples(
        loaded.source, Calibration.model_validate(with_pictures(pairs, num_samples=3)), offline=True
    )
    assert again.record == record
    assert other.record.pictures_sha256 != record.pictures_sha256


@pytest.mark.slow
def test_with_pictures_the_bytes_are_those_of_optimums_own_calibration(
    loaded: llmcompress.LoadedModel, checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    from optimum.intel import OVConfig, OVModelForVisualCausalLM, OVWeightQuantizationConfig
    from optimum.intel.openvino.quantization import OVCalibrationDatasetBuilder, OVQuantizer
    from PIL import Image

    weights = {**INT4, "scale_estimation": True}
    wanted = {"name": "pairs", "weights": weights, "calibration": with_pictures(pairs)}
    llmcompress.compress(loaded, Recipe.model_validate(wanted), tmp_path / "ours")
    stock = OVModelForVisualCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, load_in_8bit=False, ov_config={"INFERENCE_PRECISION_HINT": "f32"}
    )
    config = OVWeightQuantizationConfig(
        bits=4,
        sym=False,
        group_size=32,
        ratio=1.0,
        group_size_fallback="adjust",
        scale_estimation=True,
        # The name of the columns; the rows are ours.
        dataset="textvqa",
        processor=str(checkpoint),
        tokenizer=str(checkpoint),
        num_samples=4,
    )
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    shown = [{**rows[index], "image": Image.open(pairs.parent / rows[index]["image"])} for index in drawn(4)]
    OVQuantizer(stock).quantize(
        ov_config=OVConfig(quantization_config=config),
        calibration_dataset=OVCalibrationDatasetBuilder(stock).build_from_dataset(config, shown),
        save_directory=tmp_path / "stock",
    )
    files = [path.name for path in (tmp_path / "ours").glob("*_model.bin")]
    assert len(files) == 3
    assert filecmp.cmpfiles(tmp_path / "ours", tmp_path / "stock", files, shallow=False)[0] == files


def test_pictures_that_cannot_be_shown_are_refused(
    loaded: llmcompress.LoadedModel, pairs: Path, text: Path, tmp_path: Path
) -> None:
    def sampled(**changes: Any) -> None:
        calibration = Calibration.model_validate(with_pictures(pairs) | changes)
        picture_samples(loaded.source, calibration, offline=True)

    with pytest.raises(DataError, match="0 of its pictures with texts give at most 5 tokens, 4 were asked for"):
        sampled(seq_len=5)
    for shown, said in (
        (None, "the field 'image' holds no picture"),
        ("none.png", "the picture 'none.png' cannot be read: "),
        ({"bytes": "text", "path": None}, "the field 'image' holds no picture"),
    ):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps({"image": shown, "question": "What is it?"}))
        with pytest.raises(DataError, match=said) as caught:
            sampled(dataset=str(rows), num_samples=1)
        assert caught.value.where == "rows.jsonl: line 1"
    for changes, said in (
        ({"dataset": "text.txt", "text_field": "text"}, "a .txt file has no pictures"),
        ({"chat_template": True}, "has no effect with pictures, which go through it anyway"),
        ({"image_field": "question"}, "is the field of the text too"),
    ):
        calibration = with_pictures(pairs) | changes
        with pytest.raises(RecipeError, match=said):
            load_recipe("int4-awq-se", [f"calibration={json.dumps(calibration)}"])
    seeing = load_recipe("int4-awq-se", [f"calibration={json.dumps(with_pictures(pairs))}"])
    with pytest.raises(RecipeError, match="m is a text model, which sees no pictures") as caught:
        require_parts(Source("checkpoint", "checkpoint", Path("m"), {"model_type": "llama"}), seeing)
    assert caught.value.where == "recipe int4-awq-se: calibration.image_field"
    # Another dataset has fields of its own.
    assert load_recipe("int4-awq-se", [f"calibration.dataset={text}"]).calibration is not None
    with pytest.raises(RecipeError, match=r"training\.image_field: has no effect: this reads text alone"):
        load_recipe("int4-learned", [f"training.dataset={pairs}", "training.image_field=image"])
    with pytest.raises(UsageError, match="has no effect: this reads text alone"):
        from_options(SearchSpec, {"max_bytes": 1000, "calibration": Calibration.model_validate(with_pictures(pairs))})


def test_a_parquet_file_holds_pictures_themselves(pairs: Path, tmp_path: Path) -> None:
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    first = pairs.parent / "0.png"
    rows = pyarrow.table({"image": [{"bytes": first.read_bytes(), "path": None}], "question": ["What is it?"]})
    parquet.write_table(rows, tmp_path / "rows.parquet")
    calibration = Calibration.model_validate(with_pictures(tmp_path / "rows.parquet"))
    (pair,) = picture_pairs(calibration, offline=True)
    assert pair.text == "What is it?"
    assert pair.picture.tobytes() == Image.open(first).convert("RGB").tobytes()


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    from PIL import Image

    for size, smaller in (((1500, 300), (600, 120)), ((1, 5000), (1, 600)), ((600, 20), (600, 20))):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "large.png")
        (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "large.png", "question": "What is it?"}))
        (pair,) = picture_pairs(Calibration.model_validate(with_pictures(tmp_path / "rows.jsonl")), offline=True)
        assert pair.picture.size == smaller


@pytest.mark.parametrize("engine", ["openvino", "genai"])
def test_speed_with_and_without_a_picture(engine: Any, int8: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    runtime = runtime_of(int8, engine)
    opened = open_model(runtime, "CPU", {})
    graph = llmcompress.load(int8, tokenizer=False).model
    stored = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    # Of every token the language model's constants are read, and none of a table.
    assert opened.weight_bytes == pytest.approx(sum(op.get_byte_size() for op in stored), rel=0.02)
    read, shown, again = (run_model(runtime, Shape(1, 0, 20, 4, size), 1) for size in (0, 56, 0))
    for run in (read, shown, again):
        assert len(run.tokens) == 4
        assert run.started < run.tokens[0] < run.tokens[-1]
    assert read.encoding_s == again.encoding_s == 0
    assert 0 < shown.encoding_s < shown.tokens[0] - shown.started
    processor, picture = AutoProcessor.from_pretrained(int8), Image.new("RGB", (56, 56))
    num_tokens = processor(images=[picture], text=["<image>"], return_tensors="pt")["input_ids"].shape[1]
    assert num_tokens == 16
    assert shown.input_tokens is not None
    # A few more stand around the picture and the text.
    assert num_tokens + 15 <= shown.input_tokens <= num_tokens + 45


def test_a_case_with_a_picture_has_its_encoding_apart() -> None:
    opened = Opened(LoadTime(read_s=0, compile_s=0), {}, 1000, 10)
    runs = [Run(0.0, (1.0, 1.5), 0.25, 60), Run(0.0, (2.0, 2.5), 0.5, 60)]
    case = bench_case(Setting("CPU", None), Shape(1, 0, 20, 2, 448), runs, [], opened, 1e9)
    assert case.image_encoding_s is not None
    assert case.image_encoding_s.values == (0.25, 0.5)
    assert case.prefill_tokens_per_s.values == (60 / 0.75, 60 / 1.5)
    assert (case.picture_size, case.input_tokens) == (448, 60)
    assert case.roofline is not None
    assert case.roofline.cache_bytes == roofline_bytes(opened, 60)
    assert shape_text(case) == "448 px, 20+2"
    assert {ratio.figure for ratio in ratios([case], [case], 0.95)} >= {"image_encoding_s", "ttft_s"}


def roofline_bytes(opened: Opened, prompt_tokens: int) -> int:
    plain = bench_case(Setting("CPU", None), Shape(1, 0, prompt_tokens, 2), [Run(0.0, (1.0, 1.5))], [], opened, 1e9)
    assert plain.roofline is not None
    assert (plain.picture_size, plain.input_tokens, plain.image_encoding_s) == (0, None, None)
    return plain.roofline.cache_bytes


@pytest.mark.slow
def test_the_report_and_the_card_have_what_a_picture_takes(int8: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(int8, tmp_path / "int8")
    spec = BenchSpec(prompt_tokens=(8,), new_tokens=(3,), picture_sizes=(0, 56), repetitions=2, warmup_runs=0)
    (report,) = llmcompress.benchmark([directory], spec)
    assert [case.picture_size for case in report.cases] == [0, 56]
    assert report.size_bytes == sum(path.stat().st_size for path in directory.glob("*_model.bin"))
    assert "Image encoding, ms (CPU, 56 px, 8+3)" in llmcompress.render_card(directory)


def test_pictures_in_a_benchmark_are_refused_where_nothing_sees_them(int8: Path, demo_checkpoint: Path) -> None:
    for changes, said in (
        ({"batch_sizes": (1, 2)}, "batch_sizes: a picture is shown to one sequence"),
        ({"depths": (8,)}, "depths: a picture is shown to one sequence"),
        ({"backend": "paged"}, "backend: with a picture the graph is stateful where the runtime is openvino"),
    ):
        with pytest.raises(UsageError) as caught:
            from_options(BenchSpec, {"picture_sizes": (448,), **changes})
        assert said in f"{caught.value.where}: {caught.value.message}"
    spec = BenchSpec(picture_sizes=(0, 448), prompt_tokens=(8,), new_tokens=(2,))
    with pytest.raises(UsageError, match="a text model sees no pictures"):
        _require_shown(Source("ir", "ir", demo_checkpoint, {}), spec)
    with pytest.raises(UsageError, match="pipeline of vision-language models takes one prompt at once"):
        _require_shown(resolve(int8, vision=True), BenchSpec(engine="genai", batch_sizes=(1, 4)))


def test_a_processors_own_code_runs_in_a_benchmark_where_it_may(int8: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(int8, tmp_path / "own")
    (directory / "processor_config.json").unlink()
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    code = {"auto_map": {"AutoProcessor": "own.Own"}}
    (directory / "preprocessor_config.json").write_text(json.dumps({**settings, **code}))
    (directory / "llmcompress.json").unlink()
    shape = Shape(1, 0, 4, 2, picture_size=56)
    with pytest.raises(SecurityError, match="auto_map: loading it runs Python code"):
        runtime_of(directory, "openvino").run(shape, 0)
    with pytest.raises(ModelError, match=r"its processor cannot be opened: .*own\.py"):
        runtime_of(directory, "openvino", trust_remote_code=True).run(shape, 0)


def test_what_genai_has_no_pipeline_for_is_named(int8: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(int8, tmp_path / "other")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "idefics3"}))
    with pytest.raises(UsageError, match=r"OpenVINO GenAI has no pipeline for it: .*idefics3") as caught:
        open_model(runtime_of(directory, "genai"), "CPU", {})
    assert caught.value.hint == "take runtime openvino"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distillation", "blocks"])
def test_bits_of_the_language_model_are_learned(
    method: str, loaded: llmcompress.LoadedModel, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from llmcompress.graph.decoding import Decoder
    from llmcompress.graph.device import compile_model, properties_of

    shape = {"num_samples": 32, "seq_len": 32, "num_validation_samples": 4, "batch_size": 4}
    training = {"method": method, "dataset": str(text), "num_steps": 24, **shape}
    start = Recipe.model_validate({"name": "start", "weights": {**INT4, "mode": "int2_sym"}})
    llmcompress.compress(loaded, start, tmp_path / "start")
    learned = Recipe.model_validate({**start.model_dump(exclude_none=True), "training": training})
    report = llmcompress.compress(loaded, learned, tmp_path / "learned")
    assert report.training is not None
    assert report.training.changed_codes
    ids = windows_of(checkpoint, recipe(text, scale_estimation=True))
    module = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(ids.copy())).logits.log_softmax(-1)

    def lost(directory: Path) -> float:
        graph = llmcompress.load(directory, tokenizer=False).reading_text().model
        decoder = Decoder(compile_model(graph, "CPU", properties_of("CPU", "pinned")))
        decoder.run(decoder.tensors(ids, 0))
        found = torch.from_numpy(decoder.request.get_tensor("logits").data.copy()).log_softmax(-1)
        return float((expected.exp() * (expected - found)).sum(-1).mean())

    assert lost(tmp_path / "learned") < 0.9 * lost(tmp_path / "start")
    others = [path.name for path in (tmp_path / "start").glob("*embeddings_model.bin")]
    assert filecmp.cmpfiles(tmp_path / "start", tmp_path / "learned", others, shallow=False)[0] == others


@pytest.mark.slow
def test_a_search_gives_the_language_models_weights_formats_of_their_own(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text(" ".join(reversed(text.read_text().split())))
    spec = SearchSpec(
        bits_per_weight=7.4,
        dataset=str(text),
        seq_len=16,
        num_samples=4,
        num_windows=4,
        candidates=("int4_sym:32+gptq", "int4_sym:32", "int8_sym"),
        calibration=Calibration(dataset=str(tmp_path / "other.txt"), num_samples=4, seq_len=32),
    )
    report = llmcompress.search(checkpoint, spec, tmp_path / "searched")
    manifest = read_manifest(tmp_path / "searched")
    size = sum(path.stat().st_size for path in (tmp_path / "searched").glob("*_model.bin"))
    assert size * 8 / manifest.num_parameters <= 7.4
    layers = {parameter_name(layer.name): layer.mode for layer in manifest.parts[0].layers if layer.mode[0] == "i"}
    assert {choice.name for choice in report.weights} == layers.keys()
    if report.chosen == "searched":
        assert {choice.name: choice.format.partition(":")[0] for choice in report.weights} == layers
    assert report.contenders[0].kl_divergence.value > 0


@pytest.mark.slow
def test_a_plan_makes_measures_and_tunes_it(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plan.yaml").write_text(
        json.dumps(
            {
                "models": [{"source": str(checkpoint), "name": "seeing"}],
                "recipes": ["int8"],
                "evaluation": {"dataset": str(text), "seq_len": 32, "num_windows": 4},
                "benchmark": {"prompt_tokens": [8], "new_tokens": [3], "picture_sizes": [0, 56], "repetitions": 1},
                "tune": {
                    "dataset": str(text),
                    "seq_len": 32,
                    "chunk": 8,
                    "num_windows": 2,
                    "workloads": ["chat:8/3"],
                    "repetitions": 3,
                    "budget": "10s",
                },
                "output": str(tmp_path / "out"),
            }
        )
    )
    in_process(monkeypatch)
    report = llmcompress.run_plan(llmcompress.load_plan(tmp_path / "plan.yaml"))
    assert report.rows[0].failure is None
    assert report.rows[0].made == ("compress", "evaluate", "benchmark")
    found = read_measurements(tmp_path / "out" / "seeing" / "int8")
    assert found.tuning is not None
    assert found.benchmark is not None
    assert [case.picture_size for case in found.benchmark.cases] == [0, 56]
    again = llmcompress.run_plan(llmcompress.load_plan(tmp_path / "plan.yaml"))
    assert all(row.made == () for row in again.rows)


def test_tuned_options_lie_in_the_language_model(int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    _save(int8, "language_model", tmp_path, {"KV_CACHE_PRECISION": "f16"})
    found = ov.Core().read_model(tmp_path / "openvino_language_model.xml")
    assert str(found.get_rt_info(["runtime_options", "KV_CACHE_PRECISION"]).value) == "f16"
    names = [path.name for path in int8.iterdir()]
    assert (decoder_part(names), decoder_part(["openvino_model.xml"])) == ("language_model", "model")
    stored = (int8 / "openvino_language_model.bin").read_bytes()
    assert (tmp_path / "openvino_language_model.bin").read_bytes() == stored


@pytest.mark.slow
def test_its_tuned_twin_opens_in_stock_libraries(
    int8: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino as ov
    import openvino_genai
    from optimum.intel import OVModelForVisualCausalLM

    def told(candidate: Any, default: Any, spec: TuneSpec, **options: Any) -> Race:
        # Of a model of this size no setting is faster beyond noise.
        found = race(candidate, default, spec, undecided=lambda gain: False)
        return found._replace(gain=Estimate(value=1.5, standard_error=0.05, low=1.4, high=1.6), judgement="better")

    monkeypatch.setattr(trials, "race", told)
    untuned = shutil.copytree(int8, tmp_path / "untuned")
    spec = {
        "dataset": str(text),
        "seq_len": 32,
        "chunk": 8,
        "num_windows": 2,
        "workloads": (parse_workload("chat:8/3"),),
    }
    llmcompress.tune(untuned, TuneSpec(**spec, repetitions=3, properties=("KV_CACHE_PRECISION=f16",), max_kl=1.0))
    twin = tmp_path / "twin"
    assert run_command(["tune", str(untuned), "--measured", "--apply", "-o", str(twin)]) == 0
    assert llmcompress.verify(twin).ok
    assert sorted(path.name for path in twin.glob("*.bin")) == sorted(path.name for path in untuned.glob("*.bin"))
    names = [path.name for path in twin.glob("*.bin")]
    assert filecmp.cmpfiles(untuned, twin, names, shallow=False)[0] == names
    model = OVModelForVisualCausalLM.from_pretrained(twin)
    held = model.language_model.request.get_compiled_model().get_property("KEY_CACHE_PRECISION")
    assert held.get_type_name() == "f16"
    given = openvino_genai.VLMPipeline(str(untuned), "CPU", KV_CACHE_PRECISION="f16")
    shown = [ov.Tensor(np.asarray(picture()))]
    answers = [
        pipeline.generate("What is it?", images=shown, max_new_tokens=8, ignore_eos=True).texts
        for pipeline in (openvino_genai.VLMPipeline(str(twin), "CPU"), given)
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_accuracy_control_keeps_what_it_must_of_the_language_model(
    loaded: llmcompress.LoadedModel, text: Path, tmp_path: Path
) -> None:
    calibration = {"dataset": str(text), "num_samples": 3, "seq_len": 24}
    control = {"metric": "kl_divergence", "max_drop": 1e-6, "num_samples": 4, "max_num_iterations": 2}
    activations = {"mode": "int8", "accuracy_control": {**control, "keep_best": True}}
    made = {"name": "kept", "method": "activations", "activations": activations, "calibration": calibration}
    report = llmcompress.compress(loaded, Recipe.model_validate(made), tmp_path / "out")
    assert report.activations is not None
    accuracy = report.activations.accuracy
    assert accuracy is not None
    # Of random weights in 8 bits something is lost, and less where two groups of operations went back.
    assert 0 < accuracy.drop < accuracy.drop_quantized
    assert len(accuracy.reverted) == 2
