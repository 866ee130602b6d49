"""The divergence with one model in memory at a time: as both at once give it, to what two bytes hold of a logit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset15 as ops

import llmcompress
from llmcompress import EvalReport, EvalSpec, Gate
from llmcompress.errors import ModelError, ResourceError, WriteError
from llmcompress.evaluation import evaluate as evaluation
from llmcompress.evaluation import graph, in_turn, logits_cache, measurement, scoring
from llmcompress.evaluation.logits_cache import NEAR_NATS, STEP, LogitsCache
from llmcompress.evaluation.statistics import exact_kl
from llmcompress.runner.state import answers
from llmcompress.spec.plan import Evaluation
from llmcompress.system.cache import cache_dir
from llmcompress.system.progress import Progress


@pytest.fixture(scope="module")
def models(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A compressed model, and what it was made from."""
    directory = tmp_path_factory.mktemp("models")
    for recipe in ("int4-sym", "none"):
        llmcompress.compress(demo_checkpoint, recipe, directory / recipe)
    return directory / "int4-sym", directory / "none"


@pytest.fixture
def spec(demo_checkpoint: Path, tmp_path: Path) -> EvalSpec:
    text = tmp_path / "text.txt"
    text.write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    return EvalSpec(dataset=str(text), seq_len=64, chunk=32, num_windows=6, precision="pinned", backend="stateful")


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was compiled, one after the other; with a cache of its own, and two windows in a batch."""
    found: list[str] = []
    add_scores = measurement.add_scores

    def watched(model: Any, kind: Any, **options: Any) -> None:
        found.append(kind)
        add_scores(model, kind, **options)

    monkeypatch.setattr(measurement, "add_scores", watched)
    monkeypatch.setattr(scoring, "MAX_CALL_TOKENS", 2 * 32)
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    return found


def _evaluated(models: tuple[Path, Path], spec: EvalSpec, **options: Any) -> EvalReport:
    return llmcompress.evaluate(models[0], spec, reference=models[1], **options)


def test_one_model_after_the_other_tells_what_both_at_once_do(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str]
) -> None:
    both = _evaluated(models, spec, reference_scores="exact")
    # The last one is asked whether its logits stay finite.
    assert kinds == ["divergence", "logits", "logits"]
    kinds.clear()
    one = _evaluated(models, spec, reference_scores="rounded", gate=Gate(max_kl=1.0))
    # The reference is through with the text before the candidate is compiled.
    assert kinds == ["logits", "divergence", "logits"]
    assert not list((cache_dir() / in_turn.KIND).iterdir())
    assert both.divergence is not None
    assert one.divergence is not None
    assert (both.divergence.logits_error, one.divergence.logits_error) == (0.0, STEP)
    assert both.divergence.kl_divergence.value > 0.001
    assert one.divergence.kl_divergence.value == pytest.approx(both.divergence.kl_divergence.value, rel=2e-3)
    assert one.divergence.kl_divergence.value != both.divergence.kl_divergence.value
    assert one.divergence.top1_agreement == both.divergence.top1_agreement
    assert one.model.perplexity == both.model.perplexity
    assert one.divergence.perplexity_ratio.value == pytest.approx(both.divergence.perplexity_ratio.value, abs=STEP)
    # It is no bound: a gate can be passed by it.
    assert one.divergence.exact
    assert one.gate.passed
    for how in ("exact", "rounded", "cached"):
        asked = Evaluation(**spec.model_dump(), reference_scores=how)  # type: ignore[arg-type]
        assert answers(one, asked) is (how == "rounded")
        assert answers(both, asked) is (how == "exact")


def test_paged_graphs_are_given_the_likeliest_tokens_too(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str]
) -> None:
    """A further input lies in memory that nothing else may take while the call runs."""
    stateful, paged = (
        _evaluated(models, spec.model_copy(update={"backend": each}), reference_scores="cached").divergence
        for each in ("stateful", "paged")
    )
    assert stateful is not None
    assert paged is not None
    assert paged.kl_divergence.value == pytest.approx(stateful.kl_divergence.value, rel=1e-3)


def test_a_killed_evaluation_goes_on_with_what_was_kept(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str]
) -> None:
    def kill(step: Progress) -> None:
        if step.stage == "score the reference" and step.done > step.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _evaluated(models, spec, reference_scores="rounded", progress=kill)
    assert list((cache_dir() / in_turn.KIND).rglob("*.npy"))
    told: list[int] = []

    def note(step: Progress) -> None:
        if step.stage == "score the reference":
            told.append(step.done)

    again = _evaluated(models, spec, reference_scores="rounded", progress=note)
    assert 0 < told[0] < again.text.num_scored_tokens
    assert told[-1] == again.text.num_scored_tokens
    assert again == _evaluated(models, spec, reference_scores="rounded").model_copy(
        update={"measured": again.measured, "scored_tokens_per_s": again.scored_tokens_per_s}
    )


def test_an_evaluation_killed_at_its_end_scores_nothing_again(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "judge", killed)
        with pytest.raises(KeyboardInterrupt):
            _evaluated(models, spec, reference_scores="rounded")
    kinds.clear()
    assert _evaluated(models, spec, reference_scores="rounded").num_windows_resumed == 6
    assert kinds == ["divergence", "logits"]
    assert not list((cache_dir() / in_turn.KIND).iterdir())


def test_what_a_killed_one_kept_goes_with_the_next_by_another_way(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str]
) -> None:
    def kill(step: Progress) -> None:
        if step.stage == "score":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _evaluated(models, spec, reference_scores="rounded", progress=kill)
    assert list((cache_dir() / in_turn.KIND).rglob("*.npy"))
    _evaluated(models, spec, reference_scores="exact")
    assert not list((cache_dir() / in_turn.KIND).iterdir())


def test_logits_that_another_evaluation_removed_are_missed(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str]
) -> None:
    def remove(step: Progress) -> None:
        if step.stage == "score":
            shutil.rmtree(cache_dir() / in_turn.KIND, ignore_errors=True)

    with pytest.raises(WriteError, match="the reference's logits were removed while models were measured against them"):
        _evaluated(models, spec, reference_scores="rounded", progress=remove)
    assert kinds == ["logits", "divergence"]


def test_the_next_candidate_finds_them(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str], tmp_path: Path
) -> None:
    for expected in (["logits", "divergence"], ["divergence"]):
        kinds.clear()
        _evaluated(models, spec, reference_scores="rounded", keep_logits_in=tmp_path / "kept")
        assert kinds == [*expected, "logits"]
    assert not (cache_dir() / in_turn.KIND).exists()


def test_what_is_kept_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 8, 100)).astype(np.float32)
    LogitsCache(tmp_path / "kept", 2 * logits.size, rounded=True).add((0,), 0, logits)
    monkeypatch.setattr(logits_cache, "free_bytes", lambda path: 2 * 2 * logits.size)
    # Half of what is asked for is there, and the other half leaves as much free again.
    assert LogitsCache(tmp_path / "kept", 2 * logits.size, rounded=True).has_room
    assert not LogitsCache(tmp_path / "none", 2 * logits.size, rounded=True).has_room
    assert not LogitsCache(tmp_path / "kept", 4 * logits.size, rounded=True).has_room


def test_a_place_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    kept = LogitsCache(tmp_path / "gone" / "kept", 4)
    assert kept.has_room
    shutil.rmtree(tmp_path / "gone")
    kept.add((0,), 0, np.zeros((1, 1, 4), np.float32))
    assert not kept.has_room
    assert not (tmp_path / "gone").exists()


def test_memory_and_disk_decide(
    models: tuple[Path, Path], spec: EvalSpec, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "available_for", lambda num_bytes: 10**5)
    rounded = _evaluated(models, spec)
    with pytest.raises(ResourceError, match="`noise_floor` and `split_damage` run two models at once: about"):
        _evaluated(models, spec, noise_floor=True)
    monkeypatch.setattr(logits_cache, "_SHARE_OF_DISK", 0.0)
    cached = _evaluated(models, spec)
    found = [each.divergence.reference_scores for each in (rounded, cached) if each.divergence is not None]
    assert found == ["rounded", "cached"]
    with pytest.raises(WriteError, match=r"logits need 0\.0\d+ GB of disk, and as much again left free"):
        _evaluated(models, spec, reference_scores="rounded")
    assert not list(cache_dir().rglob("*.npy"))


@pytest.mark.parametrize("refusal", [OSError(28, "No space left on device"), OSError("640 requested and 0 written")])
def test_a_disk_that_fills_up_ends_it(
    refusal: OSError, models: tuple[Path, Path], spec: EvalSpec, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **options: Any) -> Any:
        raise refusal

    monkeypatch.setattr(logits_cache, "replacing", refuse)
    with pytest.raises(WriteError, match=r"logits need 0\.0\d+ GB of disk: (No space left|640 requested)"):
        _evaluated(models, spec, reference_scores="rounded")
    assert kinds == ["logits"]


@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_rounded_logits_are_as_near_as_they_say(spread: float, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    logits = (spread * random.standard_normal((2, 16, 1000)) - 7).astype(np.float32)
    # The likeliest token twice, one far away, and one that is ruled out.
    logits[0, :, 3] = logits[0, :, 5] = logits[0].max(-1) + 0.25
    logits[0, :, 7], logits[0, :, 8] = -1e6, -np.inf
    kept = LogitsCache(tmp_path / "kept", logits.size, rounded=True)
    kept.add((4, 5), 0, logits)
    (stored,) = kept.get((4, 5), 1) or []
    assert stored.nbytes == 2 * logits.size == kept.num_bytes
    opened = kept.opened(stored).astype(np.float64)
    expected = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    near, far = expected > -NEAR_NATS, expected < -8000
    assert np.abs(opened - expected)[near].max() <= STEP * (1 + 1e-3)
    assert np.abs(opened - expected)[~near & ~far].max(initial=0) <= 0.26
    assert (opened[far] < -8000).all()
    assert np.array_equal(opened.argmax(-1), logits.argmax(-1))
    # Against the KL divergence to a distribution nearby, in f64.
    other = np.maximum(expected, -90) + 0.05 * random.standard_normal(expected.shape)
    exact, rounded = (_kl(each, other) for each in (expected, opened))
    assert (np.abs(rounded - exact) <= STEP * np.sqrt(2 * exact) + STEP**2).all()
    # Uniform errors of no sign: their mean falls with the root of the number of tokens.
    assert abs(rounded.mean() - exact.mean()) <= 3 * STEP * np.sqrt(2 * exact.mean() / (12 * exact.size))


@pytest.mark.parametrize("ruled_out", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_tokens_that_both_models_rule_out_cost_nothing(ruled_out: float, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((1, 8, 50)).astype(np.float32)
    candidate = reference + 0.1 * random.standard_normal(reference.shape).astype(np.float32)
    reference[..., 7:9] = candidate[..., 7:9] = ruled_out
    kept = LogitsCache(tmp_path / "kept", reference.size, rounded=True)
    kept.add((0,), 0, reference)
    (stored,) = kept.get((0,), 1) or []
    expected, found = (_scored(candidate, each) for each in (reference, kept.opened(stored)))
    assert expected.mean() > 0.001
    np.testing.assert_allclose(found, expected, atol=STEP * np.sqrt(2 * expected.max()))


def _scored(candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The KL divergence of each token, as the runtime makes it of a model's logits."""
    given = ops.parameter([-1, -1, candidate.shape[-1]], ov.Type.f32)
    given.output(0).set_names({"given"})
    result = ops.result(ops.negative(given))
    result.output(0).set_names({"logits"})
    model = ov.Model([result], [given])
    graph.add_scores(model, "divergence")
    targets = np.zeros(candidate.shape[:2], np.int64)
    inputs = {
        "given": -candidate,
        graph.REFERENCE_LOGITS: reference,
        graph.TARGETS: targets,
        graph.FIRST: np.array([0]),
    }
    found = ov.compile_model(model, "CPU")(inputs)
    return exact_kl({name: found[name] for name in ("kl", "kl_coarse")})


def _kl(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits - logits.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

    p, q = log_softmax(first), log_softmax(second)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(np.exp(p) > 0, np.exp(p) * (p - q), 0.0).sum(-1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_rounded(value: float, tmp_path: Path) -> None:
    logits = np.zeros((1, 2, 4), np.float32)
    logits[0, 1, 2] = value
    with pytest.raises(ModelError, match="the reference gives NaN or infinite logits, which cannot be rounded"):
        LogitsCache(tmp_path, logits.size, rounded=True).add((0,), 0, logits)
