"""A search: what it predicts against what is measured, its plans against all plans, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub import FakeHub, running, use

import llmcompress
from llmcompress import EvalSpec, SearchReport, SearchSpec
from llmcompress.artifact import read_measurements
from llmcompress.cli import run
from llmcompress.cli.search import print_search
from llmcompress.errors import DataError, ModelError, ResourceError, UsageError
from llmcompress.evaluation import measurement
from llmcompress.evaluation.graph import add_scores
from llmcompress.evaluation.statistics import TokenScores
from llmcompress.loaders.resolving import resolve
from llmcompress.searching.candidates import Candidate
from llmcompress.searching.contest import Entrant, decide
from llmcompress.searching.sensitivity import sensitivity
from llmcompress.searching.solver import front, kl_per_further_byte, least_bytes, least_damage, total_bytes, total_kl
from llmcompress.searching.windows import search_windows, stacked
from llmcompress.spec.search import CANDIDATES, Format, parse_size
from llmcompress.spec.validation import from_options
from llmcompress.system.progress import silent

FEW = ("int2_sym:64", "int4_sym:128", "int4_asym:32", "int8_asym")


@pytest.fixture(scope="module")
def text(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    return path


def _spec(text: Path, **given: Any) -> SearchSpec:
    options = {
        "dataset": str(text),
        "seq_len": 64,
        "num_samples": 12,
        "num_windows": 16,
        "candidates": FEW,
        "num_probes": 0,
        **given,
    }
    return SearchSpec.model_validate(options)


@pytest.fixture(scope="module")
def found(demo_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchReport]:
    directory = tmp_path_factory.mktemp("search") / "out"
    return directory, llmcompress.search(demo_checkpoint, _spec(text, bits_per_weight=5.3, num_probes=4), directory)


def test_a_model_of_the_hub_is_read_as_a_directory_is(
    demo_checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(text, bits_per_weight=5)
    files = {path.name: path.read_bytes() for path in demo_checkpoint.iterdir() if path.is_file()}
    with running(FakeHub(files=files)) as hub:
        use(hub.url, tmp_path, monkeypatch)
        fetched = search_windows(resolve(hub.repo_id), spec, offline=False)
    here = search_windows(resolve(demo_checkpoint), spec, offline=False)
    assert np.array_equal(stacked(fetched.looked_at), stacked(here.looked_at))
    assert np.array_equal(stacked(fetched.held_out), stacked(here.held_out))
    # The text is read before the weights are fetched.
    assert not hub.asked("model.safetensors")


def test_a_plan_keeps_its_limit_and_loses_less_than_what_is_as_large(found: tuple[Path, SearchReport]) -> None:
    directory, report = found
    size = (directory / "openvino_model.bin").stat().st_size
    plan, *others = report.contenders
    assert size == plan.size_bytes <= 5.3 * report.num_parameters / 8
    assert {each.kind for each in others} <= {"uniform", "mixed"}
    assert others
    assert all(each.size_bytes <= 5.3 * report.num_parameters / 8 for each in others)
    assert plan.kl_divergence.value < min(each.kl_divergence.value for each in others)
    assert report.gain is not None
    assert report.gain.low is not None
    assert report.gain.low > 0
    assert report.chosen == "searched"
    manifest = read_measurements(directory).manifest
    assert sum(each.size_bytes for each in report.weights) == sum(layer.size_bytes for layer in manifest.layers)
    assert len({each.format for each in report.weights}) > 1


def test_what_single_weights_are_predicted_to_lose_is_what_the_model_loses(
    found: tuple[Path, SearchReport], demo_checkpoint: Path, text: Path
) -> None:
    directory, report = found
    spec = EvalSpec(dataset=str(text), seq_len=64, num_windows=12, precision="pinned", backend="stateful")
    divergence = llmcompress.evaluate(directory, spec, reference=demo_checkpoint).divergence
    assert divergence is not None
    predicted = sum(each.kl_divergence for each in report.weights)
    assert predicted == pytest.approx(report.contenders[0].predicted_kl)
    # As near as labels drawn for 768 tokens tell.
    assert predicted == pytest.approx(divergence.kl_divergence.value, rel=0.35)


def test_the_artifact_is_whole_and_its_recipe_makes_the_same_bytes(
    found: tuple[Path, SearchReport], demo_checkpoint: Path, tmp_path: Path
) -> None:
    directory, report = found
    llmcompress.verify(directory)
    measured = read_measurements(directory)
    assert measured.search == report
    assert not measured.unused
    llmcompress.compress(demo_checkpoint, directory / "recipe.yaml", tmp_path / "again", tokenizer=False)
    digests = [hashlib.sha256((each / "openvino_model.bin").read_bytes()) for each in (directory, tmp_path / "again")]
    assert digests[0].digest() == digests[1].digest()


def test_the_front_falls_from_the_smallest_to_the_best(found: tuple[Path, SearchReport]) -> None:
    sizes, losses = zip(*((each.size_bytes, each.kl_divergence) for each in found[1].front), strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(losses) == sorted(losses, reverse=True)
    assert losses[0] > 10 * losses[-1]


def test_a_limit_of_quality_gives_the_smallest_that_keeps_it(
    demo_checkpoint: Path,
    text: Path,
    tmp_path: Path,
    found: tuple[Path, SearchReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[str] = []

    def watched(model: Any, kind: Any, **options: Any) -> None:
        kinds.append(kind)
        add_scores(model, kind, **options)

    monkeypatch.setattr(measurement, "add_scores", watched)
    # What a search that was killed has left goes.
    (tmp_path / "new" / ".out.search" / "searched").mkdir(parents=True)
    report = llmcompress.search(demo_checkpoint, _spec(text, max_kl=0.05, num_probes=2), tmp_path / "new" / "out")
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["out"]
    plan = report.contenders[0]
    # The limit is held on the windows of the sensitivity; the verdict is on others.
    assert plan.kl_divergence.value == pytest.approx(0.05, rel=0.25)
    assert plan.size_bytes < found[1].contenders[0].size_bytes
    # Two plans were measured for corrections, then at least one for the limit: the original answered once, and again
    # on the windows of the verdict.
    assert kinds[:3] == ["divergence", "divergence", "logits"]
    assert kinds.count("divergence") > 3
    assert kinds.count("logits") == 2


def test_a_person_sees_the_contenders_and_the_choice(
    found: tuple[Path, SearchReport], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_search(found[1])
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "at most 5.3 bits for each parameter" in shown
    assert re.search(r"Next 1 % +[\d.]+ kB more would lose [\de.-]+ nats less, as predicted", shown)
    assert "Choice: searched: it loses less than" in shown
    for each in (*found[1].contenders, *(SimpleNamespace(name=choice.format) for choice in found[1].weights)):
        assert each.name in shown


def test_plans_are_the_best_of_all() -> None:
    """Against every plan of four weights in four formats."""
    random = np.random.default_rng(0)
    formats = [Format("int4_sym", size) for size in (32, 64, 128, -1)]
    candidates = [
        Candidate(name, each, 100, int(random.integers(50, 500)), float(random.exponential(1e-4)))
        for name in "abcd"
        for each in formats
    ]
    by_weight = [[each for each in candidates if each.weight == name] for name in "abcd"]
    every = [dict(zip("abcd", plan, strict=True)) for plan in itertools.product(*by_weight)]
    for limit in (500, 800, 1100):
        best = min((total_kl(plan) for plan in every if total_bytes(plan) <= limit), default=None)
        plan = least_damage(candidates, limit)
        assert (plan and total_kl(plan)) == (best if best is None else pytest.approx(best, rel=2e-3))
    for loss in (1e-4, 3e-4):
        smallest = min((total_bytes(plan) for plan in every if total_kl(plan) <= loss), default=None)
        plan = least_bytes(candidates, loss)
        assert (plan and total_bytes(plan)) == (smallest if smallest is None else pytest.approx(smallest, rel=2e-3))
    assert least_damage(candidates, 1) is None
    assert least_bytes(candidates, 1e-9) is None
    assert total_bytes(front(candidates, 3)[0]) == min(map(total_bytes, every))


def test_what_the_next_byte_buys_is_the_slope_of_the_hull_of_all_plans() -> None:
    random = np.random.default_rng(3)
    candidates = [
        Candidate(name, Format("int4_sym", size), 100, int(random.integers(50, 500)), float(random.exponential(1e-4)))
        for name in "abcd"
        for size in (32, 64, 128, -1)
    ]
    by_weight = [[each for each in candidates if each.weight == name] for name in "abcd"]
    plans = itertools.product(*by_weight)
    points = sorted((sum(each.size_bytes for each in plan), sum(each.kl_divergence for each in plan)) for plan in plans)
    for limit in (700, 900, 1200):
        # Of all lines between a smaller and a larger plan the one that is lowest at the limit.
        lines = [
            (low + (limit - small) * (high - low) / (large - small), (low - high) / (large - small))
            for small, low in points
            for large, high in points
            if small < limit < large
        ]
        # More bytes than the best plan takes are of no use.
        best = min(points, key=lambda point: (point[1], point[0]))
        expected = min(lines)[1] if best[0] > limit else 0.0
        assert kl_per_further_byte(candidates, limit) == pytest.approx(max(expected, 0), abs=1e-12)
    assert kl_per_further_byte(candidates, 10_000) == 0


def test_sensitivity_is_the_fisher_information(tmp_path: Path) -> None:
    """Of a table of logits it is p (1 - p) for each token that was seen, by the formula for the softmax."""

    class Bigrams(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(6, 6)

        def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=self.table(ids))

    torch.manual_seed(1)
    model, windows = Bigrams(), np.tile(np.arange(5), (4000, 1))
    found = sensitivity(model, windows, 0, tmp_path, silent).diagonal["table.weight"] / len(windows)
    probabilities = model.table.weight.detach().softmax(-1)
    expected = probabilities * (1 - probabilities)
    assert torch.allclose(found[:5], expected[:5], atol=0.02)
    assert float(found[5].abs().max()) == 0.0
    assert torch.equal(found, sensitivity(model, windows, 0, tmp_path, silent).diagonal["table.weight"] / len(windows))


def _measured(name: str, kl: np.ndarray) -> Entrant:
    scores = {"kl": kl, "nll": kl, "reference_nll": kl, "agrees": np.ones_like(kl)}
    clusters = np.repeat(np.arange(8), len(kl) // 8)
    return Entrant(name, None, 1, SimpleNamespace(scores=TokenScores(scores, clusters)))  # type: ignore[arg-type]


def test_what_does_not_win_beyond_noise_is_not_written() -> None:
    random = np.random.default_rng(0)
    kl = random.exponential(1e-3, 800)
    plan, same = _measured("searched", kl), _measured("int4_sym:64", kl + random.normal(0, 1e-4, 800))
    worse = _measured("int4_sym:128", kl + 1e-3)
    assert decide(plan, [worse], 0.95)[0] is plan
    chosen, gain, reason = decide(plan, [worse, same], 0.95)
    assert chosen is same
    assert gain is not None
    assert gain.low is not None
    assert gain.low < 0
    assert reason == "the plan does not lose less than int4_sym:64 beyond noise"
    assert decide(plan, [], 0.95) == (plan, None, "no uniform format is as small")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"max_bytes": 1000}, UsageError, "no plan of these formats takes at most 1,000 bytes; the smallest takes"),
        ({"max_bytes": 10**7, "front": (2000,)}, UsageError, "no plan of these formats takes at most 2,000 bytes"),
        ({"max_kl": 1e-9}, UsageError, "no plan of these formats keeps the KL divergence at 1e-09"),
        ({"max_bytes": 10**7, "num_windows": 5000}, DataError, "12 show the sensitivity and 5000 more the verdict"),
    ],
)
def test_a_limit_that_cannot_be_kept(
    demo_checkpoint: Path, text: Path, tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llmcompress.search(demo_checkpoint, _spec(text, candidates=("int8_asym",), **given), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_sources_without_floats_and_too_little_memory_are_refused(
    demo_checkpoint: Path, found: tuple[Path, SearchReport], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="the source is an OpenVINO model"):
        llmcompress.search(found[0], _spec(text, bits_per_weight=5), tmp_path / "out")
    # A fresh process has the libraries still to come.
    monkeypatch.setattr("llmcompress.searching.search.own_bytes", lambda: 0)
    monkeypatch.setattr("llmcompress.system.background.memory", lambda: SimpleNamespace(available=5 * 10**8))
    with pytest.raises(ResourceError, match=r"a search needs about 0\.8 GB of memory, 0\.5 GB are available"):
        llmcompress.search(demo_checkpoint, _spec(text, bits_per_weight=5), tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got none of `max_bytes`, `bits_per_weight`, `max_kl` and `min_decode`; exactly one is accepted"),
        ({"max_kl": 0.1, "bits_per_weight": 4.0}, "got `bits_per_weight` and `max_kl` of `max_bytes`"),
        ({"max_kl": 0.1, "candidates": ("int4_sym", "int4_sym")}, "one is named twice"),
        ({"max_kl": 0.1, "candidates": ("int4 sym",)}, "got 'int4 sym': MODE or MODE:GROUP_SIZE is accepted"),
        ({"max_kl": 0.1, "candidates": ("nf4:64",)}, "got 'nf4:64': modes with integers are accepted"),
        ({"max_kl": 0.1, "candidates": ("int8_sym:64",)}, "mode int8_sym has one group per channel"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_options(SearchSpec, {"dataset": "bundled", **given})


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in ("3.5GB", "800 MB", "12kB", "4096", "7B")] == [
        3_500_000_000,
        800_000_000,
        12_000,
        4096,
        7,
    ]
    for text in ("", "0", "GB", "-3GB", "3 GiB"):
        with pytest.raises(UsageError, match="a number of bytes, or a number with kB, MB, GB or TB is accepted"):
            parse_size(text)


def test_the_command_takes_several_sizes(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[SearchSpec] = []

    def noted(function: object, options: dict[str, Any], *, verbose: bool) -> None:
        taken.append(options["spec"])
        raise UsageError("enough")

    monkeypatch.setattr("llmcompress.cli.search.run_watched", noted)
    command = ["search", str(demo_checkpoint), "--size", "3MB", "-o", str(tmp_path / "out")]
    assert run([*command, "--front", "2MB", "--front", "1.5MB"]) == 2
    assert [(each.max_bytes, each.front) for each in taken] == [(3_000_000, (2_000_000, 1_500_000))]
    capsys.readouterr()
    assert run([*command, "--front", "2MB", "--front", "1XB"]) == 2
    assert "--front: got '1XB'; a number of bytes, or a number with kB" in " ".join(capsys.readouterr().err.split())


def test_the_default_formats_are_executed_compressed() -> None:
    assert not [each for each in CANDIDATES if each.startswith("int3")]
