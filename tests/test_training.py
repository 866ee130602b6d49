"""Learned bits: what is trained is what the runtime runs, interruptions lose nothing, no gain changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from evaluation_fixture import all_logits
from numpy.typing import NDArray
from pydantic import ValidationError
from tiny_models import build_checkpoint
from torch.nn.utils import parametrize

import llmcompress
from llmcompress import EvalSpec, Recipe
from llmcompress.compression.application import apply_recipe
from llmcompress.compression.nncf import fq_lora
from llmcompress.compression.preparation import training_windows
from llmcompress.data import of_windows
from llmcompress.data.disjoint import BLOCK, SEQUENCE, sequence_hashes, shares_sequence
from llmcompress.errors import DataError, ModelError, RecipeError, UsageError
from llmcompress.graph.integer_weights import IntegerWeight, integer_weights, packed, replace_integer_weights, unpacked
from llmcompress.graph.model import parameter_name, read_ir
from llmcompress.loaders import LoadedModel
from llmcompress.runner.state import Original, compress_reason
from llmcompress.spec import dump_recipe, load_recipe, override_recipe
from llmcompress.spec.plan import planned_jobs
from llmcompress.spec.training import Learned, Training
from llmcompress.training import blocks as blocks_module
from llmcompress.training import course, group_values, methods
from llmcompress.training.budget import Durations, num_steps_within
from llmcompress.training.devices import training_device
from llmcompress.training.level_quantizer import LevelQuantizer
from llmcompress.training.quantizer import WeightQuantizer
from llmcompress.training.student import Learnable, make_student
from llmcompress.training.teacher import ask, kl_divergence
from llmcompress.training.train import require_apart

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
ALL: frozenset[Learned] = frozenset({"scales", "zero_points", "rounding"})
SMALL = {"num_samples": 32, "num_validation_samples": 8, "seq_len": 64, "batch_size": 4, "num_validations": 4}

Train = Callable[..., tuple[Path, llmcompress.CompressionReport]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine threads that wait for each other at every small operation take many times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def loaded(demo_checkpoint: Path) -> LoadedModel:
    return llmcompress.load(demo_checkpoint)


@pytest.fixture(scope="module")
def recipe(calibration_text: Path) -> Callable[..., Recipe]:
    def made(mode: str = "int4_asym", **training: Any) -> Recipe:
        given = {"method": "distillation", "dataset": str(calibration_text), "num_steps": 12, **SMALL, **training}
        weights = {"mode": mode} | ({} if mode.startswith("int8") else {"group_size": 32})
        return Recipe.model_validate({"name": "learned", "weights": weights, "training": given})

    return made


@pytest.fixture(scope="module")
def train(loaded: LoadedModel, recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Train:
    def made(mode: str = "int4_asym", **training: Any) -> tuple[Path, llmcompress.CompressionReport]:
        output = tmp_path_factory.mktemp("learned") / "out"
        return output, llmcompress.compress(loaded, recipe(mode, **training), output)

    return made


@pytest.fixture(scope="module")
def distilled(train: Train) -> tuple[Path, llmcompress.CompressionReport]:
    return train()


@pytest.fixture(scope="module")
def start(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without training."""
    output = tmp_path_factory.mktemp("start") / "out"
    llmcompress.compress(
        loaded, Recipe.model_validate({"name": "s", "weights": {"mode": "int4_asym", "group_size": 32}}), output
    )
    return output


def _weight(element: str, seed: int = 0, shape: tuple[int, ...] = (8, 4, 32)) -> IntegerWeight:
    """A weight as NNCF would store it, with random numbers in it."""
    generator = np.random.default_rng(seed)
    low, high = {"u4": (0, 15), "i4": (-8, 7), "u8": (0, 255), "u3": (0, 7), "u2": (0, 3)}[element]
    codes = generator.integers(low, high + 1, shape).astype(np.int16)
    scales = generator.uniform(0.01, 0.02, (*shape[:2], 1)).astype(np.float16)
    zero_points: NDArray[Any] | None = None
    if element in ("u4", "u8"):
        zero_points = generator.integers(low, high + 1, scales.shape).astype(np.int16)
    elif element in ("u3", "u2"):
        zero_points = np.array((high + 1) // 2, np.int16)
    return IntegerWeight(codes, scales, zero_points, element)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_codes_are_packed_and_read_again(num_bits: int) -> None:
    codes = np.random.default_rng(num_bits).integers(0, 1 << num_bits, 1000).astype(np.int16)
    stored = packed(codes, num_bits)
    assert stored.size == -(-codes.size * num_bits // 8)
    assert np.array_equal(unpacked(stored, num_bits, codes.size), codes)


@pytest.mark.parametrize(
    "mode",
    [
        *("int8_asym", "int4_asym", "int4_sym", "int2_sym", "nf4"),
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("int8_sym", "int3_sym", "fp4")),
    ],
)
def test_a_graphs_codes_are_those_that_the_runtime_unpacks(loaded: LoadedModel, mode: str) -> None:
    import nncf

    groups = {} if mode.startswith("int8") else {"group_size": 32}
    model = nncf.compress_weights(loaded.clone().model, mode=nncf.CompressWeightsMode(mode), **groups)
    found = integer_weights(model)
    name = next(name for name in found if "layers.0.mlp.down_proj" in name)
    before = {op.get_friendly_name(): op.data.tobytes() for op in model.get_ops() if op.get_type_name() == "Constant"}
    constant = next(op for op in model.get_ops() if op.get_friendly_name() == name)
    node = constant
    while node.get_type_name() != "Multiply":
        node = next(iter(node.output(0).get_target_inputs())).get_node()
    subgraph = ov.Model([node.output(0)], [], "weight")
    values = ov.Core().compile_model(subgraph, "CPU", EXACT)([])[0]
    expected = found[name].values()
    # The runtime multiplies in f16.
    assert np.allclose(values, expected, rtol=2**-10, atol=0)
    replace_integer_weights(model, found)
    after = {op.get_friendly_name(): op.data.tobytes() for op in model.get_ops() if op.get_type_name() == "Constant"}
    assert after == before


@pytest.mark.parametrize("element", ["u4", "i4", "u8", "u3", "u2"])
def test_training_begins_at_the_compressed_weight(element: str) -> None:
    weight = _weight(element)
    linear = torch.nn.Linear(128, 8, bias=False)
    with torch.no_grad():
        # As GPTQ leaves it: many codes are not those that are nearest to the weight.
        noise = np.random.default_rng(1).normal(0, 0.02, weight.codes.shape).astype(np.float32)
        linear.weight.copy_(torch.from_numpy(weight.values() + noise).reshape(8, 128))
    quantizer = WeightQuantizer(weight, ALL)
    parametrize.register_parametrization(linear, "weight", quantizer)
    assert np.array_equal(linear.weight.detach().numpy().reshape(weight.codes.shape), weight.values())
    parametrizations: Any = linear.parametrizations
    learned = quantizer.learned(parametrizations.weight.original)
    assert np.array_equal(learned.codes, weight.codes)
    assert np.array_equal(learned.scales, weight.scales)


@pytest.mark.parametrize("by", ["compiled loops", "torch"])
@pytest.mark.parametrize("element", ["u4", "i4"])
def test_gradients_are_those_of_straight_through_rounding(
    element: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = _weight(element, shape=(8, 4, 30))
    assert group_values.fits(torch.from_numpy(weight.values()), torch.from_numpy(weight.scales.astype(np.float32)))
    if by == "torch":  # As on an accelerator.
        monkeypatch.setattr(group_values, "fits", lambda *_: False)
    quantizer = WeightQuantizer(weight, ALL)
    original = torch.from_numpy(weight.values()) + 0.01 * torch.randn(weight.codes.shape, generator=_generator())
    with torch.no_grad():
        quantizer.scale.mul_(1.03)
        quantizer.offset.copy_(0.3 * torch.randn(weight.codes.shape, generator=_generator()))
    wanted = torch.randn(weight.codes.shape, generator=_generator())
    (quantizer(original) * wanted).sum().backward()
    found = [quantizer.scale.grad, quantizer.zero_point.grad, quantizer.offset.grad]

    # The same, written out with torch's own operations.
    scale, zero_point, offset = (
        parameter.detach().clone().requires_grad_()
        for parameter in (quantizer.scale, quantizer.zero_point, quantizer.offset)
    )
    factor = torch.from_numpy(weight.scales.astype(np.float32)) * scale
    factor = factor + (factor.half().float() - factor).detach()
    shift = zero_point + (zero_point.round() - zero_point).detach()
    position = original / factor + shift + offset.clamp(-0.5, 0.5)
    rounded = position + (position.round() - position).detach()
    codes = torch.where(
        rounded.detach() > weight.high, weight.high, torch.where(rounded.detach() < weight.low, weight.low, rounded)
    )
    ((codes - shift) * factor * wanted).sum().backward()
    for mine, theirs in zip(found, (scale.grad, zero_point.grad, offset.grad), strict=True):
        if mine is not None and theirs is not None and not (element == "i4" and mine.numel() == 1):
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)


def test_threads_and_zeros_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = _weight("u4", shape=(64, 16, 30))
    quantizer = WeightQuantizer(weight, ALL, keep_zeros=True)
    original = torch.from_numpy(weight.values()) + 0.01 * torch.randn(weight.codes.shape, generator=_generator())
    original[::3] = 0
    with torch.no_grad():
        quantizer.offset.copy_(0.3 * torch.randn(weight.codes.shape, generator=_generator()))

    def passed() -> list[torch.Tensor | None]:
        quantizer.zero_grad()
        values = quantizer(original)
        values.square().sum().backward()
        return [values, *(each.grad for each in (quantizer.scale, quantizer.zero_point, quantizer.offset))]

    one = passed()
    assert torch.equal(one[0], quantizer(original))
    monkeypatch.setattr(group_values, "CHUNK_VALUES", 1 << 10)
    torch.set_num_threads(2)
    several = passed()
    torch.set_num_threads(1)
    assert all(torch.equal(*pair) for pair in zip(one, several, strict=True))
    assert one[3] is not None
    assert not one[3][::3].any()
    assert one[3][1::3].any()
    monkeypatch.setattr(group_values, "fits", lambda *_: False)
    by_torch = passed()
    assert torch.equal(by_torch[0], one[0])
    assert torch.equal(by_torch[3], one[3])


def _with_values(checkpoint: Path, weights: dict[str, IntegerWeight]) -> Any:
    """The checkpoint's class with what an artifact holds."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            parameter = parameters[parameter_name(name)]
            parameter.copy_(torch.from_numpy(weight.values()).reshape(parameter.shape))
    return model


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_divergence_is_torchs() -> None:
    expected = torch.randn((2, 3, 50), generator=_generator()).log_softmax(-1)
    logits = torch.randn((2, 3, 50), generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(50).expand(2, 3, 50)
    whole = torch.nn.functional.kl_div(logits.log_softmax(-1), expected, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(kl_divergence(logits, (expected, tokens)), whole, atol=1e-6)
    top = expected.topk(10, -1)
    part = kl_divergence(logits, (top.values, top.indices))
    mine, theirs = top.values.exp(), logits.softmax(-1).gather(-1, top.indices)
    others, their_others = 1 - mine.sum(-1), 1 - theirs.sum(-1)
    by_hand = (mine * (mine / theirs).log()).sum(-1) + others * (others / their_others).log()
    assert torch.allclose(part, by_hand, atol=1e-5)
    assert (part <= whole + 1e-6).all()


def test_what_is_trained_is_what_is_written(
    distilled: tuple[Path, llmcompress.CompressionReport], start: Path, wikitext: Path, demo_checkpoint: Path
) -> None:
    output, report = distilled
    training = report.training
    assert training is not None
    (curve,) = training.curves
    assert curve.kept_step > 0
    assert curve.points[0].step == 0
    assert curve.points[-1].step == 12
    assert 0 < training.changed_codes < 0.2
    assert training.num_layers == 35
    assert training.windows.num_windows == 32
    assert training.validation.num_windows == 8
    assert llmcompress.verify(output).ok
    # The same layout and size as without training; the layers' names, too.
    assert (output / "openvino_model.bin").stat().st_size == (start / "openvino_model.bin").stat().st_size
    learned, first = integer_weights(read_ir(output)), integer_weights(read_ir(start))
    assert learned.keys() == first.keys()
    changed = sum(int((learned[name].codes != first[name].codes).sum()) for name in learned)
    trained = sum(weight.codes.size for weight in learned.values() if weight.element == "u4")
    assert changed / trained == pytest.approx(training.changed_codes)
    # In torch, with the artifact's values as its weights, the model says what the runtime says.
    model = _with_values(demo_checkpoint, learned)
    token_ids = np.random.default_rng(0).integers(5, 2000, 40)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids[None])).logits[0].numpy()
    assert np.abs(all_logits(output, token_ids, EXACT) - expected).max() < 5e-3


def test_stock_libraries_open_it(distilled: tuple[Path, llmcompress.CompressionReport]) -> None:
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    genai = pytest.importorskip("openvino_genai", reason="needs the extra genai")
    tokenizer = AutoTokenizer.from_pretrained(distilled[0])
    model = OVModelForCausalLM.from_pretrained(distilled[0], ov_config=EXACT)
    prompt = tokenizer("The house stood on a hill, and", return_tensors="pt")
    (ids,) = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    pipeline = genai.LLMPipeline(str(distilled[0]), "CPU", **EXACT)
    settings = genai.GenerationConfig(max_new_tokens=8, do_sample=False, apply_chat_template=False)
    assert text
    assert pipeline.generate("The house stood on a hill, and", settings) == text


def test_the_card_says_what_was_learned_and_from_what(
    distilled: tuple[Path, llmcompress.CompressionReport], calibration_text: Path
) -> None:
    card = llmcompress.render_card(distilled[0])
    assert "training.method" in card
    assert "distillation" in card
    assert f"Its bits were learned from `{calibration_text.name}`" in card
    assert "validation" in card


def test_training_brings_it_nearer_to_the_original_on_another_text(
    distilled: tuple[Path, llmcompress.CompressionReport], start: Path, wikitext: Path, demo_checkpoint: Path
) -> None:
    spec = EvalSpec(dataset=str(wikitext), seq_len=128, num_windows=16, precision="pinned", backend="stateful")
    before, after = (
        llmcompress.evaluate(each, spec, reference=demo_checkpoint).divergence for each in (start, distilled[0])
    )
    assert before is not None
    assert after is not None
    assert after.kl_divergence.value < 0.97 * before.kl_divergence.value


def test_the_same_training_gives_the_same_bytes_also_after_an_interruption(
    distilled: tuple[Path, llmcompress.CompressionReport],
    loaded: LoadedModel,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    steps: list[int] = []

    def stop_at_seven(progress: Any) -> None:
        if progress.stage == "train model":
            steps.append(progress.done)
            if progress.done == 7 and 8 not in steps and steps.count(7) == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llmcompress.compress(loaded, recipe(), tmp_path / "out", progress=stop_at_seven)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "cache" / "training").glob("*/state.pt"))
    llmcompress.compress(loaded, recipe(), tmp_path / "out", progress=stop_at_seven)
    assert steps == [*range(8), *range(7, 13)]
    for name in ("openvino_model.bin", "recipe.yaml", "training_sequences.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (distilled[0] / name).read_bytes()
    # What was kept for it is gone.
    assert not list((tmp_path / "cache" / "training").glob("*/*"))


def test_without_a_gain_the_start_is_written(train: Train, start: Path) -> None:
    output, report = train(learning_rate=1.0, scale_learning_rate=0.5, num_steps=4, num_warmup_steps=0)
    assert report.training is not None
    assert [curve.kept_step for curve in report.training.curves] == [0]
    assert report.training.changed_codes == 0
    assert (output / "openvino_model.bin").read_bytes() == (start / "openvino_model.bin").read_bytes()


def test_training_ends_early_where_validation_gets_no_better(train: Train) -> None:
    _, report = train(learning_rate=1.0, num_steps=40, num_warmup_steps=0, num_validations=20, patience=2)
    assert report.training is not None
    assert report.training.curves[0].points[-1].step < 40


@pytest.mark.parametrize(
    "mode", ["int4_sym", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("int2_sym", "int8_asym"))]
)
def test_layers_are_trained_one_after_another(train: Train, mode: str) -> None:
    output, report = train(mode, method="blocks", num_steps=8)
    training = report.training
    assert training is not None
    assert training.loss == "output_error"
    assert [curve.name for curve in training.curves] == [f"layer {number}" for number in range(5)]
    assert all(point.step <= 8 for curve in training.curves for point in curve.points)
    assert llmcompress.verify(output).ok
    if mode != "int8_asym":
        assert training.num_improved == 5
    # Embeddings and the head are not trained.
    assert training.num_layers == 35


@pytest.mark.slow
def test_blocks_go_on_after_an_interruption(
    loaded: LoadedModel, recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    asked = recipe("int4_sym", method="blocks", num_steps=4, num_validations=2)
    whole = llmcompress.compress(loaded, asked, tmp_path / "whole")
    interrupted: list[int] = []

    def stop(progress: Any) -> None:
        if progress.stage == "train layer 2" and progress.done == 2 and not interrupted:
            interrupted.append(progress.done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llmcompress.compress(loaded, asked, tmp_path / "out", progress=stop)
    again = llmcompress.compress(loaded, asked, tmp_path / "out", progress=stop)
    assert again.training == whole.training
    assert (tmp_path / "out/openvino_model.bin").read_bytes() == (tmp_path / "whole/openvino_model.bin").read_bytes()


def test_a_state_that_the_disk_refuses_stops_no_training(
    train: Train, distilled: tuple[Path, llmcompress.CompressionReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(course, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(torch, "save", refuse)
    output, _ = train()
    assert (output / "openvino_model.bin").read_bytes() == (distilled[0] / "openvino_model.bin").read_bytes()


def test_a_model_is_not_measured_on_what_it_was_trained_on(
    distilled: tuple[Path, llmcompress.CompressionReport], calibration_text: Path, demo_checkpoint: Path
) -> None:
    spec = EvalSpec(dataset=str(calibration_text), seq_len=256, num_windows="all", backend="stateful")
    with pytest.raises(
        DataError, match=r"windows have a sequence of 64 tokens in common with the text that the model's"
    ):
        llmcompress.evaluate(distilled[0], spec, reference=demo_checkpoint)


def test_a_damaged_list_of_sequences_is_named(tmp_path: Path) -> None:
    from llmcompress.data.disjoint import require_not_trained_on

    (tmp_path / "training_sequences.npy").write_bytes(b"no array")
    with pytest.raises(ModelError, match=r"training_sequences\.npy cannot be read"):
        require_not_trained_on(tmp_path, [np.arange(64)], "text")


def test_sequences_in_common_are_found_wherever_they_begin() -> None:
    generator = np.random.default_rng(0)
    trained = generator.integers(0, 50_000, (20, 256))
    hashes = sequence_hashes(trained)
    for first in range(0, 256 - SEQUENCE + 1, 7):
        for at in (0, 5, 100):
            window = generator.integers(0, 50_000, 200)
            window[at : at + SEQUENCE] = trained[3, first : first + SEQUENCE]
            assert shares_sequence(window[None], hashes).tolist() == [True]
            # One that is shorter than what is compared is no such sequence.
            window[at + BLOCK - 1 : at + SEQUENCE] += 50_000
            assert shares_sequence(window[None], hashes).tolist() == [False]
    assert not shares_sequence(generator.integers(0, 50_000, (5, 256)), hashes).any()
    assert not shares_sequence(trained[:, :40], hashes).any()
    assert sequence_hashes(trained[:, :40]).size == 0


def test_a_time_decides_the_steps_and_a_later_run_keeps_them(
    distilled: tuple[Path, llmcompress.CompressionReport],
    loaded: LoadedModel,
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    measured, stops = [], [True]
    measure = methods.durations

    def known(*arguments: Any) -> Durations:
        measured.append(measure(*arguments))
        return Durations(0.0, 0.0, 80.0, 0.0)

    def stop(progress: Any) -> None:
        if progress.stage == "train model" and progress.done == 5 and stops:
            stops.pop()
            raise KeyboardInterrupt

    monkeypatch.setattr(methods, "durations", known)
    asked, output = override_recipe(recipe(), ["training.budget=1000s", "training.num_steps=null"]), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        llmcompress.compress(loaded, asked, output, progress=stop)
    report = llmcompress.compress(loaded, asked, output, progress=stop)
    (first,) = measured
    assert first.window_s > 0
    assert first.step_s > 0
    assert first.validation_s > 0
    # 12 steps of 80 s and what measuring took; the steps that were thrown away changed nothing.
    assert report.recipe == distilled[1].recipe
    assert report.training is not None
    assert report.training.model_copy(update={"budget_s": None}) == distilled[1].training
    assert (output / "openvino_model.bin").read_bytes() == (distilled[0] / "openvino_model.bin").read_bytes()
    # A plan takes it for done, unless it asks for another time.
    original = Original(loaded.source)
    assert compress_reason(output, asked, original) is None
    longer = override_recipe(asked, ["training.budget_s=2000"])
    assert compress_reason(output, longer, original) == "the time for training changed"


def test_a_time_is_filled_with_the_original_steps_and_validations(recipe: Callable[..., Recipe]) -> None:
    training = recipe(num_validation_samples=8, batch_size=4, num_validations=4).training
    assert training is not None
    durations = Durations(fixed_s=10.0, window_s=0.5, step_s=2.0, validation_s=3.0)
    # 32 windows and 8 to validate on are 20 s, 5 validations 15 s.
    assert durations.total_s(training, 32, 20) == 10 + 20 + 15 + 40
    assert num_steps_within(85.0, training, 32, durations) == 20
    assert num_steps_within(86.9, training, 32, durations) == 20
    assert num_steps_within(10 + 6 + 6 + 2, training, 32, durations) == 1
    with pytest.raises(UsageError, match="a single step takes about 24 s, and 20 s are left for it"):
        num_steps_within(20.0, training, 32, durations)


def test_a_time_without_a_training_is_refused(demo_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "llmcompress", "compress", str(demo_checkpoint), "-r", "int4", "--budget", "30m"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "--budget: it decides the steps of a training, and recipe int4 has none" in " ".join(done.stderr.split())


@pytest.mark.parametrize("architecture", ["demo", pytest.param("opt", marks=pytest.mark.slow)])
def test_awq_makes_the_start(architecture: str, demo_checkpoint: Path, calibration_text: Path, tmp_path: Path) -> None:
    """Where a layer before takes the inverse scales (Llama), and where activations are multiplied by them (OPT)."""
    checkpoint = demo_checkpoint if architecture == "demo" else build_checkpoint(tmp_path / "model", architecture)
    calibration = {"dataset": str(calibration_text), "num_samples": 8, "seq_len": 64}
    weights = {"mode": "int4_sym", "group_size": 32, "awq": True}
    recipe = Recipe.model_validate({"name": "awq", "weights": weights, "calibration": calibration})
    model = llmcompress.prepare_for_training(checkpoint, recipe)
    llmcompress.export_trained(model, recipe, tmp_path / "out")
    token_ids = np.random.default_rng(0).integers(5, 250, 40)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids[None])).logits[0].numpy()
    assert np.abs(all_logits(tmp_path / "out", token_ids, EXACT) - expected).max() < 1e-3


@pytest.mark.slow
def test_awqs_start_is_learned_layer_by_layer(demo_checkpoint: Path, calibration_text: Path, tmp_path: Path) -> None:
    text = {"dataset": str(calibration_text), "seq_len": 64}
    training = {"method": "blocks", "num_steps": 8, **text, **SMALL}
    weights = {"mode": "int4_sym", "group_size": 32, "awq": True, "scale_estimation": True}
    given = {"name": "awq", "weights": weights, "calibration": {**text, "num_samples": 8}, "training": training}
    report = llmcompress.compress(demo_checkpoint, Recipe.model_validate(given), tmp_path / "learned")
    assert report.training is not None
    assert report.training.num_improved == 5
    assert 0 < report.training.changed_codes < 0.2


def test_nncfs_adapters_become_codes(train: Train, start: Path, demo_checkpoint: Path) -> None:
    output, report = train(method="fq_lora", num_steps=8, adapter_rank=8, adapter_learning_rate=3e-3)
    training = report.training
    assert training is not None
    (curve,) = training.curves
    assert training.method == "fq_lora"
    assert curve.kept_step > 0
    assert curve.gain > 0
    assert 0 < training.changed_codes < 0.2
    assert llmcompress.verify(output).ok
    learned, first = integer_weights(read_ir(output)), integer_weights(read_ir(start))
    assert (output / "openvino_model.bin").stat().st_size == (start / "openvino_model.bin").stat().st_size
    assert {name: (each.codes.shape, each.element) for name, each in learned.items()} == {
        name: (each.codes.shape, each.element) for name, each in first.items()
    }
    # What was validated in torch is what the runtime does.
    model = _with_values(demo_checkpoint, learned)
    token_ids = np.random.default_rng(0).integers(5, 2000, 40)
    with torch.no_grad():
        expected = model(torch.from_numpy(token_ids[None])).logits[0].numpy()
    assert np.abs(all_logits(output, token_ids, EXACT) - expected).max() < 5e-3


def test_nncfs_codes_are_those_of_its_own_export(demo_checkpoint: Path, recipe: Callable[..., Recipe]) -> None:
    """Against what NNCF's fake quantization computes in torch, weight by weight."""
    from transformers import AutoModelForCausalLM

    asked = recipe("int4_sym", method="fq_lora", adapter_rank=8)
    loaded = apply_recipe(
        llmcompress.load(demo_checkpoint), asked, None, "llmcompress", None, lambda progress: None
    ).loaded
    weights = integer_weights(loaded.model)
    names = [name for name, weight in weights.items() if weight.element == "i4"]
    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint, dtype=torch.float32)
    plain = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = fq_lora.add_adapters(asked, model, weights, names, np.arange(5, 69)[None])
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for each in trained:
            learned = each.learned()
            # The codes of NNCF's data-free compression, but for what the adapters begin with.
            assert np.abs(learned.codes - weights[each.name].codes).max() <= 1
            step = np.abs(learned.scales.astype(np.float32))
            original = plain[parameter_name(each.name)].numpy().reshape(learned.codes.shape)
            assert (np.abs(learned.values() - original) <= 0.55 * step).mean() > 0.95
    with pytest.raises(ModelError, match=r"NNCF puts adapters on 35 weights of LlamaForCausalLM, and 2 of the graph"):
        fq_lora.add_adapters(
            asked,
            AutoModelForCausalLM.from_pretrained(demo_checkpoint, dtype=torch.float32),
            weights,
            names[:2],
            np.arange(5, 69)[None],
        )


@pytest.mark.parametrize("element", ["nf4", "f4e2m1"])
def test_levels_are_trained_as_integers_are(element: str) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 16, (8, 4, 32)).astype(np.int16)
    weight = IntegerWeight(codes, generator.uniform(0.1, 0.2, (8, 4, 1)).astype(np.float16), None, element)
    linear = torch.nn.Linear(128, 8, bias=False)
    with torch.no_grad():
        noise = generator.normal(0, 0.02, codes.shape).astype(np.float32)
        linear.weight.copy_(torch.from_numpy(weight.values() + noise).reshape(8, 128))
    quantizer = LevelQuantizer(weight, ALL)
    parametrize.register_parametrization(linear, "weight", quantizer)
    assert np.array_equal(linear.weight.detach().numpy().reshape(codes.shape), weight.values())
    parametrizations: Any = linear.parametrizations
    original = parametrizations.weight.original
    learned = quantizer.learned(original)
    assert np.array_equal(learned.values(), weight.values())
    # Gradients: those of the same function without rounding, where nothing is cut off.
    wanted = torch.randn(codes.shape, generator=_generator())
    (quantizer(original).reshape(codes.shape) * wanted).sum().backward()
    assert quantizer.offset.grad is not None
    assert quantizer.scale.grad is not None
    levels = np.unique(np.array(weight.levels))
    nearest = np.clip(np.searchsorted(levels, original.detach().numpy().reshape(codes.shape) / weight.scales), 1, None)
    nearest = np.minimum(nearest, len(levels) - 1)
    gaps = levels[nearest] - levels[nearest - 1]
    by_hand = wanted.numpy() * weight.scales.astype(np.float32) * gaps
    inside = quantizer.offset.grad.numpy() != 0
    assert inside.mean() > 0.9
    assert np.allclose(quantizer.offset.grad.numpy()[inside], by_hand[inside], rtol=1e-4, atol=1e-6)
    moved = quantizer.offset.detach().clone()
    with torch.no_grad():
        quantizer.offset.fill_(0.5)
        up = quantizer(original).reshape(codes.shape).numpy()
        quantizer.offset.copy_(moved)
    # Half a step up is never a lower value, and never more than one level.
    assert (up >= weight.values() - 1e-6).all()


@pytest.mark.parametrize("mode", ["fp4", pytest.param("nf4", marks=pytest.mark.slow)])
def test_small_floats_are_trained(mode: str, train: Train, loaded: LoadedModel, tmp_path: Path) -> None:
    output, report = train(mode, num_steps=6, num_validations=2)
    training = report.training
    assert training is not None
    assert training.curves[0].kept_step > 0
    assert 0 < training.changed_codes < 0.2
    assert llmcompress.verify(output).ok
    start = Recipe.model_validate({"name": "s", "weights": {"mode": mode, "group_size": 32}})
    llmcompress.compress(loaded, start, tmp_path / "start")
    assert (output / "openvino_model.bin").stat().st_size == (tmp_path / "start/openvino_model.bin").stat().st_size


def test_a_text_of_its_own_validates(
    loaded: LoadedModel, recipe: Callable[..., Recipe], wikitext: Path, calibration_text: Path, tmp_path: Path
) -> None:
    held_out = training_windows(loaded.source, recipe(), loaded.tokenizer, offline=True)
    assert held_out is not None
    trained_on = held_out.training.record
    (tmp_path / "validation.txt").write_text(wikitext.read_text(encoding="utf-8")[:200_000], encoding="utf-8")
    asked = dump_recipe(recipe(num_steps=2, validation={"dataset": "validation.txt"}))
    (tmp_path / "r.yaml").write_text(asked)
    # A relative path starts at the file's folder, also inside a record that is overridden.
    read = load_recipe(tmp_path / "r.yaml", ["training.num_steps=3"])
    assert [str(text.dataset) for text in read.texts] == [str(calibration_text), str(tmp_path / "validation.txt")]
    windows = training_windows(loaded.source, read, loaded.tokenizer, offline=True)
    assert windows is not None
    assert (len(windows.training.token_ids), windows.validation.token_ids.shape) == (32, (8, 64))
    assert windows.validation.record.dataset.endswith("validation.txt")
    assert windows.training.record == trained_on
    stored = read.portable().texts
    assert [text.dataset for text in stored] == [calibration_text.name, "validation.txt"]
    same = of_windows(windows.training.token_ids[3:7].copy(), "validation.txt", 0)
    with pytest.raises(DataError, match=r"4 of 4 windows to validate on have a sequence of 64 tokens in common with"):
        require_apart(windows.training, same)


def test_a_plan_reads_its_texts_from_its_folder(demo_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("t.txt", "v.txt"):
        (tmp_path / name).write_text("text")
    for settings in (
        "{training.dataset: t.txt, training.validation.dataset: v.txt, training.budget: 5m, training.num_steps: null}",
        "{training.dataset: t.txt, training.validation: {dataset: v.txt}}",
        "{training: {method: blocks, dataset: t.txt, validation: {dataset: v.txt}}}",
    ):
        plan = f"models: [{demo_checkpoint}]\nrecipes: [{{recipe: int4-learned, set: {settings}}}]\n"
        (tmp_path / "plan.yaml").write_text(plan)
        (job,) = planned_jobs(llmcompress.load_plan(tmp_path / "plan.yaml"), tmp_path)
        assert job.recipe is not None
        assert [text.dataset for text in job.recipe.texts] == [str(tmp_path / "t.txt"), str(tmp_path / "v.txt")]
        assert job.recipe.training is not None
        assert job.recipe.training.budget_s == (300.0 if "budget" in settings else None)


def test_the_original_is_asked_once(demo_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint, dtype=torch.float32)
    token_ids = np.random.default_rng(0).integers(5, 2000, (3, 16))
    asked: list[Any] = []
    first = ask(model, token_ids, 8, tmp_path, asked.append)
    assert len(asked) == 4
    again = ask(None, token_ids, 8, tmp_path, asked.append)
    assert len(asked) == 4
    assert np.array_equal(again.log_probabilities, first.log_probabilities)
    assert np.array_equal(again.tokens, first.tokens)


def test_a_text_that_repeats_itself_cannot_validate(
    loaded: LoadedModel, recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and then it sleeps. " * 4000)
    with pytest.raises(DataError, match=r"of the held-out windows \d+ have no sequence of 64 tokens in common"):
        llmcompress.compress(loaded, recipe(dataset=str(text)), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"mode": "mxfp4"}}, "weights.mode is mxfp4: its scales are powers of two"),
        ({"weights": {"mode": "cb4"}}, "weights.mode is cb4: its values are a codebook's"),
        (
            {"method": "none", "weights": None},
            "training: has no effect with method none: the bits of compressed weights are learned",
        ),
        (
            {
                "weights": {"mode": "int4_sym", "lora_correction": True},
                "calibration": {"dataset": "text.txt"},
            },
            r"weights.lora_correction: adds layers next to a weight, which training does not know",
        ),
        ({"training": {"what": ["scales", "scales"]}}, "training.what: names something twice"),
        (
            {"weights": {"mode": "int4_sym"}, "training": {"what": ["zero_points"]}},
            "zero_points has no effect: int4_sym has none",
        ),
        (
            {"training": {"method": "fq_lora", "what": ["scales"]}},
            "training.what: has no effect with method fq_lora",
        ),
        ({"training": {"budget": "soon"}}, "budget: got 'soon'; hours, minutes and seconds are accepted"),
        ({"training": {"budget": "1h", "budget_s": 60.0}}, "budget: budget_s says the same"),
        (
            {"training": {"budget_s": 60.0, "num_steps": 100}},
            "training.num_steps: has no effect with budget_s, which decides the number of steps",
        ),
        ({"training": {"adapter_rank": 8}}, "training.adapter_rank: has no effect with method distillation"),
        (
            {"weights": {"mode": "int3_sym"}, "training": {"method": "fq_lora"}},
            "training.method: method fq_lora has adapters for int4_sym and int4_asym, not int3_sym",
        ),
        (
            {"weights": {"mode": "int4_sym", "all_layers": True}, "training": {"method": "fq_lora"}},
            r"weights.all_layers: has no effect with training.method fq_lora, which begins with the data-free codes",
        ),
        (
            {"weights": {"mode": "int4_sym", "ratio": 0.8}, "training": {"method": "fq_lora"}},
            r"weights.ratio: leaves layers out, and training.method fq_lora takes all linear layers",
        ),
        (
            {"training": {"method": "blocks", "num_top_tokens": 8}},
            "training.num_top_tokens: has no effect with method blocks",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_when_it_is_read(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"name": "r", "weights": {"mode": "int4_asym"}}
    training = {"method": "distillation", "dataset": "text.txt"} | changes.pop("training", {})
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(given | {"training": training} | changes)


def test_an_openvino_model_is_no_original(start: Path, recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="training compares with the original in torch, and an OpenVINO model is none"
    ):
        llmcompress.compress(start, recipe(), tmp_path / "out")


def test_a_device_that_is_not_there_is_named() -> None:
    assert training_device("cpu").type == "cpu"
    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(UsageError, match="torch finds no cuda device here"):
        training_device("cuda")


def test_a_mode_that_no_layer_got_leaves_nothing_to_train(
    loaded: LoadedModel, calibration_text: Path, tmp_path: Path
) -> None:
    given = {"method": "distillation", "dataset": str(calibration_text), **SMALL}
    weights = {"mode": "int4_asym", "group_size": 32, "ratio": 0.0}
    recipe = Recipe.model_validate({"name": "r", "weights": weights, "training": given})
    with pytest.raises(
        ModelError, match="no layer was compressed to integers of int4_asym, so that there is nothing to train"
    ):
        llmcompress.compress(loaded, recipe, tmp_path / "out")


def test_what_is_no_layer_of_its_own_is_left_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(128, 8, bias=False))
    weight = _weight("u4")
    both = {"self.0.weight": weight, "self.1.experts": weight}
    assert [each.name for each in make_student(model, both, both, ALL)] == ["self.0.weight"]
    assert "1 of 2 weights keep the bits that they have: they are no layers of their own in Sequential" in caplog.text
    model = torch.nn.Sequential(torch.nn.Linear(128, 8, bias=False))
    with pytest.raises(ModelError, match="no weight has bits to train"):
        make_student(model, {"self.0.weight": weight}, [], ALL)


def test_a_model_whose_layers_are_no_chain_is_named(loaded: LoadedModel, recipe: Callable[..., Recipe]) -> None:
    from transformers import AutoModelForCausalLM

    def blocks_of(model: Any) -> blocks_module.Blocks:
        training = recipe(method="blocks").training
        assert training is not None
        token_ids = np.arange(64)[None]
        return blocks_module.Blocks(
            model, {}, frozenset(), training, token_ids, 1, torch.device("cpu"), Path(), lambda progress: None
        )

    model = AutoModelForCausalLM.from_pretrained(loaded.source.path)
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList(layers[:-1])
    with pytest.raises(ModelError, match="it has no list of 5 decoder layers"):
        next(blocks_module.train_blocks(blocks_of(model)))


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "phi3", "gpt_neox", "qwen3")]
)
def test_other_architectures_are_trained(architecture: str, calibration_text: Path, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(tmp_path / "model", architecture)
    for method in ("distillation", "blocks"):
        training = {"method": method, "dataset": str(calibration_text), "num_steps": 3, **SMALL}
        recipe = Recipe.model_validate(
            {"name": "r", "weights": {"mode": "int4_asym", "group_size": 32}, "training": training}
        )
        report = llmcompress.compress(checkpoint, recipe, tmp_path / method)
        assert report.training is not None
        assert report.training.num_layers > 4
        assert json.loads((tmp_path / method / "llmcompress.json").read_text())["training"]["method"] == method


def _text_rows(directory: Path, text: Path, num_rows: int) -> list[dict[str, torch.Tensor]]:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(directory)(text.read_text(encoding="utf-8")[:200_000])["input_ids"]
    rows = torch.tensor(ids[: num_rows * 64]).reshape(num_rows, 64)
    return [{"input_ids": row, "labels": row} for row in rows]


def test_a_loop_of_ones_own_trains_with_trainer(
    demo_checkpoint: Path, calibration_text: Path, start: Path, tmp_path: Path
) -> None:
    from transformers import Trainer, TrainingArguments

    recipe = Recipe.model_validate({"name": "task", "weights": {"mode": "int4_asym", "group_size": 32}})
    model = llmcompress.prepare_for_training(demo_checkpoint, recipe)
    assert {name.rpartition(".")[2] for name, each in model.named_parameters() if each.requires_grad} == {
        "scale",
        "zero_point",
        "offset",
    }
    rows = _text_rows(demo_checkpoint, calibration_text, 32)
    batch = torch.stack([row["input_ids"] for row in rows])
    with torch.no_grad():
        before = float(model(batch, labels=batch).loss)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    model.eval()
    with torch.no_grad():
        output = model(batch, labels=batch)
    assert float(output.loss) < before - 0.005
    report = llmcompress.export_trained(model, recipe, tmp_path / "out")
    assert report.training is not None
    assert report.training.method == "own_loop"
    assert report.training.changed_codes > 0
    assert llmcompress.verify(tmp_path / "out").ok
    assert (tmp_path / "out/openvino_model.bin").stat().st_size == (start / "openvino_model.bin").stat().st_size
    found = all_logits(tmp_path / "out", batch[0].numpy(), EXACT)
    assert np.abs(found - output.logits[0].numpy()).max() < 5e-3
    with pytest.raises(UsageError, match="the model was prepared by recipe task with other settings than int4 has"):
        llmcompress.export_trained(model, "int4", tmp_path / "other")
    with pytest.raises(UsageError, match=r"this Linear was not made by llmcompress.prepare_for_training"):
        llmcompress.export_trained(torch.nn.Linear(2, 2), recipe, tmp_path / "other")
    with pytest.raises(RecipeError, match="only integer weights without LoRA correction can be trained"):
        llmcompress.prepare_for_training(demo_checkpoint, "mxfp4")


@pytest.mark.slow
def test_the_example_trains_on_a_task(demo_checkpoint: Path, calibration_text: Path, tmp_path: Path) -> None:
    texts = calibration_text.read_text(encoding="utf-8").split("\n")
    lines = [json.dumps({"text": text}) for text in texts if len(text) > 100][:16]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    example = Path(__file__).parent.parent / "examples" / "train_on_a_task.py"
    given = [demo_checkpoint, tmp_path / "rows.jsonl", tmp_path / "out", "--num-steps", "2", "--seq-len", "32"]
    done = subprocess.run([sys.executable, example, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"Next: llmcompress eval {tmp_path / 'out'} --reference {demo_checkpoint}\n")
    assert llmcompress.verify(tmp_path / "out").ok


def test_long_trainings_begin_with_smaller_steps() -> None:
    def rates(**given: Any) -> list[float]:
        training = Training.model_validate({"method": "distillation", "dataset": "a.txt", **given})
        model = torch.nn.Linear(2, 2)
        kinds: tuple[Any, ...] = ("scale", "zero_point", "offset")
        learnables = [Learnable(kind, torch.nn.Parameter(model.weight.detach().clone()), list) for kind in kinds]  # type: ignore[arg-type]
        return [float(group["first_rate"]) for group in course._optimizer(learnables, training).param_groups]

    assert rates(num_steps=100) == rates(num_steps=500) == [1e-3, 5e-2, 5e-3]
    assert rates(num_steps=2000) == pytest.approx([1e-3 / 4, 5e-2 / 4, 5e-3 / 4])
    assert rates(num_steps=2000, learning_rate=0.01) == pytest.approx([1e-3 / 4, 5e-2 / 4, 0.01])
