"""Tuning: what is asked, searched, raced and scored, what is chosen, and what of it a stock model runs with."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_fixture import windows_of
from fake_hub import FakeHub, running, use

import llmcompress
from llmcompress.artifact import manifest_sha256
from llmcompress.benchmarking.timing import Run
from llmcompress.benchmarking.worker import MemoryUse
from llmcompress.errors import ArtifactError, DataError, ModelError, RecipeError, ResourceError, UsageError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import DivergenceRecord, TextRecord
from llmcompress.report.tuning import Trial, TuneReport, TuningVerification
from llmcompress.spec import (
    BenchSpec,
    EvalSpec,
    Gate,
    Runtime,
    RuntimeProfile,
    TuneSpec,
    Workload,
    load_profile,
)
from llmcompress.spec.benchmark import Shape
from llmcompress.spec.tuning import parse_duration_s, parse_workload
from llmcompress.spec.validation import from_options
from llmcompress.system.environment import cpu_name
from llmcompress.tuning import apply_tuning, damage, read_tuning, runtime_profile, write_profile, write_tuning_page
from llmcompress.tuning import trials as trials_module
from llmcompress.tuning.choice import Limits, better, is_undecided, limits, search, with_front
from llmcompress.tuning.page import tuning_page
from llmcompress.tuning.race import SAME, Race, memory_gain, race
from llmcompress.tuning.space import DeviceProperties, Dimension, find_space
from llmcompress.tuning.trials import decide

Artifacts = Callable[[str], Path]
TINY = Workload(name="tiny", prompt_tokens=16, new_tokens=4)


def spec_of(text: Path, **values: Any) -> TuneSpec:
    return TuneSpec(
        **{
            "dataset": str(text),
            "workloads": (TINY,),
            "repetitions": 3,
            "warmup_runs": 0,
            "seq_len": 128,
            "num_windows": 2,
            **values,
        }
    )


def estimate(value: float, reach: float = 0.05) -> Estimate:
    return Estimate(value=value, standard_error=reach / 2, low=value - reach, high=value + reach)


def divergence(kl: float, agreement: float = 0.99) -> DivergenceRecord:
    one = estimate(1.0)
    return DivergenceRecord(
        exact=True, kl_divergence=estimate(kl, 0.0), kl_median=kl, kl_p90=kl, kl_p99=kl, kl_p999=kl, kl_max=kl,
        top1_agreement=estimate(agreement, 0.0), log_perplexity_change=estimate(0.0), perplexity_ratio=one,
        rms_probability_change=0.0,
    )  # fmt: skip


def trial(name: str, gain: Estimate, kl: float = 0.0, status: Any = "measured") -> Trial:
    return Trial(properties={"A": name} if name else {}, status=status, gain=gain, divergence=divergence(kl))


DEFAULT = trial("", SAME, status="default")


# What is asked.


def tune_spec(workloads: Sequence[str] = (), budget: str | None = None, **values: Any) -> TuneSpec:
    read = {"workloads": [parse_workload(text) for text in workloads] or None}
    limit = None if budget is None else parse_duration_s(budget)
    return from_options(TuneSpec, {**read, "budget_s": limit, **values})


def test_workloads_and_budgets_are_read() -> None:
    spec = tune_spec(dataset="wikitext2", workloads=["chat:512/128", "batch:8x256/64"], budget="1h2m3.5s")
    assert spec.workloads == (
        Workload(name="chat", prompt_tokens=512, new_tokens=128),
        Workload(name="batch", prompt_tokens=256, new_tokens=64, batch_size=8),
    )
    assert [str(each) for each in spec.workloads] == ["chat:512/128", "batch:8x256/64"]
    assert spec.workloads[1].shape() == Shape(8, 0, 256, 64)
    assert spec.budget_s == 3723.5
    assert tune_spec(dataset="wikitext2", properties=["A=1,2", "B=x"]).asked_values() == {"A": ("1", "2"), "B": ("x",)}


@pytest.mark.parametrize(
    "text", ["512/128", "chat:512", "chat:512/0", "chat:0x5/5", "Chat:5/5", "chat:5/5 ", "chat:-1/2"]
)
def test_workloads_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NAME:PROMPT/NEW or NAME:BATCHxPROMPT/NEW is accepted") as caught:
        tune_spec(dataset="wikitext2", workloads=[text])
    assert caught.value.where == "`workloads`"


@pytest.mark.parametrize("text", ["", "10", "0m", "m", "10 m", "5m1h", "-5s"])
def test_budgets_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="hours, minutes and seconds are accepted") as caught:
        tune_spec(dataset="wikitext2", budget=text)
    assert caught.value.where == "`budget_s`"


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        ({"workloads": ["a:1/2", "a:3/4"]}, "workloads", "two have one name: a, a"),
        ({"workloads": ["a:8/1"]}, "workloads", "one is not decoded"),
        ({"chunk": 512}, "chunk", "512 feeds whole windows of 512"),
        ({"properties": ["A"]}, "properties", "got 'A'; KEY=VALUE is accepted"),
        ({"repetitions": 2}, "repetitions", "got 2"),
        ({"objective": "size"}, "objective", "accepted: decode, prefill, memory"),
        ({"scope": "cpu"}, "scope", "accepted: all, model"),
        ({"num_windows": 1}, "num_windows", "got 1"),
    ],
)
def test_specs_that_are_refused(values: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        tune_spec(dataset="wikitext2", **values)
    assert caught.value.where == where
    assert message in caught.value.message


# The search and its rule.


def test_a_setting_replaces_the_best_only_beyond_noise() -> None:
    gains = {"a1": estimate(1.04), "a2": estimate(1.3), "b1": estimate(1.34), "b2": estimate(1.2), "b3": estimate(1.5)}
    told = []

    def measure(properties: dict[str, str], best: Trial | None) -> Trial:
        last = list(properties.values())[-1]
        told.append((properties, best.properties if best else None))
        return Trial(properties=properties, status="not permitted" if last == "b3" else "measured", gain=gains[last],
                     divergence=divergence(0))  # fmt: skip

    dimensions = [
        Dimension("A", ({"A": "a1"}, {"A": "a2"})),
        Dimension("B", ({"B": "b1"}, {"B": "b2"}, {"B": "b3"})),
    ]
    best, trials, left = search(dimensions, DEFAULT, measure, lambda: True)
    # 1.34 ± 0.05 is not beyond 1.3, 1.5 is not permitted.
    assert best is not None
    assert best.properties == {"A": "a2"}
    assert told == [
        ({"A": "a1"}, {}),
        ({"A": "a2"}, {}),
        *(({"A": "a2", "B": value}, {"A": "a2"}) for value in ("b1", "b2", "b3")),
    ]
    assert (len(trials), left) == (5, {})


def test_what_the_time_does_not_suffice_for_is_named() -> None:
    answers = iter([True, False, False])
    measured = []

    def measure(properties: dict[str, str], best: Trial | None) -> Trial:
        measured.append(properties)
        return trial(properties["A"], estimate(1.2))

    dimensions = [Dimension("A", ({"A": "1"}, {"A": "2"}, {"A": "3"}))]
    best, _, left = search(dimensions, DEFAULT, measure, lambda: next(answers))
    assert best is not None
    over = "the budget was over"
    assert (best.properties, measured, left) == ({"A": "1"}, [{"A": "1"}], {"A=2": over, "A=3": over})


def test_groups_of_a_cache_that_has_none_are_not_measured() -> None:
    seen = []

    def measure(properties: dict[str, str], best: Trial | None) -> Trial:
        seen.append(properties)
        return Trial(properties=properties, status="measured", gain=estimate(1.5), divergence=divergence(0))

    dimensions = [
        Dimension("KV_CACHE_PRECISION", ({"KV_CACHE_PRECISION": "f16"},)),
        Dimension("KEY_CACHE_GROUP_SIZE", ({"KEY_CACHE_GROUP_SIZE": "32"},)),
    ]
    _, _, left = search(dimensions, DEFAULT, measure, lambda: True)
    assert seen == [{"KV_CACHE_PRECISION": "f16"}]
    assert left == {"KEY_CACHE_GROUP_SIZE=32, KV_CACHE_PRECISION=f16": "a cache that is not quantized has no groups"}


def test_where_the_default_is_not_permitted_any_permitted_setting_is_better() -> None:
    forbidden = DEFAULT.model_copy(update={"status": "not permitted"})
    slower = trial("1", estimate(0.8))
    best, _, _ = search([Dimension("A", ({"A": "1"},))], forbidden, lambda *_: slower, lambda: True)
    assert best == slower
    assert search([], forbidden, lambda *_: slower, lambda: True)[0] is None


def test_memory_without_an_interval_needs_a_step() -> None:
    def known(value: float) -> Trial:
        return trial("1", Estimate(value=value, standard_error=None, low=None, high=None))

    assert not better(known(1.005), DEFAULT)
    assert better(known(1.05), DEFAULT)
    used = [MemoryUse(0, size) for size in (100, 110, 120)]
    found = memory_gain(used, [MemoryUse(0, 2 * each.steady_rss_bytes) for each in used], 0.95)
    assert (found.value, found.low) == (pytest.approx(2), pytest.approx(2))


def test_limits() -> None:
    kept = limits(None, Gate(min_top1_agreement=0.98), divergence(0.002))
    assert kept.max_kl == pytest.approx(0.003)
    assert kept.problem(divergence(0.0029)) == ""
    assert "KL divergence 0.0031, at most 0.003 is permitted" in kept.problem(divergence(0.0031))
    assert "min_top1_agreement of the gate: 0.97, required 0.98" in kept.problem(divergence(0.001, 0.97))
    assert Limits(0.1, Gate()).problem(divergence(math.nan)) != ""
    assert limits(0.5, Gate(), divergence(0.002)).max_kl == 0.5
    assert Limits(0.1, Gate()).gate_record(divergence(0.0)) is None


def test_the_front_is_what_nothing_beats_in_both() -> None:
    generator = np.random.default_rng(0)
    made = [trial(str(n), estimate(g), k) for n, (g, k) in enumerate(generator.uniform(0.5, 1.5, (30, 2)))]
    beaten = Trial(properties={"B": "1"}, status="beaten", gain=estimate(9.0))
    marked = with_front([*made, beaten])
    for each in marked[:-1]:
        assert each.gain is not None
        assert each.divergence is not None
        dominated = any(
            other.gain.value > each.gain.value
            and other.divergence.kl_divergence.value < each.divergence.kl_divergence.value
            for other in made
            if other.gain is not None and other.divergence is not None
        )
        assert each.on_front is not dominated
    assert not marked[-1].on_front


def test_the_choice_falls_back_to_the_defaults() -> None:
    best = trial("1", estimate(1.3))

    def verified(judgement: str, kl: float, permitted: bool = True) -> Any:
        return TuningVerification(
            gain=estimate(1.2), judgement=judgement, speeds=(), text=TEXT, default_divergence=divergence(0.001),
            divergence=divergence(kl), permitted=permitted,
        )  # fmt: skip

    kept = Limits(0.01, Gate())
    chosen, permitted, reason = decide(verified("better", 0.002), best, DEFAULT, kept)
    assert (chosen, permitted) == (best, True)
    assert reason == "better than the default beyond noise, in fresh processes and on held-out text"
    chosen, permitted, reason = decide(verified("inside the noise", 0.002), best, DEFAULT, kept)
    assert (chosen, permitted) == (DEFAULT, True)
    assert reason == "in fresh processes the best was better only inside the noise; the defaults stay"
    assert "worse than the default" in decide(verified("worse", 0.002), best, DEFAULT, kept)[2]
    chosen, permitted, reason = decide(verified("better", 0.02, permitted=False), best, DEFAULT, kept)
    assert (chosen, permitted) == (DEFAULT, True)
    assert reason == "on held-out text: KL divergence 0.02, at most 0.01 is permitted; the defaults stay"
    # The default itself is outside: the permitted one is taken though it gains nothing.
    forbidden = DEFAULT.model_copy(update={"status": "not permitted"})
    chosen, permitted, reason = decide(verified("worse", 0.002), best, forbidden, kept)
    assert (chosen, permitted) == (best, True)
    assert reason.startswith("permitted, as the default is not")


TEXT = TextRecord(dataset="x", num_documents=1, num_windows=1, num_clusters=1, num_scored_tokens=1, token_ids_sha256="")


# The race.


class FakeClient:
    """Runs in a recorded time, and notes whose turn it was."""

    def __init__(self, name: str, decode_s: list[float], order: list[str]) -> None:
        self.name, self.decode_s, self.order = name, iter(decode_s), order

    def run(self, shape: Any, seed: int) -> Run:
        self.order.append(self.name)
        step = next(self.decode_s)
        return Run(0.0, tuple(0.5 + step * n for n in range(shape.new_tokens)))

    def memory(self) -> MemoryUse:
        return MemoryUse(200, 100 if self.name == "candidate" else 150)


def raced(mine: list[float], theirs: list[float], spec: TuneSpec, **options: Any) -> tuple[Race, list[str]]:
    order: list[str] = []
    found = race(FakeClient("candidate", mine, order), FakeClient("default", theirs, order), spec, **options)  # type: ignore[arg-type]
    return found, order


def test_a_race_is_in_turn_and_its_gain_the_geometric_mean_over_workloads() -> None:
    workloads = (TINY, Workload(name="big", prompt_tokens=32, new_tokens=8, batch_size=2))
    spec = TuneSpec(dataset="wikitext2", workloads=workloads, repetitions=3, warmup_runs=1)
    generator = np.random.default_rng(0)
    theirs, mine = (generator.uniform(0.1, 0.2, 8).tolist() for _ in range(2))
    found, order = raced(mine, theirs, spec)
    # Whoever comes first in one repetition comes second in the next.
    assert order == ["default", "candidate"] * 2 + ["candidate", "default"] * 2 + ["default", "candidate"] * 2 + [
        "candidate", "default",
    ] * 2  # fmt: skip
    # The run that warms up is not counted; a rate is a time's inverse, whatever the batch.
    ratios = (np.array(theirs) / np.array(mine)).reshape(4, 2)[1:]
    assert found.gain.value == pytest.approx(float(np.exp(np.log(ratios).mean())))
    assert [speed.decode_ratio.value for speed in found.speeds if speed.decode_ratio] == pytest.approx(
        np.exp(np.log(ratios).mean(axis=0)).tolist()
    )
    assert [speed.workload for speed in found.speeds] == ["tiny:16/4", "big:2x32/8"]
    assert found.default_speeds[0].decode_ratio is None
    assert found.finished


def test_a_race_ends_when_it_is_lost_beyond_noise() -> None:
    spec = TuneSpec(dataset="wikitext2", workloads=(TINY,), repetitions=6, warmup_runs=0)
    found, order = raced([0.2, 0.21, 0.2] + [9.0] * 3, [0.1] * 6, spec, beaten=lambda gain: (gain.high or 9) < 1)
    assert len(order) == 6
    assert not found.finished
    assert found.judgement == "worse"
    whole, order = raced([0.1, 0.3, 0.1, 0.3, 0.1, 0.3], [0.1] * 6, spec, beaten=lambda gain: (gain.high or 9) < 1)
    assert (len(order), whole.finished, whole.judgement) == (12, True, "inside the noise")


def test_a_race_goes_on_while_it_is_undecided() -> None:
    """By as many runs as were asked for, and at most three times as many."""
    spec = TuneSpec(dataset="wikitext2", workloads=(TINY,), repetitions=3, warmup_runs=1)
    asked: list[float] = []

    def undecided(gain: Estimate) -> bool:
        asked.append(gain.value)
        return len(asked) < 2

    mine, theirs = [0.5] + [0.1] * 9, [0.5] + [0.1] * 3 + [0.4] * 6
    found, order = raced(mine, theirs, spec, undecided=undecided)
    assert asked == [pytest.approx(1.0), pytest.approx(2.0)]
    assert (len(order), found.finished) == (2 * (1 + 6), True)
    assert found.gain.value == pytest.approx(2.0)
    assert len(found.speeds[0].prefill_tokens_per_s.values) == 6
    _, order = raced(mine, theirs, spec, undecided=lambda gain: True)
    assert len(order) == 2 * (1 + 9)


def test_what_looks_better_and_may_not_be_is_undecided() -> None:
    best = trial("1", estimate(1.2, 0.1))
    cases = ((1.3, 0.2, True), (1.3, 0.05, False), (1.21, 0.2, False), (1.1, 0.2, False))
    for value, reach, expected in cases:
        assert is_undecided(estimate(value, reach), best) == expected, (value, reach)
    assert not is_undecided(estimate(1.3, 0.2), None)
    assert not is_undecided(Estimate(value=1.3, standard_error=None, low=None, high=None), best)


def test_memory_is_compared_process_by_process() -> None:
    spec = TuneSpec(dataset="wikitext2", workloads=(TINY,), repetitions=3, warmup_runs=0, objective="memory")
    found, _ = raced([0.1] * 3, [0.1] * 3, spec, beaten=lambda gain: True, undecided=lambda gain: True)
    assert (found.gain.value, found.gain.low, found.finished) == (pytest.approx(1.5), None, True)


# The space.


class FakeDevice(DeviceProperties):
    def __init__(self, **answers: Any) -> None:
        self.name, self.full_name, self.writable = "GPU", "Some GPU", set(answers)
        self.answers = answers

    def effective(self, properties: Any, options: Any = None) -> dict[str, str]:
        found = {name: values[0] for name, values in self.answers.items()}
        for name, value in {**(options or {}), **properties}.items():
            if value not in self.answers[name]:
                raise ValueError(f"no {value}")
            found[name] = value
        return found


def manifest_of(directory: Path) -> CompressionReport:
    return CompressionReport.model_validate_json((directory / "llmcompress.json").read_text())


def test_only_what_the_device_lists_is_tried(artifact: Artifacts) -> None:
    device = FakeDevice(
        KV_CACHE_PRECISION=("u8", "f16"),
        DYNAMIC_QUANTIZATION_GROUP_SIZE=("0", "32", "64", "18446744073709551615"),
        INFERENCE_PRECISION_HINT=("f16", "f32"),
    )
    config = json.loads((artifact("int4") / "config.json").read_text())
    space = find_space(device, {}, manifest_of(artifact("int4")), config, {})
    assert {each.name: [value[each.name] for value in each.values] for each in space.dimensions} == {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": ["64", "32"],
        "KV_CACHE_PRECISION": ["f16"],
        "INFERENCE_PRECISION_HINT": ["f32"],
    }
    assert space.skipped["INFERENCE_NUM_THREADS"] == "GPU does not list it"
    assert space.skipped["KV_CACHE_PRECISION=u4"] == "refused: no u4"
    assert space.skipped["DYNAMIC_QUANTIZATION_GROUP_SIZE=0"] == "is what the model runs with by default"
    assert not space.given
    uncompressed = find_space(device, {}, manifest_of(artifact("none")), config, {})
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in [each.name for each in uncompressed.dimensions]
    assert uncompressed.skipped["DYNAMIC_QUANTIZATION_GROUP_SIZE"].startswith("the model has no integer weights")


def test_the_cpu_lists_what_is_searched(artifact: Artifacts) -> None:
    device = DeviceProperties("CPU")
    config = json.loads((artifact("int4") / "config.json").read_text())
    space = find_space(device, {}, manifest_of(artifact("int4")), config, {})
    names = {each.name for each in space.dimensions}
    assert {"DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION", "VALUE_CACHE_PRECISION"} <= names
    sizes = next(each for each in space.dimensions if each.name == "DYNAMIC_QUANTIZATION_GROUP_SIZE").values
    # The weights' own, one scale for a whole token, and none; 32 is the default.
    assert [value["DYNAMIC_QUANTIZATION_GROUP_SIZE"] for value in sizes] == ["64", str(config["hidden_size"]), "0"]
    # A model that holds a hint already: then the plugin's own default is the other one.
    in_f16 = dict.fromkeys(("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"), "f16")
    hinted = find_space(device, in_f16, manifest_of(artifact("int4")), config, {})
    caches = next(each for each in hinted.dimensions if each.name == "KV_CACHE_PRECISION").values
    assert {"KV_CACHE_PRECISION": "u8"} in caches
    assert {"KV_CACHE_PRECISION": "f16"} not in caches
    for name in ("KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"):
        assert device.reads_from_model(name, "u4")
    for name in ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "KEY_CACHE_GROUP_SIZE", "VALUE_CACHE_GROUP_SIZE"):
        assert device.reads_from_model(name, "16")
    assert not device.reads_from_model("INFERENCE_NUM_THREADS", "1")
    assert not device.reads_from_model("INFERENCE_PRECISION_HINT", "f32")


def test_only_what_a_model_can_hold(artifact: Artifacts, wikitext: Path) -> None:
    device = DeviceProperties("CPU")
    config = json.loads((artifact("int4") / "config.json").read_text())
    space = find_space(device, {}, manifest_of(artifact("int4")), config, {}, "model")
    tried = {name for each in space.dimensions for value in each.values for name in value}
    assert tried == {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION",
        "KEY_CACHE_GROUP_SIZE", "VALUE_CACHE_GROUP_SIZE",
    }  # fmt: skip
    for name in ("INFERENCE_NUM_THREADS", "INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "ENABLE_CPU_PINNING"):
        assert space.skipped[name] == "a model cannot hold it"
    deaf = FakeDevice(KV_CACHE_PRECISION=("u8", "f16"))
    deaf.reads_from_model = lambda name, value: False  # type: ignore[method-assign]
    skipped = find_space(deaf, {}, manifest_of(artifact("int4")), config, {}, "model").skipped
    assert skipped["KV_CACHE_PRECISION=f16"] == "GPU does not read it from a model"
    spec = spec_of(wikitext, properties=("INFERENCE_NUM_THREADS=1",), scope="model")
    with pytest.raises(UsageError, match="CPU does not read INFERENCE_NUM_THREADS=1 from a model, and the scope is"):
        llmcompress.tune(artifact("int4"), spec)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (
            "KV_CACHE_PRECISON=u4",
            r"CPU has no property KV_CACHE_PRECISON that could be set\nhint: did you mean KV_CACHE_",
        ),
        ("FULL_DEVICE_NAME=x", "CPU has no property FULL_DEVICE_NAME that could be set"),
        ("KV_CACHE_PRECISION=u8,i3", "the device refuses KV_CACHE_PRECISION=i3: .*Supported values: u8"),
    ],
)
def test_named_properties_that_are_refused(properties: str, message: str, artifact: Artifacts, wikitext: Path) -> None:
    with pytest.raises(UsageError, match=message):
        llmcompress.tune(artifact("int4"), spec_of(wikitext, properties=(properties,)))


def test_a_value_that_only_the_model_refuses(artifact: Artifacts, wikitext: Path, tmp_path: Path) -> None:
    output = shutil.copytree(artifact("int4"), tmp_path / "int4")
    with pytest.raises(UsageError, match=r"CPU refuses it: .*cannot be divided by group size 24"):
        llmcompress.tune(output, spec_of(wikitext, properties=("KEY_CACHE_GROUP_SIZE=24",)))
    assert not (output / "tune.json").exists()


# What a setting costs.


def test_the_divergence_is_measured_under_that_very_setting(artifact: Artifacts, wikitext: Path) -> None:
    import openvino as ov

    from llmcompress.graph.device import PINNED, decoder_inputs, input_names

    spec = spec_of(wikitext, chunk=16)
    models = damage.open_models(damage.TuneRequest(artifact("int4"), spec), lambda progress: None)
    assert [len(text.windows.windows) for text in (models.search, models.held_out)] == [2, 2]
    u4, _ = damage.divergence_under(models, {"KV_CACHE_PRECISION": "u4"}, models.search, 0.95, lambda progress: None)

    def logits(properties: dict[str, str], ids: np.ndarray, chunk: int) -> np.ndarray:
        compiled = ov.Core().compile_model(artifact("int4") / "openvino_model.xml", "CPU", properties)
        request, names, found = compiled.create_infer_request(), input_names(compiled), []
        for start in range(0, len(ids), chunk):
            part = ids[None, start : start + chunk]
            found.append(request.infer(decoder_inputs(part, start, names))["logits"][0].astype(np.float64))
        return np.concatenate(found)

    expected = []
    windows = windows_of(artifact("int4"), wikitext, seq_len=128, num_windows=4, precision="as_used").windows
    for mine, theirs in zip((*models.search.windows.windows, *models.held_out.windows.windows), windows, strict=True):
        assert mine.token_ids.tolist() == theirs.token_ids.tolist()
    for window in windows[:2]:
        ids = window.token_ids[:-1]
        log_p, log_q = (
            each - np.log(np.exp(each).sum(axis=1, keepdims=True))
            for each in (logits(PINNED, ids, len(ids)), logits({"KV_CACHE_PRECISION": "u4"}, ids, 16))
        )
        expected.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1)[window.first_scored - 1 :])
    assert u4.kl_divergence.value == pytest.approx(float(np.concatenate(expected).mean()), rel=0.02)
    by_default, _ = damage.divergence_under(models, {}, models.search, 0.95, lambda progress: None)
    assert u4.kl_divergence.value > 3 * by_default.kl_divergence.value


def test_text_and_memory_that_do_not_suffice(
    artifact: Artifacts, tmp_path: Path, wikitext: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(wikitext.read_text()[:900])
    with pytest.raises(DataError, match="the search and the verification need 2 each"):
        llmcompress.tune(artifact("int4"), spec_of(short))
    monkeypatch.setattr(damage, "ROOM", 1e6)
    with pytest.raises(ResourceError, match="GB of memory are needed"):
        llmcompress.tune(artifact("int4"), spec_of(wikitext))


def test_a_reference_of_other_tokens_is_refused(artifact: Artifacts, wikitext: Path, demo_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="its tokenizer reads the text otherwise"):
        llmcompress.tune(artifact("int4"), spec_of(wikitext), reference=demo_checkpoint)


def test_a_reference_on_the_hub_is_fetched_before_its_tokenizer_is_read(
    artifact: Artifacts, wikitext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in artifact("none").iterdir() if path.name != "eval.json"}
    with running(FakeHub(files={**files, "README.md": b"# card", ".gitattributes": b""})) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        request = damage.TuneRequest(artifact("int4"), spec_of(wikitext), "acme/tiny")
        models = damage.open_models(request, lambda progress: None)
    assert models.reference.loaded.provenance.id == "acme/tiny"


# All of it.


@pytest.fixture(scope="module")
def tuned(artifact: Artifacts, wikitext: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with its tune.json: real models, real divergences, races whose outcome is told."""
    output = shutil.copytree(
        artifact("int4"), tmp_path_factory.mktemp("tuned") / "int4",
        ignore=shutil.ignore_patterns("eval.json", "bench.json"),
    )  # fmt: skip
    patch = pytest.MonkeyPatch()

    def told(candidate: Any, default: Any, spec: TuneSpec, **options: Any) -> Race:
        # The search's are undecided to the end.
        found = race(candidate, default, spec, undecided=lambda gain: bool(options))
        return found._replace(gain=next(gains), judgement="better")

    # Each is beyond the one before, the last is the verification's.
    gains = iter([estimate(1.2), estimate(1.4), estimate(1.6), estimate(1.8), estimate(1.9)])
    patch.setattr(trials_module, "race", told)
    properties = ("DYNAMIC_QUANTIZATION_GROUP_SIZE=128", "KV_CACHE_PRECISION=u8", "KEY_CACHE_PRECISION=f16",
                  "VALUE_CACHE_GROUP_SIZE=16", "INFERENCE_NUM_THREADS=1")  # fmt: skip
    llmcompress.tune(output, spec_of(wikitext, properties=properties, max_kl=0.1))
    patch.undo()
    return output


CHOSEN_IN_MODEL = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
    "KEY_CACHE_PRECISION": "f16",
    "VALUE_CACHE_GROUP_SIZE": "16",
}


def test_a_report_of_the_whole_search(tuned: Path, wikitext: Path) -> None:
    report = read_tuning(tuned)
    assert llmcompress.verify(tuned).ok
    assert report.manifest_sha256 == manifest_sha256(tuned)
    assert report.chosen == {**CHOSEN_IN_MODEL, "INFERENCE_NUM_THREADS": "1"}
    assert report.in_model == CHOSEN_IN_MODEL
    assert report.in_profile == {"INFERENCE_NUM_THREADS": "1"}
    assert report.skipped == {"KV_CACHE_PRECISION=u8": "is what the model runs with by default"}
    assert [each.status for each in report.trials] == ["default"] + ["measured"] * 4
    assert report.trials[-1].effective["KEY_CACHE_PRECISION"] == "f16"
    assert report.trials[0].speeds
    assert report.trials[0].steady_rss_bytes
    assert report.reference.itself
    assert report.reference.properties["INFERENCE_PRECISION_HINT"] == "f32"
    assert report.verification is not None
    assert report.verification.gain == estimate(1.9)
    num_runs = [len(each.speeds[0].decode_tokens_per_s.values) for each in (report.trials[-1], report.verification)]
    assert num_runs == [3 * report.spec.repetitions] * 2
    assert report.verification.text.token_ids_sha256 != report.text.token_ids_sha256
    assert report.reason == "better than the default beyond noise, in fresh processes and on held-out text"
    assert str(wikitext.parent) not in (tuned / "tune.json").read_text()


@pytest.mark.slow
def test_the_new_artifact_is_run_so_by_stock_libraries(tuned: Path, ref_model: Path, tmp_path: Path) -> None:
    from optimum.intel import OVModelForCausalLM

    before = {path.name: path.read_bytes() for path in tuned.iterdir()}
    manifest = apply_tuning(tuned, tmp_path / "new")
    assert {path.name: path.read_bytes() for path in tuned.iterdir()} == before
    new = tmp_path / "new"
    assert llmcompress.verify(new).ok
    assert not (new / "tune.json").exists()
    assert (new / "openvino_model.bin").read_bytes() == (tuned / "openvino_model.bin").read_bytes()
    assert manifest.tuning is not None
    assert manifest == CompressionReport.model_validate_json((new / "llmcompress.json").read_text())
    assert (manifest.tuning.cpu, manifest.tuning.device_name) == (cpu_name(), DeviceProperties("CPU").full_name)
    assert manifest.tuning.workloads == ("tiny:16/4",)
    assert manifest.tuning.tuned_manifest_sha256 == manifest_sha256(tuned)
    assert manifest.tuning.profile == {"INFERENCE_NUM_THREADS": "1"}
    # Of manifests of earlier versions.
    assert CompressionReport.model_validate_json(before["llmcompress.json"]).tuning is None
    model = OVModelForCausalLM.from_pretrained(new, device="CPU")
    model.compile()
    compiled = model.request.get_compiled_model()
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 128
    assert compiled.get_property("KEY_CACHE_PRECISION").get_type_name() == "f16"
    assert compiled.get_property("VALUE_CACHE_PRECISION").get_type_name() == "u8"
    assert compiled.get_property("VALUE_CACHE_GROUP_SIZE") == 16
    # The recipe that it now carries makes the same model at once.
    llmcompress.compress(ref_model, new / "recipe.yaml", tmp_path / "again")
    for name in ("openvino_model.xml", "openvino_model.bin", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (new / name).read_bytes()
    card = llmcompress.render_card(new)
    assert f"found on `{cpu_name()}` (`CPU`" in card
    assert "`KEY_CACHE_PRECISION` `f16`" in card
    assert "at 1.9 [1.85, 1.95] times that without them" in card
    assert 'properties = {"INFERENCE_NUM_THREADS": "1"}' in card
    assert "which no model can hold: `INFERENCE_NUM_THREADS` `1`." in card
    untuned = llmcompress.render_card(tuned)
    assert "runtime options that were found on" not in untuned
    assert "properties" not in untuned.partition("## Devices")[0].partition("## How to run it")[2]


@pytest.mark.slow
def test_the_cards_examples_run_with_what_a_model_cannot_hold(tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="needs the extra genai")
    apply_tuning(tuned, tmp_path / "new")
    examples = re.findall(r"```python\n(.*?)```", llmcompress.render_card(tmp_path / "new"), flags=re.DOTALL)
    assert len(examples) == 2
    read_back = "print('threads', model.request.get_compiled_model().get_property('INFERENCE_NUM_THREADS'))"
    log = []
    for example in (f"{examples[0]}\n{read_back}", examples[1]):
        done = subprocess.run(
            [sys.executable, "-c", example], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "OPENVINO_LOG_LEVEL": "5"},
        )  # fmt: skip
        log.append((done.stdout + done.stderr).splitlines())
    assert "threads 1" in log[0]
    assert "INFERENCE_NUM_THREADS: 1" in [line.strip() for line in log[1]]


def test_genai_finds_the_options_in_the_model(tuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="needs the extra genai")
    apply_tuning(tuned, tmp_path / "new")
    program = (
        "import sys, openvino_genai\nopenvino_genai.LLMPipeline(sys.argv[1], 'CPU').generate('a', max_new_tokens=2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "new")], capture_output=True, text=True, check=True,
        env={**os.environ, "OPENVINO_LOG_LEVEL": "5"},
    )  # fmt: skip
    log = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    for name, value in CHOSEN_IN_MODEL.items():
        assert f"{name}: {value}" in log
    assert "VALUE_CACHE_PRECISION: u8" in log


def test_what_cannot_be_applied(tuned: Path, artifact: Artifacts, tmp_path: Path) -> None:
    copy = shutil.copytree(tuned, tmp_path / "copy")
    report = json.loads((copy / "tune.json").read_text())
    with pytest.raises(UsageError, match="exists already"):
        apply_tuning(copy, artifact("none"))
    with pytest.raises(UsageError, match="is the input itself"):
        apply_tuning(copy, copy, overwrite=True)
    (copy / "tune.json").write_text(json.dumps({**report, "in_model": {}}))
    with pytest.raises(UsageError, match=r"what was chosen cannot be held by a model\nhint: `profile_output`"):
        apply_tuning(copy, tmp_path / "new")
    (copy / "tune.json").write_text(json.dumps({**report, "in_model": {}, "chosen": {}, "reason": "all noise"}))
    with pytest.raises(UsageError, match="nothing to put into the model: all noise"):
        apply_tuning(copy, tmp_path / "new")
    trials = [{**each, "effective": {**each["effective"], "KEY_CACHE_PRECISION": "f32"}} for each in report["trials"]]
    (copy / "tune.json").write_text(json.dumps({**report, "trials": trials}))
    with pytest.raises(
        UsageError, match="does not find in the model what was measured: KEY_CACHE_PRECISION is f16, f32"
    ):
        apply_tuning(copy, tmp_path / "new")
    (copy / "tune.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        apply_tuning(copy, tmp_path / "new")
    (copy / "tune.json").unlink()
    with pytest.raises(ArtifactError, match="there is none: nothing was tuned yet"):
        apply_tuning(copy, tmp_path / "new")
    # Other weights under the same name, with the report of the first.
    other = shutil.copytree(artifact("none"), tmp_path / "other")
    (other / "tune.json").write_text(json.dumps(report))
    with pytest.raises(
        ArtifactError, match=r"the artifact was modified since it was measured: tune.json is of manifest"
    ):
        apply_tuning(other, tmp_path / "new")
    (copy / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"is not what its manifest says: config.json"):
        apply_tuning(copy, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("held", "chosen", "expected"),
    [
        ({}, {"KV_CACHE_PRECISION": "u4"}, {"kv_cache_precision": "u4"}),
        ({"value_cache_precision": "u4"}, {"KV_CACHE_PRECISION": "u8"},
         {"kv_cache_precision": "u8", "value_cache_precision": "u8"}),
        ({"key_cache_precision": "f16", "value_cache_precision": "u4"}, {"KV_CACHE_PRECISION": "u8"},
         {"key_cache_precision": "u8", "value_cache_precision": "u8"}),
        ({"key_cache_group_size": 32}, {"KV_CACHE_PRECISION": "f16"}, {"kv_cache_precision": "f16"}),
        ({"dynamic_quantization_group_size": 32}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"},
         {"dynamic_quantization_group_size": 64}),
    ],
)  # fmt: skip
def test_options_go_on_top_of_the_recipes_own(
    held: dict[str, Any], chosen: dict[str, str], expected: dict[str, Any]
) -> None:
    from llmcompress.tuning.application import _with_options

    recipe = llmcompress.Recipe(name="none", method="none", runtime=Runtime(**held))
    assert _with_options(recipe, chosen).runtime == Runtime(**expected)


def test_a_cache_precision_that_has_no_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="has no effect beside key_cache_precision and value_cache_precision"):
        Runtime(kv_cache_precision="u8", key_cache_precision="u8", value_cache_precision="u4")
    with pytest.raises(ValueError, match="key_cache_group_size: has no effect on a cache in f16"):
        Runtime(key_cache_precision="f16", key_cache_group_size=32)


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ({"device": "NPU9"}, {}, UsageError, "there is no device NPU9"),
        ({"workloads": (Workload(name="long", prompt_tokens=500, new_tokens=100),)}, {}, UsageError,
         "long:500/100 needs 600 tokens, the model's context is 512"),
        ({"seq_len": 1024}, {}, UsageError, "`seq_len` needs 1024 tokens, the model's context is 512"),
        ({}, {"reference_revision": "main"}, UsageError, "`reference_revision` has no effect without `reference`"),
    ],
)  # fmt: skip
def test_bad_input(
    values: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str, artifact: Artifacts,
    wikitext: Path,
) -> None:  # fmt: skip
    with pytest.raises(error, match=message):
        llmcompress.tune(artifact("int4"), spec_of(wikitext, **values), **options)


def test_artifacts_that_are_refused(artifact: Artifacts, ref_model: Path, wikitext: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no llmcompress artifact"):
        llmcompress.tune(ref_model, spec_of(wikitext))
    copy = shutil.copytree(artifact("int4"), tmp_path / "copy")
    with (copy / "openvino_model.bin").open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"openvino_model.bin: has other content than the manifest says"):
        llmcompress.tune(copy, spec_of(wikitext))
    gated = shutil.copytree(artifact("int4"), tmp_path / "gated")
    manifest = json.loads((gated / "llmcompress.json").read_text())
    manifest["recipe"]["gate"]["max_kl"] = 0.01
    (gated / "llmcompress.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"the gate \(max_kl\) compares with the original, and none was given"):
        llmcompress.tune(tmp_path / "gated", spec_of(wikitext))


# The machine's profile.

PROFILE = RuntimeProfile(
    name="mine", device="CPU", cpu="Some CPU", platform="linux", properties=("INFERENCE_NUM_THREADS=1",)
)


def test_the_profile_holds_what_a_model_cannot(tuned: Path, tmp_path: Path) -> None:
    profile = runtime_profile(read_tuning(tuned))
    assert profile is not None
    assert profile.properties == ("INFERENCE_NUM_THREADS=1",)
    assert (profile.device, profile.cpu) == ("CPU", cpu_name())
    write_profile(profile, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile
    with pytest.raises(UsageError, match="exists already"):
        write_profile(profile, tmp_path / "profile.json")
    write_profile(PROFILE, tmp_path / "profile.json", overwrite=True)
    assert load_profile(tmp_path / "profile.json") == PROFILE
    report = read_tuning(tuned)
    assert runtime_profile(report.model_copy(update={"in_profile": {}})) is None


def test_the_benchmark_runs_with_a_profile(
    artifact: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from llmcompress.summary.commands import commands

    output = shutil.copytree(artifact("int4"), tmp_path / "int4")
    (bench,) = llmcompress.benchmark(
        [output], BenchSpec(repetitions=1, warmup_runs=0, prompt_tokens=(8,), new_tokens=(2,), profile=PROFILE)
    )
    assert bench.settings[0].properties["INFERENCE_NUM_THREADS"] == "1"
    assert bench.spec.profile == PROFILE
    assert "runtime profile mine was found on Some CPU, this is " in caplog.text
    # It can be called again: by the card and by the page.
    assert "--profile mine.json" in llmcompress.render_card(output)
    assert "--profile mine.json" in commands(llmcompress.compare([output]))[-1]


@pytest.mark.slow
def test_the_evaluation_runs_with_a_profile(artifact: Artifacts, wikitext: Path, tmp_path: Path) -> None:
    output = shutil.copytree(artifact("int8"), tmp_path / "int8")
    lost = llmcompress.evaluate(output, EvalSpec(dataset=str(wikitext), seq_len=64, num_windows=2, profile=PROFILE))
    assert lost.model.properties["INFERENCE_NUM_THREADS"] == "1"
    assert lost.spec.profile == PROFILE
    assert "--profile mine.json" in llmcompress.render_card(output)


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (BenchSpec, {"devices": ["GPU"]}, "mine is for CPU, not for GPU"),
        (BenchSpec, {"precision": "pinned"}, "precision pinned sets the execution itself"),
        (BenchSpec, {"threads": [2]}, "sets INFERENCE_NUM_THREADS, which is given beside it"),
        (
            BenchSpec,
            {"properties": ["INFERENCE_NUM_THREADS=2"]},
            "sets INFERENCE_NUM_THREADS, which is given beside it",
        ),
        (EvalSpec, {"dataset": "wikitext2", "device": "GPU"}, "mine is for CPU, not for GPU"),
        (EvalSpec, {"dataset": "wikitext2", "precision": "pinned"}, "precision pinned sets the execution itself"),
    ],
)
def test_profiles_that_do_not_fit(make: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_options(make, {**values, "profile": PROFILE})
    assert (caught.value.where, caught.value.message) == ("profile", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("x", "is no runtime profile: Expecting value"),
        ("[" * 200_000, "is no runtime profile: it has more than"),
        ("{}", "name: "),
        (json.dumps({**PROFILE.model_dump(), "properties": ["A"]}), "got 'A'; KEY=VALUE is accepted"),
        (json.dumps({**PROFILE.model_dump(), "threads": 3}), "unknown key 'threads'"),
    ],
)
def test_profiles_that_cannot_be_read(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError) as caught:
        load_profile(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


# The command.


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from llmcompress.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_measures_and_prints(artifact: Artifacts, wikitext: Path, tmp_path: Path) -> None:
    output = shutil.copytree(artifact("int4"), tmp_path / "int4")
    done = cli("tune", output, "--workload", "tiny:16/4", "-r", 3, "--dataset", wikitext, "--seq-len", 128,
               "--num-windows", 2, "--property", "KV_CACHE_PRECISION=u4,u8", "--max-kl", 0.000001)  # fmt: skip
    # Neither the default nor any cache is that exact.
    assert done.returncode == 7
    assert "nothing that was measured is permitted; the default: KL divergence" in done.stderr
    for words in ("from this very model in exact execution", "cache u4", "KV_CACHE_PRECISION=u8: is what the model",
                  "Choice: the defaults"):  # fmt: skip
        assert words in done.stdout
    report = TuneReport.model_validate_json((output / "tune.json").read_text())
    assert not report.permitted
    assert [each.status for each in report.trials] == ["not permitted"] * 2
    assert report.max_kl == 0.000001


@pytest.mark.slow
def test_the_gate_is_kept_against_the_original(
    artifact: Artifacts, ref_model: Path, wikitext: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(artifact("int4"), tmp_path / "int4")
    manifest = json.loads((output / "llmcompress.json").read_text())
    manifest["recipe"]["gate"]["max_kl"] = 0.0065
    (output / "llmcompress.json").write_text(json.dumps(manifest))
    spec = spec_of(wikitext, properties=("KV_CACHE_PRECISION=u4",), objective="memory", max_kl=1.0, num_windows=4)
    report = llmcompress.tune(output, spec, reference=ref_model)
    assert not report.reference.itself
    default, u4 = report.trials
    assert default.divergence is not None
    assert u4.divergence is not None
    assert u4.divergence.kl_divergence.value > 0.0065
    assert u4.status == "not permitted"
    assert "max_kl of the gate" in u4.reason
    assert report.gate is not None
    assert report.gate.passed is (default.divergence.kl_divergence.value <= 0.0065)
    assert report.chosen == {}


def test_the_command_takes_what_was_measured(tuned: Path, tmp_path: Path) -> None:
    done = cli("tune", tuned, "--measured", "--apply", "-o", tmp_path / "new", "--profile-output", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert llmcompress.verify(tmp_path / "new").ok
    assert load_profile(tmp_path / "p.json").properties == ("INFERENCE_NUM_THREADS=1",)
    assert "for a runtime profile: INFERENCE_NUM_THREADS=1" in done.stdout
    assert "keys f16" in done.stdout
    assert json.loads(cli("tune", tuned, "--measured", "--json").stdout)["chosen"]["KEY_CACHE_PRECISION"] == "f16"


def test_applying_no_gain_writes_nothing_says_so_and_is_no_failure(tuned: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tuned, tmp_path / "copy")
    same = read_tuning(copy).model_copy(update={"chosen": {}, "in_model": {}, "in_profile": {}, "reason": "all noise"})
    (copy / "tune.json").write_text(same.model_dump_json())
    new, profile = tmp_path / "new", tmp_path / "p.json"
    done = cli("tune", copy, "--measured", "--apply", "-o", new, "--profile-output", profile)
    assert done.returncode == 0, done.stderr
    assert "Choice: the defaults: all noise" in done.stdout
    assert done.stderr == (
        f"nothing to apply: all noise; {new} was not written\n"
        f"no profile to write: all noise; {profile} was not written\n"
    )
    assert not new.exists()
    assert not profile.exists()


def test_a_choice_that_a_model_holds_needs_no_profile(tuned: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tuned, tmp_path / "copy")
    report = read_tuning(copy)
    (copy / "tune.json").write_text(report.model_copy(update={"in_profile": {}}).model_dump_json())
    done = cli("tune", copy, "--measured", "--profile-output", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    reason = "what was chosen needs no runtime profile"
    assert done.stderr == f"no profile to write: {reason}; {tmp_path / 'p.json'} was not written\n"
    assert not (tmp_path / "p.json").exists()


def test_the_page_shows_every_setting(tuned: Path, tmp_path: Path) -> None:
    report = read_tuning(tuned)
    beaten = Trial(properties={"A": "<b>"}, status="beaten", reason="slower", gain=estimate(0.5))
    text = tuning_page(report.model_copy(update={"trials": (*report.trials, beaten)}))
    chart = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    # Those that were scored have a point with a tip, whose number is the table's.
    tips = [element.text or "" for element in chart.iter("title")]
    assert [tip.split()[0] for tip in sorted(tips)] == ["1", "2", "3", "4", "5"]
    assert any(tip.startswith("1 default: gain over the default 1, KL divergence, nats per token ") for tip in tips)
    assert text.count('<th scope="row">') == 6
    assert "6 A &lt;b&gt;" in text
    assert "beaten: slower" in text
    assert "http" not in text.replace("http-equiv", "")
    write_tuning_page(report, tmp_path / "page.html")
    # One of ours is replaced, anything else is not.
    write_tuning_page(report, tmp_path / "page.html")
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(UsageError, match="exists and is no page of llmcompress"):
        write_tuning_page(report, tmp_path / "notes.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overwrite"], "--overwrite has no effect without --apply or --profile-output"),
        (["--trust-remote-code"], "--trust-remote-code has no effect without --reference"),
        (["--html", "/nowhere/x.html"], "/nowhere/x.html: its directory does not exist"),
        (["--profile-output", "/nowhere/x.json"], "/nowhere/x.json: its directory does not exist"),
        (["--apply"], "--apply and --output go together"),
        (["--workload", "x"], "--workload: got 'x'"),
        (["--budget", "x"], "--budget: got 'x'"),
        (["--measured", "--budget", "5m"], "--budget would have no effect on --measured"),
        (["--scope", "cpu"], "scope: got 'cpu'; accepted: all, model"),
        (["-d", "NPU9"], "there is no device NPU9"),
        (["--apply", "-o", "SELF"], "is the input itself"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], message: str, tuned: Path) -> None:
    done = cli("tune", tuned, *(str(tuned) if each == "SELF" else each for each in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
