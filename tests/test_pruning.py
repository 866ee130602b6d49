"""Pruning: what goes is what the papers' formulas say, what is left opens everywhere, zeros stay zeros."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from evaluation_fixture import all_logits
from numpy.typing import NDArray
from summary_fixture import write_evaluation, write_model
from tiny_models import build_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaMLP

import llmcompress
from llmcompress import Recipe, compare
from llmcompress.cli.compression_report import _pruning_text
from llmcompress.compression import depth_speed
from llmcompress.compression.forecast import forecast
from llmcompress.compression.layers import layer_table
from llmcompress.errors import LlmcompressError, ModelError, RecipeError, UsageError
from llmcompress.graph.integer_weights import integer_weights
from llmcompress.graph.model import parameter_name, read_ir
from llmcompress.loaders.resolving import resolve
from llmcompress.report.pruning import PruningRecord
from llmcompress.report.record import DepthSpeed, Measured, SparseSpeed
from llmcompress.runner.state import Original, compress_reason
from llmcompress.spec import Pruning, load_recipe, override_recipe
from llmcompress.summary.table import notes
from llmcompress.training.layers import layer_list
from llmcompress.training.pruning import checkpoint as checkpoint_module
from llmcompress.training.pruning import prune as prune_module
from llmcompress.training.pruning.configuration import shrink
from llmcompress.training.pruning.masks import by_wanda
from llmcompress.training.pruning.prune import Pruned, PruneTask, prune
from llmcompress.training.pruning.sparsegpt import sparsegpt

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
NONE = {"name": "p", "method": "none"}
INT4 = {"name": "p", "weights": {"mode": "int4_asym", "group_size": 32}}

Run = Callable[..., Pruned]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine threads that wait for each other at every small operation take many times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def token_ids(demo_checkpoint: Path, calibration_text: Path) -> NDArray[np.int64]:
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint)
    ids = tokenizer(calibration_text.read_text()[:20_000], add_special_tokens=False)["input_ids"]
    return np.array(ids[: 4 * 64]).reshape(4, 64)


@pytest.fixture
def run(tmp_path: Path, token_ids: NDArray[np.int64]) -> Run:
    def pruned(source: Path, *, windows: NDArray[np.int64] | None = token_ids, **pruning: Any) -> Pruned:
        place = tmp_path / "pruning"
        place.mkdir()
        task = PruneTask(resolve(source), Pruning(**pruning), windows, None, place, lambda progress: None)
        return prune(task)

    return pruned


def opened(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = model(torch.from_numpy(token_ids), use_cache=False).logits.double().numpy()
    return found


def kl(original: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    log_p, log_q = (each - np.logaddexp.reduce(each, -1, keepdims=True) for each in (original, found))
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def kl_of_classes(original: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """The original's 256 most likely tokens at each position, and all others as one."""
    p, q = (np.exp(each - np.logaddexp.reduce(each, -1, keepdims=True)) for each in (original, found))
    top = np.argsort(-p, -1)[..., :256]
    p, q = (np.take_along_axis(each, top, -1) for each in (p, q))
    p, q = (np.concatenate([each, 1 - each.sum(-1, keepdims=True)], -1) for each in (p, q))
    return float((p * np.log(p / q)).sum(-1).mean())


def without(model: Any, layers: tuple[int, ...]) -> Any:
    """By hand, as one does in a notebook."""
    model = copy.deepcopy(model)
    kept = [layer for number, layer in enumerate(model.model.layers) if number not in layers]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    return model


# --- single weights


def weights_and_inputs(rows: int = 12, columns: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / 4 + torch.eye(columns)
    inputs = torch.randn(400, columns, generator=generator) @ mixing
    return weight, inputs


def test_wanda_keeps_the_largest_of_each_row_by_weight_times_norm() -> None:
    weight, inputs = weights_and_inputs()
    hessian = inputs.T @ inputs
    scores = weight.abs().numpy() * np.linalg.norm(inputs.numpy(), axis=0)
    kept = by_wanda(weight, hessian, Pruning(method="wanda", sparsity=0.5)).numpy()
    assert (kept.sum(1) == 16).all()
    for row, score in zip(kept, scores, strict=True):
        assert score[row].min() > score[~row].max()
    of_groups = by_wanda(weight, hessian, Pruning(method="wanda", pattern="2:4")).numpy().reshape(12, 8, 4)
    assert (of_groups.sum(-1) == 2).all()
    groups = scores.reshape(12, 8, 4)
    assert (np.where(of_groups, groups, np.inf).min(-1) > np.where(of_groups, -np.inf, groups).max(-1)).all()


@pytest.mark.parametrize("pattern", [None, "2:4", "1:4"])
def test_sparsegpt_is_the_papers_optimal_brain_surgeon(pattern: str | None) -> None:
    """Column after column, by the inverse of what is left of the Hessian, in f64: equations 3 to 5 of the paper."""
    weight, inputs = weights_and_inputs()
    hessian = (inputs.T @ inputs).double().numpy()
    asked = {"pattern": pattern} if pattern else {"sparsity": 0.5}
    found = sparsegpt(weight, inputs.T @ inputs, Pruning(method="sparsegpt", **asked)).numpy()

    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    inverses = [np.linalg.inv(damped[column:, column:]) for column in range(len(damped))]
    diagonal = np.array([inverse[0, 0] for inverse in inverses])
    expected = weight.double().numpy().copy()
    kept = np.ones(expected.shape, bool)
    if pattern is None:
        scores = expected**2 / diagonal
        kept = scores > np.sort(scores, axis=None)[scores.size // 2 - 1]
    zeros, of = map(int, (pattern or "0:1").split(":"))
    for column, inverse in enumerate(inverses):
        if pattern is not None and column % of == 0:
            scores = expected[:, column : column + of] ** 2 / diagonal[column : column + of]
            smallest = np.argsort(scores, 1)[:, :zeros] + column
            np.put_along_axis(kept, smallest, False, 1)
        error = np.where(kept[:, column], 0, expected[:, column])
        expected[:, column:] -= np.outer(error / inverse[0, 0], inverse[0])
        expected[:, column] = np.where(kept[:, column], expected[:, column], 0)
    assert ((found == 0) == (expected == 0)).all()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    # And that is what it is for.
    left_out = weight.numpy() * kept
    errors = [np.square((each - weight.numpy()) @ inputs.numpy().T).sum() for each in (found, left_out)]
    assert errors[0] < 0.8 * errors[1]


def test_sparsegpt_takes_what_no_token_reaches() -> None:
    weight, inputs = weights_and_inputs()
    inputs[:, 3] = 0
    found = sparsegpt(weight, inputs.T @ inputs, Pruning(method="sparsegpt", sparsity=0.5))
    assert found.isfinite().all()
    assert (found[:, 3] == 0).all()
    assert (sparsegpt(weight, inputs.T @ inputs, Pruning(method="sparsegpt", sparsity=0.001))[:, 4] != 0).all()


def test_magnitude_is_that_of_nncf(run: Run, demo_checkpoint: Path) -> None:
    import nncf
    from nncf.torch.function_hook.wrapper import get_hook_storage

    pruned = run(demo_checkpoint, windows=None, method="magnitude", sparsity=0.5)
    # Weights of the same size as the threshold go with it.
    assert pruned.record.density == pytest.approx(0.5, abs=3e-3)
    assert pruned.record.kl_divergence is None
    model, found = opened(demo_checkpoint), opened(pruned.path)
    before = {name: module.weight.clone() for name, module in model.named_modules() if hasattr(module, "weight")}
    ignored = nncf.IgnoredScope(patterns=[".*embed_tokens.*", ".*lm_head.*"])
    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL
    stock = nncf.prune(
        model, mode=mode, ratio=0.5, ignored_scope=ignored, examples_inputs={"input_ids": torch.arange(8)[None]}
    )
    masks = {
        name.partition("post_hooks.")[2].partition("__0")[0].replace(":", "."): hook.binary_mask
        for name, hook in get_hook_storage(stock).named_hooks()
    }
    assert len(masks) == 7 * found.config.num_hidden_layers
    for name, mask in masks.items():
        module = name.removesuffix(".weight")
        assert torch.equal(found.get_submodule(module).weight, before[module] * mask), name
    for name in ("model.embed_tokens", "lm_head"):
        assert torch.equal(found.get_submodule(name).weight, before[name])


@pytest.mark.parametrize(
    "method", ["sparsegpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("wanda", "magnitude"))]
)
def test_a_pattern_holds_exactly_after_int4(
    method: str, demo_checkpoint: Path, calibration_text: Path, tmp_path: Path
) -> None:
    calibration = {"dataset": str(calibration_text), "num_samples": 4, "seq_len": 64}
    made = {**INT4, "pruning": {"method": method, "pattern": "2:4"}}
    made |= {} if method == "magnitude" else {"calibration": calibration}
    report = llmcompress.compress(demo_checkpoint, Recipe.model_validate(made), tmp_path / "out")
    weights = integer_weights(read_ir(tmp_path / "out"))
    names = [name for name in weights if ".layers." in parameter_name(name)]
    assert len(names) == 7 * 5
    for name in names:
        values = weights[name].values().reshape(-1, 4)
        assert ((values == 0).sum(1) >= 2).all(), name
    assert report.pruning is not None
    assert report.pruning.density == pytest.approx(0.5, abs=3e-3)
    assert report.pruning.archive_share is not None
    assert 0.3 < report.pruning.archive_share < 1
    assert report.measured.sparse_speed is not None
    assert report.measured.sparse_speed.ratio > 0


# --- layers


def test_layers_are_dropped_by_what_each_drop_costs(
    run: Run, demo_checkpoint: Path, token_ids: NDArray[np.int64]
) -> None:
    original = opened(demo_checkpoint)
    wanted = logits(original, token_ids)
    first = [kl_of_classes(wanted, logits(without(original, (number,)), token_ids)) for number in range(5)]
    one = int(np.argmin(first))
    second = {
        number: kl_of_classes(wanted, logits(without(original, (one, number)), token_ids))
        for number in range(5)
        if number != one
    }
    pruned = run(demo_checkpoint, method="depth", num_layers=2)
    np.testing.assert_allclose(pruned.record.layer_scores, first, rtol=1e-3)
    assert pruned.record.layers == (one, min(second, key=lambda number: second[number]))
    assert pruned.record.kl_divergence == pytest.approx(min(second.values()), rel=1e-3)
    found = opened(pruned.path)
    assert found.config.num_hidden_layers == 3
    np.testing.assert_allclose(
        logits(found, token_ids), logits(without(original, pruned.record.layers), token_ids), atol=1e-4
    )
    assert pruned.record.num_parameters == sum(each.numel() for each in found.parameters())


def test_what_comes_before_a_drop_is_computed_once_for_all(
    run: Run, demo_checkpoint: Path, token_ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls, forward = 0, LlamaMLP.forward

    def counted(self: LlamaMLP, inputs: torch.Tensor) -> torch.Tensor:
        nonlocal num_calls
        num_calls += 1
        return forward(self, inputs)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    run(demo_checkpoint, method="depth", num_layers=1)
    answers, handed, drops, pruned = 5, 5, 4 + 3 + 2 + 1 + 0, 4
    # Of one window it is shown before that later layers need no earlier ones, and what is saved is opened and compared.
    shown, saved = 5 + 5 + (4 + 3 + 2 + 1 + 0), 2 * 4
    assert num_calls == len(token_ids) * (answers + handed + drops + pruned) + shown + saved


def test_layers_that_leave_more_behind_are_all_computed(
    run: Run, demo_checkpoint: Path, token_ids: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where later layers take the keys of earlier ones."""
    left, forward, embed = [torch.zeros(())], LlamaMLP.forward, torch.nn.Embedding.forward

    def each_alone(model: Any, windows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.concatenate([logits(model, window[None]) for window in windows])

    def shared(self: LlamaMLP, inputs: torch.Tensor) -> torch.Tensor:
        found = forward(self, inputs)
        left[0], before = found, left[0]
        return found + 0.1 * before.mean()

    def begun(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        left[0] = torch.zeros(())
        return embed(self, ids)

    monkeypatch.setattr(LlamaMLP, "forward", shared)
    monkeypatch.setattr(torch.nn.Embedding, "forward", begun)
    original = opened(demo_checkpoint)
    wanted = each_alone(original, token_ids)
    scores = [kl_of_classes(wanted, each_alone(without(original, (number,)), token_ids)) for number in range(5)]
    pruned = run(demo_checkpoint, method="depth", num_layers=1)
    np.testing.assert_allclose(pruned.record.layer_scores, scores, rtol=1e-3)


def test_layers_are_dropped_up_to_a_divergence(run: Run, demo_checkpoint: Path, token_ids: NDArray[np.int64]) -> None:
    original = opened(demo_checkpoint)
    wanted = logits(original, token_ids)
    scores = [kl_of_classes(wanted, logits(without(original, (number,)), token_ids)) for number in range(5)]
    pruned = run(demo_checkpoint, method="depth", max_kl=min(scores) * 1.1)
    assert pruned.record.layers == (int(np.argmin(scores)),)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A device on which a decoder layer takes one millisecond and the rest two; the formats of what it has timed."""
    models: list[list[str]] = []

    def times(directories: list[Path], phase: str) -> list[float]:
        assert phase == "decode"
        found = []
        for directory in directories:
            model = read_ir(directory)
            assert json.loads((directory / "config.json").read_text())["num_hidden_layers"] == num_attentions(model)
            models.append(sorted({layer.mode for layer in layer_table(model)}))
            found.append(2e-3 + 1e-3 * num_attentions(model))
        return found

    monkeypatch.setattr(depth_speed, "model_times", times)
    return models


def num_attentions(model: Any) -> int:
    return [op.get_type_name() for op in model.get_ops()].count("ScaledDotProductAttention")


def test_layers_are_dropped_for_a_speed(
    timed: list[list[str]], demo_checkpoint: Path, calibration_text: Path, tmp_path: Path
) -> None:
    text = {"dataset": str(calibration_text), "seq_len": 64, "num_samples": 2}
    weights = {"mode": "int4_asym", "group_size": 32, "gptq": True}
    asked = Recipe.model_validate(
        {"name": "p", "weights": weights, "calibration": text, "pruning": {"method": "depth", "speedup": 1.3}}
    )
    made = llmcompress.compress(demo_checkpoint, asked, tmp_path / "out")
    # 7 ms by five layers: one less is 1.17 times as fast, two 1.4 times.
    assert made.pruning is not None
    assert made.pruning.speedup == 1.3
    assert len(made.pruning.layers) == 2
    assert made.measured.depth_speed is not None
    assert made.measured.depth_speed.token_s == pytest.approx(7e-3)
    assert made.measured.depth_speed.layer_s == pytest.approx(1e-3)
    assert made.measured.depth_speed.ratio == pytest.approx(1.4)
    # What was timed has the recipe's format, without its data.
    assert timed == [["int4_asym", "int8_asym"]] * 2
    assert not list(tmp_path.glob(".*"))
    # The recipe that is written makes the same anywhere.
    by_number = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert by_number.pruning == Pruning(method="depth", num_layers=2)
    again = llmcompress.compress(
        demo_checkpoint, override_recipe(asked, ["pruning.speedup=null", "pruning.num_layers=2"]), tmp_path / "again"
    )
    assert {file.path: file.sha256 for file in again.files} == {file.path: file.sha256 for file in made.files}
    # Of a plan's model, which is loaded once.
    loaded = llmcompress.load(demo_checkpoint)
    assert llmcompress.compress(loaded, asked, tmp_path / "of-loaded").files == made.files
    assert num_attentions(loaded.model) == 5
    # A plan takes it for done, unless it asks for another speed.
    original = Original(loaded.source)
    assert compress_reason(tmp_path / "out", asked, original) is None
    faster = override_recipe(asked, ["pruning.speedup=1.5"])
    assert compress_reason(tmp_path / "out", faster, original) == "the speed that pruning is for changed"


def test_a_speed_that_no_drop_gives_is_refused(
    timed: list[list[str]],
    demo_checkpoint: Path,
    calibration_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = Recipe.model_validate(
        {**NONE, "calibration": {"dataset": str(calibration_text)}, "pruning": {"method": "depth", "speedup": 3}}
    )
    with pytest.raises(
        RecipeError,
        match=r"of which each of 5 decoder layers takes 1 ms: with one layer left it is 2.33 times as fast",
    ):
        llmcompress.compress(demo_checkpoint, recipe, tmp_path / "out")
    monkeypatch.setattr(depth_speed, "model_times", lambda directories, phase: [7e-3, 8e-3])
    with pytest.raises(RecipeError, match=r"a token takes 7 ms here, and no less without half of the decoder layers"):
        llmcompress.compress(demo_checkpoint, recipe, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_layers_take_no_more_than_all_there_is() -> None:
    """Five layers cannot take ten of seven milliseconds, but noise can say so."""
    found = depth_speed._solved(3, 5, token_s=7e-3, layer_s=2e-3)
    assert found.num_layers == 4
    assert found.measured.layer_s == pytest.approx(1.4e-3)
    assert found.measured.ratio == pytest.approx(5)


def test_a_contiguous_block_is_the_nearest_in_angle(
    run: Run, demo_checkpoint: Path, token_ids: NDArray[np.int64]
) -> None:
    original = opened(demo_checkpoint)
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: states.append(args[0][:, -1]))
        for layer in original.model.layers
    ]
    hooks.append(original.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0][:, -1])))
    logits(original, token_ids)
    for hook in hooks:
        hook.remove()
    angles = [
        float(torch.arccos(torch.cosine_similarity(states[n].double(), states[n + 2].double())).mean())
        for n in range(4)
    ]
    best = int(np.argmin(angles))
    pruned = run(demo_checkpoint, method="depth", num_layers=2, selection="contiguous")
    assert pruned.record.layers == (best, best + 1)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3", "gpt_neox", "qwen3_moe"])
def test_other_architectures_lose_layers(model_type: str, run: Run, tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "model", model_type)
    before = layer_list(opened(source))[1]
    pruned = run(source, windows=None, method="depth", layers=(0,))
    after = layer_list(opened(pruned.path))[1]
    assert len(after) == len(before) - 1
    for number, layer in enumerate(after):
        wanted = before[number + 1].state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in layer.state_dict().items())


def test_lists_with_an_entry_for_each_layer_follow() -> None:
    config = AutoConfig.for_model(
        "qwen3",
        num_hidden_layers=4,
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        use_sliding_window=True,
        eos_token_id=[1, 2, 3, 4],
    )
    shrink(config, Pruning(method="depth", layers=(0, 3)), (0, 3))
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.num_hidden_layers == 2
    assert config.eos_token_id == [1, 2, 3, 4]
    config = AutoConfig.for_model("qwen3_moe", num_hidden_layers=4, mlp_only_layers=[1, 3])
    shrink(config, Pruning(method="depth", layers=(0, 1)), (0, 1))
    assert config.mlp_only_layers == [1]


def test_a_model_that_its_configuration_cannot_say_is_refused(
    run: Run, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = build_checkpoint(tmp_path / "model", "qwen3_moe", decoder_sparse_step=2)
    # Every second layer has experts, by its number.
    with pytest.raises(ModelError, match="does not open as a qwen3_moe checkpoint: ") as caught:
        run(source, windows=None, method="depth", layers=(0,))
    assert "decides by a layer's number" in (caught.value.hint or "")
    monkeypatch.setattr(checkpoint_module, "CHECK_TOKENS", 8)
    saved = AutoModelForCausalLM.from_pretrained

    def changed(*args: Any, **kwargs: Any) -> Any:
        model = saved(*args, **kwargs)
        model.lm_head.weight.data += 1
        return model

    model = opened(demo_checkpoint)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", changed)
    with pytest.raises(ModelError, match=r"logits differ by up to \d"):
        checkpoint_module.save_checkpoint(model, torch.bfloat16, resolve(demo_checkpoint), tmp_path)


# --- width


def test_channels_are_chosen_by_what_they_add_and_the_rest_is_refitted(
    run: Run, demo_checkpoint: Path, token_ids: NDArray[np.int64]
) -> None:
    original = opened(demo_checkpoint)
    size = original.config.intermediate_size
    pruned = run(demo_checkpoint, method="width", intermediate_size=size - 64)
    found = opened(pruned.path)
    assert found.config.intermediate_size == size - 64
    # The first layer is given the same as in the original.
    given: list[torch.Tensor] = []
    mlp = original.model.layers[0].mlp
    hook = mlp.down_proj.register_forward_pre_hook(lambda _, args: given.append(args[0].flatten(0, 1)))
    wanted = logits(original, token_ids)
    hook.remove()
    inputs = torch.cat(given).double().numpy()
    weight = mlp.down_proj.weight.detach().double().numpy()
    norms = np.linalg.norm(inputs, axis=0) * np.linalg.norm(weight, axis=0)
    kept = np.sort(np.argsort(-norms)[: size - 64])
    assert pruned.record.parts[0].name == "model.layers.0.mlp"
    assert pruned.record.parts[0].dropped == tuple(sorted(set(range(size)) - set(kept.tolist())))
    hessian = inputs.T @ inputs
    damped = hessian[np.ix_(kept, kept)] + 0.01 * hessian.diagonal()[kept].mean() * np.eye(len(kept))
    expected = weight @ hessian[:, kept] @ np.linalg.inv(damped)
    own = found.model.layers[0].mlp
    np.testing.assert_allclose(own.down_proj.weight.detach().numpy(), expected, atol=2e-3, rtol=0.01)
    assert torch.equal(own.gate_proj.weight, mlp.gate_proj.weight[torch.from_numpy(kept)])
    # Refitted it is nearer to the original than merely cut.
    cut = copy.deepcopy(original)
    for layer, part in zip(cut.model.layers, pruned.record.parts, strict=True):
        layer.mlp.down_proj.weight.data[:, list(part.dropped)] = 0
    assert kl(wanted, logits(found, token_ids)) < 0.8 * kl(wanted, logits(cut, token_ids))


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_heads_that_share_keys_go_together(model_type: str, run: Run, tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "model", model_type)
    before, windows = opened(source), np.arange(64)[None]
    pruned = run(source, windows=windows, method="width", num_key_value_heads=1)
    after = opened(pruned.path)
    config = after.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 32)
    (dropped,) = pruned.record.parts[0].dropped
    kept = 1 - dropped
    was, now = (model.model.layers[0].self_attn for model in (before, after))
    assert torch.equal(now.q_proj.weight, was.q_proj.weight[kept * 64 : kept * 64 + 64])
    assert torch.equal(now.v_proj.weight, was.v_proj.weight[kept * 32 : kept * 32 + 32])
    if was.k_proj.bias is not None:
        assert torch.equal(now.k_proj.bias, was.k_proj.bias[kept * 32 : kept * 32 + 32])


def test_other_projections_are_named(run: Run, tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "model", "gpt_neox")
    with pytest.raises(ModelError, match=r"gpt_neox.layers.0 has no part with the linear layers gate_proj, up_proj"):
        run(source, windows=np.arange(64)[None], method="width", intermediate_size=256)


# --- experts


class ByHand(NamedTuple):
    """What each expert of each layer does on a text, written out: ``[num_layers, num_experts]``."""

    saliency: NDArray[np.float64]
    calls: NDArray[np.float64]
    answers: NDArray[np.float64]
    """The mean over all tokens, ``[num_layers, num_experts, hidden_size]``."""


def by_hand(original: Any, num_experts: int, windows: NDArray[np.int64]) -> ByHand:
    saliency, calls = np.zeros((2, num_experts)), np.zeros((2, num_experts))
    answers = np.zeros((2, num_experts, original.config.hidden_size))

    def counted(number: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: Any) -> None:
            hidden, chosen, weights = (*args, *kwargs.values())[:3]
            for expert in range(num_experts):
                gate, up = (hidden @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                found = (torch.nn.functional.silu(gate) * up) @ module.down_proj[expert].T
                answers[number, expert] += found.detach().double().sum(dim=0).numpy() / windows.size
                for token, (experts, gates) in enumerate(zip(chosen.tolist(), weights.tolist(), strict=True)):
                    if expert in experts:
                        saliency[number, expert] += gates[experts.index(expert)] * float(found[token].norm())
                        calls[number, expert] += 1

        return hook

    hooks = [
        layer.mlp.experts.register_forward_pre_hook(counted(number), with_kwargs=True)
        for number, layer in enumerate(original.model.layers)
    ]
    for window in windows:
        logits(original, window[None])
    for hook in hooks:
        hook.remove()
    return ByHand(saliency, calls, answers)


@pytest.mark.parametrize(("model_type", "name"), [("mixtral", "num_local_experts"), ("qwen3_moe", "num_experts")])
@pytest.mark.parametrize(("ratio", "merge"), [(0.25, False), (0.5, True)])
def test_experts_that_matter_least_go(
    model_type: str, name: str, ratio: float, merge: bool, run: Run, tmp_path: Path
) -> None:
    source = build_checkpoint(tmp_path / "model", model_type)
    original, windows = opened(source), np.random.default_rng(0).integers(0, 512, (3, 48))
    num_experts = getattr(original.config, name)
    truth = by_hand(original, num_experts, windows)
    pruned = run(source, windows=windows, method="experts", ratio=ratio, merge=merge)
    after = opened(pruned.path)
    num_kept = round(num_experts * (1 - ratio))
    assert getattr(after.config, name) == num_kept
    for number, (part, layer) in enumerate(zip(pruned.record.parts, after.model.layers, strict=True)):
        calls, answers = truth.calls[number], truth.answers[number]
        kept = np.sort(np.argsort(-truth.saliency[number])[:num_kept])
        dropped = sorted(set(range(num_experts)) - set(kept.tolist()))
        assert part.dropped == tuple(dropped)
        assert part.coverage == pytest.approx(calls[kept].sum() / calls.sum())
        was = original.model.layers[number].mlp
        assert torch.equal(layer.mlp.gate.weight, was.gate.weight[torch.from_numpy(kept)])
        into = [kept[np.linalg.norm(answers[kept] - answers[gone], axis=-1).argmin()] for gone in dropped]
        assert part.merged_into == (tuple(into) if merge else ())
        for place, stays in enumerate(kept):
            group = [stays, *(gone for gone, other in zip(dropped, into, strict=True) if other == stays and merge)]
            for stack in ("gate_up_proj", "down_proj"):
                weights = getattr(was.experts, stack).detach().double().numpy()[group]
                mean = np.average(weights, axis=0, weights=calls[group])
                got = getattr(layer.mlp.experts, stack)[place].detach().double().numpy()
                # A mean as the checkpoint's dtype holds it; one that takes none up to the bit.
                rtol, atol = (2**-8, 1e-7) if len(group) > 1 else (0, 0)
                np.testing.assert_allclose(got, mean, rtol=rtol, atol=atol)


def test_experts_that_no_token_calls_stay_as_they_are() -> None:
    """The weights of those that stay are not touched where all that would be merged were never called."""
    from llmcompress.training.pruning.experts import _merge, _Mixture

    experts = torch.nn.Module()
    experts.stack = torch.nn.Parameter(torch.arange(6.0).reshape(3, 2), requires_grad=False)
    _merge(_Mixture("mlp", None, experts, torch.zeros(3), torch.zeros(3), {}), [(2, 0)])
    assert torch.equal(experts.stack, torch.arange(6.0).reshape(3, 2))


# --- through compress


def test_a_pruned_artifact_computes_what_its_checkpoint_does(
    demo_checkpoint: Path, token_ids: NDArray[np.int64], tmp_path: Path
) -> None:
    recipe = Recipe.model_validate({**NONE, "pruning": {"method": "depth", "layers": [1, 3]}})
    out, kept = tmp_path / "out", tmp_path / "kept"
    report = llmcompress.compress(demo_checkpoint, recipe, out, save_checkpoint=kept)
    found = opened(kept)
    window = token_ids[0]
    np.testing.assert_allclose(all_logits(out, window, EXACT), logits(found, window[None])[0], atol=2e-3)
    assert AutoTokenizer.from_pretrained(kept)("def f")["input_ids"]
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 3
    assert report.pruning is not None
    assert report.pruning.layers == (1, 3)
    # It is the original that it came from, and is compared with.
    weights = {file.path: file.sha256 for file in report.provenance.files}
    assert weights == {file.path: file.sha256 for file in llmcompress.load(demo_checkpoint).provenance.files}
    assert load_recipe(out / "recipe.yaml") == recipe
    assert not list(tmp_path.glob(".*"))
    # A model that was loaded serves, too, and stays whole.
    loaded = llmcompress.load(demo_checkpoint)
    again = llmcompress.compress(loaded, recipe, tmp_path / "again")
    assert again.files == report.files
    assert again.provenance == report.provenance
    assert len([op for op in loaded.model.get_ops() if op.get_type_name() == "ScaledDotProductAttention"]) == 5


@pytest.mark.parametrize("what", ["weights", pytest.param("adapters", marks=pytest.mark.slow)])
def test_what_is_left_is_healed_and_zeros_stay(
    what: str, demo_checkpoint: Path, calibration_text: Path, tmp_path: Path
) -> None:
    text = {"dataset": str(calibration_text), "seq_len": 64}
    training = {
        "method": "distillation", "what": [what], **text, "num_samples": 32, "num_validation_samples": 8,
        "batch_size": 4, "num_steps": 16, "num_validations": 2,
    }  # fmt: skip
    pruning = {"method": "wanda", "sparsity": 0.6}
    made = {**INT4, "pruning": pruning, "calibration": {**text, "num_samples": 4}, "training": training}
    recipe = Recipe.model_validate(made)
    report = llmcompress.compress(
        demo_checkpoint, recipe, tmp_path / what, save_checkpoint=tmp_path / f"{what}-checkpoint"
    )
    assert report.pruning is not None
    assert report.training is not None
    assert report.pruning.density == pytest.approx(0.4, abs=2e-3)
    (curve,) = report.training.curves
    assert curve.kept_step > 0
    assert curve.points[-1].validation < 0.9 * curve.points[0].validation
    before, after = report.pruning.kl_divergence, report.pruning.kl_divergence_healed
    assert before is not None
    assert after is not None
    assert after < 0.9 * before
    assert report.training.changed_codes is None
    assert report.texts.keys() == {"calibration", "training", "validation"}
    # Single weights that would round to zero by chance are few.
    zeros = [
        (weight.values() == 0).mean()
        for name, weight in integer_weights(read_ir(tmp_path / what)).items()
        if ".layers." in parameter_name(name)
    ]
    # Of each row a whole number goes.
    assert min(zeros) >= 0.597
    layers = layer_list(opened(tmp_path / f"{what}-checkpoint"))[1]
    linears = [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    assert all(abs(float((linear.weight == 0).float().mean()) - 0.6) < 0.01 for linear in linears)


@pytest.mark.slow
@pytest.mark.slow
def test_the_example_prunes_while_it_trains(demo_checkpoint: Path, calibration_text: Path, tmp_path: Path) -> None:
    texts = calibration_text.read_text(encoding="utf-8").split("\n")
    lines = [json.dumps({"text": text}) for text in texts if len(text) > 100][:16]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    example = Path(__file__).parent.parent / "examples" / "prune_while_training.py"
    steps = ["--num-steps", "24", "--mask-learning-rate", "0.5", "--seq-len", "32"]
    given = [demo_checkpoint, tmp_path / "rows.jsonl", tmp_path / "pruned", tmp_path / "out", *steps]
    done = subprocess.run([sys.executable, example, *given], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    layers = layer_list(opened(tmp_path / "pruned"))[1]
    linears = [module.weight for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in linears) / sum(weight.numel() for weight in linears)
    assert zeros > 0.3
    assert f"{zeros:.1%} of the weights of the linear layers are zero" in done.stdout
    held = [
        (weight.values() == 0).mean()
        for name, weight in integer_weights(read_ir(tmp_path / "out")).items()
        if ".layers." in parameter_name(name)
    ]
    assert min(held) >= min(float((weight == 0).float().mean()) for weight in linears)


@pytest.mark.slow
def test_a_time_decides_the_steps_of_a_healing(
    demo_checkpoint: Path, calibration_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, measured = prune_module.durations_s, []

    def known(*arguments: Any) -> tuple[float, float]:
        measured.append(measure(*arguments))
        return 80.0, 0.0

    monkeypatch.setattr(prune_module, "durations_s", known)
    training = {
        "method": "distillation", "what": ["weights"], "dataset": str(calibration_text), "seq_len": 64,
        "num_samples": 16, "num_validation_samples": 4, "batch_size": 4, "num_validations": 2, "budget": "540s",
    }  # fmt: skip
    recipe = Recipe.model_validate({**NONE, "pruning": {"method": "depth", "layers": [1]}, "training": training})
    by_time = llmcompress.compress(demo_checkpoint, recipe, tmp_path / "time")
    ((step_s, validation_s),) = measured
    assert step_s > 0
    assert validation_s > 0
    assert by_time.training is not None
    # 6 steps of 80 s, and up to a minute for the answers of the original and for measuring.
    assert (by_time.training.num_steps, by_time.training.budget_s) == (6, 540)
    by_steps = llmcompress.compress(
        demo_checkpoint, override_recipe(recipe, ["training.budget_s=null", "training.num_steps=6"]), tmp_path / "steps"
    )
    assert by_steps.recipe == by_time.recipe
    assert len(measured) == 1
    assert by_steps.training == by_time.training.model_copy(update={"budget_s": None})
    assert by_steps.files == by_time.files
    short = override_recipe(recipe, ["training.budget_s=70"])
    with pytest.raises(UsageError, match="training with a single step takes about 1 min 20 s"):
        llmcompress.compress(demo_checkpoint, short, tmp_path / "short")
    assert not (tmp_path / "short").exists()


def test_bits_are_learned_against_the_whole_original(
    demo_checkpoint: Path, calibration_text: Path, tmp_path: Path
) -> None:
    training = {
        "method": "distillation", "dataset": str(calibration_text), "seq_len": 64, "num_samples": 16,
        "num_validation_samples": 8, "batch_size": 4, "num_steps": 1, "num_validations": 1,
    }  # fmt: skip
    made = {**INT4, "training": training}
    whole = llmcompress.compress(demo_checkpoint, Recipe.model_validate(made), tmp_path / "whole")
    made |= {"pruning": {"method": "depth", "layers": [2]}}
    pruned = llmcompress.compress(demo_checkpoint, Recipe.model_validate(made), tmp_path / "pruned")
    starts = [report.training.curves[0].points[0].validation for report in (whole, pruned) if report.training]
    assert starts[1] > 5 * starts[0]


@pytest.mark.parametrize("method", ["distillation", pytest.param("blocks", marks=pytest.mark.slow)])
def test_zeros_stay_where_bits_are_learned(
    method: str, demo_checkpoint: Path, calibration_text: Path, tmp_path: Path
) -> None:
    training = {
        "method": method, "dataset": str(calibration_text), "seq_len": 64, "num_samples": 16,
        "num_validation_samples": 8, "batch_size": 4, "num_steps": 6, "num_validations": 2, "learning_rate": 0.1,
    }  # fmt: skip
    made = {**INT4, "training": training, "pruning": {"method": "magnitude", "pattern": "2:4"}}
    report = llmcompress.compress(demo_checkpoint, Recipe.model_validate(made), tmp_path / "out")
    assert report.training is not None
    assert report.training.changed_codes
    for name, weight in integer_weights(read_ir(tmp_path / "out")).items():
        if ".layers." in parameter_name(name):
            assert ((weight.values().reshape(-1, 4) == 0).sum(1) >= 2).all(), name


def test_zeros_stay_in_a_loop_of_ones_own(demo_checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**INT4, "pruning": {"method": "magnitude", "pattern": "2:4"}})
    model = llmcompress.prepare_for_training(demo_checkpoint, recipe)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=10.0)
    ids = torch.arange(64)[None]
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    report = llmcompress.export_trained(model, recipe, tmp_path / "out")
    assert report.training is not None
    assert report.training.changed_codes
    assert report.pruning is not None
    assert report.pruning.density == pytest.approx(0.5, abs=3e-3)
    for name, weight in integer_weights(read_ir(tmp_path / "out")).items():
        if ".layers." in parameter_name(name):
            assert ((weight.values().reshape(-1, 4) == 0).sum(1) >= 2).all(), name
    healing = {"method": "distillation", "dataset": "a.txt", "what": ["weights"]}
    recipe = Recipe.model_validate({**INT4, "pruning": {"method": "depth", "layers": [1]}, "training": healing})
    with pytest.raises(RecipeError, match=r"in a loop of your own, and training.what asks for weights"):
        llmcompress.prepare_for_training(demo_checkpoint, recipe)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pruning",
    [{"method": "depth", "layers": [1]}, {"method": "width", "intermediate_size": 256}],
    ids=["depth", "width"],
)
def test_pruned_checkpoints_open_in_stock_optimum_and_genai(
    pruning: dict[str, Any], demo_checkpoint: Path, calibration_text: Path, token_ids: NDArray[np.int64], tmp_path: Path
) -> None:
    genai = pytest.importorskip("openvino_genai")
    from optimum.intel import OVModelForCausalLM

    calibration = {"dataset": str(calibration_text), "num_samples": 4, "seq_len": 64}
    recipe = {**INT4, "pruning": pruning, **({"calibration": calibration} if pruning["method"] == "width" else {})}
    out, kept = tmp_path / "out", tmp_path / "kept"
    llmcompress.compress(demo_checkpoint, Recipe.model_validate(recipe), out, save_checkpoint=kept)
    stock = OVModelForCausalLM.from_pretrained(kept, export=True, load_in_8bit=False, ov_config=EXACT)
    ids = torch.from_numpy(token_ids[:1])
    found = stock(ids, attention_mask=torch.ones_like(ids)).logits.double().numpy()
    np.testing.assert_allclose(found, logits(opened(kept), token_ids[:1]), atol=2e-3)
    config = genai.GenerationConfig(max_new_tokens=8, ignore_eos=True)
    assert genai.LLMPipeline(str(out), "CPU").generate("def f(x):", config)


# --- refusals


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "depth"}, r"num_layers: is missing; method depth needs num_layers or max_kl or speedup or"),
        ({"method": "width"}, r"intermediate_size: is missing; method width needs intermediate_size or num_key_value"),
        ({"method": "wanda", "ratio": 0.5}, r"ratio: has no effect with method wanda"),
        ({"method": "wanda", "sparsity": 0.5, "pattern": "2:4"}, r"pattern: has no effect beside sparsity"),
        ({"method": "wanda", "pattern": "4:4"}, r"pattern: 4:4 leaves nothing"),
        ({"method": "depth", "max_kl": 0.1, "selection": "contiguous"}, r"selection: contiguous needs num_layers or"),
        ({"method": "depth", "num_layers": 1, "speedup": 1.2}, r"speedup: has no effect beside num_layers"),
        ({"method": "depth", "speedup": 1}, r"speedup: got 1; accepted: greater than 1"),
        ({"method": "depth", "layers": [1, 1]}, r"layers: names a layer twice"),
    ],
)
def test_what_a_pruning_would_ignore_is_refused(recipe: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**NONE, "calibration": {"dataset": "a.txt"}, "pruning": recipe}))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file)


HEAL = {"method": "distillation", "dataset": "a.txt", "what": ["weights"]}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({**NONE, "training": HEAL}, r"training.what: float weights are healed after a pruning, and there is none"),
        (
            {"name": "p", "method": "keep", "pruning": {"method": "magnitude", "sparsity": 0.5}},
            r"pruning: has no effect with method keep, which changes no weight",
        ),
        (
            {**NONE, "pruning": {"method": "wanda", "sparsity": 0.5}},
            r"calibration: is missing; pruning.method wanda looks at data",
        ),
        (
            {
                "name": "p",
                "weights": {"mode": "int4_asym", "gptq": True},
                "calibration": {"dataset": "a.txt"},
                "pruning": {"method": "wanda", "sparsity": 0.5},
            },
            r"weights.gptq: moves weights that pruning.method wanda has set to zero",
        ),
        (
            {
                **INT4,
                "training": {"method": "fq_lora", "dataset": "a.txt"},
                "pruning": {"method": "magnitude", "sparsity": 0.5},
            },
            r"training.method: moves zeros, which pruning.method magnitude has set",
        ),
        (
            {**NONE, "pruning": {"method": "magnitude", "sparsity": 0.5}, "calibration": {"dataset": "a.txt"}},
            r"calibration: has no effect: nothing in this recipe looks at data",
        ),
        *(
            ({**NONE, "pruning": {"method": "depth", "layers": [1]}, "training": {**HEAL, **training}}, message)
            for training, message in (
                ({"what": ["weights", "adapters"]}, r"training.what: weights and adapters are not trained together"),
                ({"method": "blocks"}, r"training.method: weights are trained by distillation, not by blocks"),
                ({"learning_rate": 0.1}, r"training.learning_rate: has no effect on weights"),
                ({"adapter_rank": 4}, r"training.adapter_rank: has no effect on weights"),
                ({"what": ["adapters"], "weight_learning_rate": 0.1}, r"weight_learning_rate: has no effect on adapt"),
                ({"budget_s": 60.0, "num_steps": 3}, r"training.num_steps: has no effect with budget_s"),
                ({"what": ["weights", "weights"]}, r"training.what: names something twice"),
            )
        ),
        *(
            (
                {
                    "name": "p",
                    "calibration": {"dataset": "a.txt"},
                    "pruning": {"method": "depth", "speedup": 1.2},
                    **changes,
                },
                rf"pruning.speedup: is measured before there is any data, .* not beside {name}",
            )
            for name, changes in (
                ("weights.rules", {"weights": {"mode": "int4_asym", "rules": [{"match": "a", "mode": "int8_asym"}]}}),
                ("weights.lora_correction", {"weights": {"mode": "int4_asym", "lora_correction": True}}),
                ("weights.mode adaptive_codebook", {"weights": {"mode": "adaptive_codebook"}}),
                ("activations", {"method": "activations", "activations": {"mode": "int8"}}),
            )
        ),
        (
            {**INT4, "training": {"method": "distillation", "dataset": "a.txt", "weight_learning_rate": 0.1}},
            r"training.weight_learning_rate: has no effect with method distillation",
        ),
    ],
)
def test_what_contradicts_a_pruning_is_refused(recipe: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match=message):
        load_recipe(file)


@pytest.mark.parametrize(
    ("model_type", "pruning", "message"),
    [
        ("llama", {"method": "depth", "layers": (4,)}, r"pruning.layers: 4 names no layer: the model has 4"),
        ("llama", {"method": "depth", "num_layers": 4}, r"has 4 decoder layers, and none would be left"),
        ("llama", {"method": "experts", "ratio": 0.5}, r"a model of type llama has no experts"),
        ("qwen3_moe", {"method": "experts", "ratio": 0.9}, r"1 of 8 experts would be left, and the router chooses 2"),
        ("qwen3_moe", {"method": "experts", "ratio": 0.01}, r"0.01 of 8 experts is none"),
        ("llama", {"method": "width", "intermediate_size": 384}, r"384 is not fewer than the model's 384"),
        ("llama", {"method": "width", "num_key_value_heads": 3}, r"num_key_value_heads: 3 is not fewer"),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_the_work(
    model_type: str, pruning: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = build_checkpoint(tmp_path / "model", model_type)
    (tmp_path / "a.txt").write_text("text " * 4000)
    asked = Pruning(**pruning)
    calibration = {"dataset": str(tmp_path / "a.txt")} if asked.uses_data else None
    recipe = Recipe.model_validate({**NONE, "pruning": pruning, "calibration": calibration})
    with pytest.raises(RecipeError, match=message) as caught:
        forecast(resolve(source), recipe)
    assert caught.value.hint
    with pytest.raises(RecipeError, match=message):
        llmcompress.compress(source, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_transformers_refuses_is_refused_with_its_reason() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=256, num_attention_heads=8, num_key_value_heads=4, intermediate_size=64
    )
    with pytest.raises(RecipeError, match=r"configuration of what is left: The hidden size .256. is not a multiple"):
        shrink(config, Pruning(method="width", num_key_value_heads=3))


def test_experts_in_groups_are_refused() -> None:
    config = AutoConfig.for_model("deepseek_v3", n_routed_experts=8, n_group=2)
    with pytest.raises(RecipeError, match="the router chooses experts by groups, which must stay whole"):
        shrink(config, Pruning(method="experts", ratio=0.5))


def test_experts_that_are_no_stack_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.training.pruning import experts

    source = build_checkpoint(tmp_path / "model", "mixtral")
    monkeypatch.setattr(experts, "_mixtures", lambda model, num_experts: iter(()))
    with pytest.raises(ModelError, match="has no layer with 4 experts stacked in one tensor"):
        run(source, windows=np.arange(64)[None], method="experts", ratio=0.25)


def test_sources_that_cannot_be_pruned_are_refused(demo_checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**NONE, "pruning": {"method": "magnitude", "sparsity": 0.5}})
    llmcompress.compress(demo_checkpoint, "none", tmp_path / "ir")
    with pytest.raises(RecipeError, match="an OpenVINO model has no layers in torch that could be taken out"):
        llmcompress.compress(tmp_path / "ir", recipe, tmp_path / "out")
    found = resolve(demo_checkpoint)
    from llmcompress.compression.pruned import require_prunable_source

    quantized = found._replace(config=found.config | {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(RecipeError, match="the weights of this checkpoint are quantized already"):
        require_prunable_source(quantized, recipe)
    remote = found._replace(config=found.config | {"auto_map": {"AutoModel": "a.B"}}, trust_remote_code=True)
    with pytest.raises(RecipeError, match="the model's classes are code of its repository"):
        require_prunable_source(remote, recipe)


def test_a_place_for_the_checkpoint_needs_a_pruning_and_must_be_free(demo_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`save_checkpoint` keeps what a pruning leaves, and recipe int8 has none"):
        llmcompress.compress(demo_checkpoint, "int8", tmp_path / "out", save_checkpoint=tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    recipe = Recipe.model_validate({**NONE, "pruning": {"method": "depth", "layers": [0]}})
    with pytest.raises(LlmcompressError, match="exists"):
        llmcompress.compress(demo_checkpoint, recipe, tmp_path / "out", save_checkpoint=tmp_path / "kept")
    assert not (tmp_path / "out").exists()


def test_the_forecast_knows_what_is_left(demo_checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**INT4, "pruning": {"method": "depth", "layers": [1, 3]}})
    predicted = forecast(resolve(demo_checkpoint), recipe)
    made = llmcompress.compress(demo_checkpoint, recipe, tmp_path / "out")
    assert predicted.num_parameters == made.num_parameters
    size = (tmp_path / "out" / "openvino_model.bin").stat().st_size
    assert predicted.size_bytes == pytest.approx(size, rel=0.01)
    assert any("the pruned checkpoint of" in note for note in predicted.notes)
    by_kl = Recipe.model_validate(
        {**INT4, "pruning": {"method": "depth", "max_kl": 0.1}, "calibration": {"dataset": "a.txt"}}
    )
    by_speed = override_recipe(by_kl, ["pruning.max_kl=null", "pruning.speedup=1.2"])
    for by, name in ((by_kl, "max_kl"), (by_speed, "speedup")):
        notes = forecast(resolve(demo_checkpoint), by).notes
        assert any(f"how many layers pruning.{name} drops is not predicted" in note for note in notes)


# --- what people read


def record(**changes: Any) -> PruningRecord:
    return PruningRecord(method="depth", num_parameters_before=1000, num_parameters=800, **changes)


def test_what_went_is_said_in_a_line() -> None:
    measured = Measured(created="now", duration_s=1.0, peak_rss_bytes=1, stages=())
    by_text = record(layers=(3, 5), kl_divergence=0.11, kl_divergence_healed=0.04)
    assert _pruning_text(by_text, measured) == (
        "depth: decoder layers 3, 5 dropped, 20.0% of the parameters; "
        "KL divergence 0.11 -> 0.04 healed, before compression"
    )
    assert _pruning_text(record(), measured) == "depth: 20.0% of the parameters dropped"
    sparse = record(density=0.5, archive_share=0.8)
    assert _pruning_text(sparse, measured) == (
        "depth: 50% of the decoder layers' weights are zero, 80% of the size in an archive"
    )
    depth = DepthSpeed(device="CPU", token_s=0.01, layer_s=0.001, ratio=1.25)
    assert "20.0% of the parameters, for 1.25 times the decode speed; KL" in _pruning_text(
        by_text, measured.model_copy(update={"depth_speed": depth})
    )
    speed = SparseSpeed(device="CPU", shape=(8, 8), ratio=0.987)
    assert "zero (one layer alone runs 0.99 times as fast here, 80% of the size in an archive)" in _pruning_text(
        sparse, measured.model_copy(update={"sparse_speed": speed})
    )


def test_a_pruned_model_that_a_whole_one_beats_is_named(tmp_path: Path) -> None:
    reference = write_model(tmp_path / "none", size_bytes=4000, recipe="none")
    figures = {"pruned": (2000, 0.1), "whole": (1900, 0.01), "small": (1000, 0.05), "large": (3000, 0.001)}
    for name, (size_bytes, kl_divergence) in figures.items():
        directory = write_model(tmp_path / name, size_bytes=size_bytes)
        if name == "pruned":
            file = directory / "llmcompress.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "pruning": record().model_dump(mode="json")}))
        write_evaluation(directory, 11.0, kl=kl_divergence, reference=reference)
    found = notes(compare([tmp_path / name for name in figures]))
    assert found == (
        "pruned is pruned, and whole, which is not, is no larger and loses less: prefer it where speed is not what was "
        "pruned for.",
    )
    assert notes(compare([tmp_path / "pruned", tmp_path / "large"])) == ()


def test_a_card_tells_what_was_taken_away(demo_checkpoint: Path, calibration_text: Path, tmp_path: Path) -> None:
    calibration = {"dataset": str(calibration_text), "num_samples": 2, "seq_len": 32}
    pruning = {"method": "depth", "max_kl": 0.5}
    recipe = Recipe.model_validate({**NONE, "pruning": pruning, "calibration": calibration})
    report = llmcompress.compress(demo_checkpoint, recipe, tmp_path / "out")
    assert report.pruning is not None
    llmcompress.write_card(tmp_path / "out")
    rows = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert "| `pruning.method` | `depth` |" in rows
    assert "| `pruning.max_kl` | `0.5` |" in rows
    assert f"| `pruning.layers` | `{', '.join(map(str, report.pruning.layers))}` |" in rows
    assert any(row.startswith("| `pruning.kl_divergence` | `0.") for row in rows)
