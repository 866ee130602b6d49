"""A search among what GPTQ makes: its codes are a recipe's, they are made once, and their cost is that of the model."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import llmcompress
from llmcompress import EvalSpec, SearchReport, SearchSpec
from llmcompress.artifact import read_measurements
from llmcompress.compression import fisher
from llmcompress.compression.fisher import Factors
from llmcompress.compression.nncf import gptq_formats
from llmcompress.errors import UsageError
from llmcompress.graph.integer_weights import INTEGERS, IntegerWeight, num_bits_of
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.report.record import CalibrationRecord
from llmcompress.searching.candidates import Formats, Uncompressed, by_gptq
from llmcompress.searching.sensitivity import Sensitivity, sensitivity
from llmcompress.searching.shelf import OnShelf, Shelf, shelf_of
from llmcompress.spec import Calibration
from llmcompress.spec.search import CALIBRATED, CANDIDATES, Format
from llmcompress.spec.validation import from_options
from llmcompress.system.progress import silent

OTHER = Path(llmcompress.__file__).parent / "data" / "heldout.txt"
"""A text for GPTQ that has nothing in common with that of the verdict."""
FEW = ("int4_sym:128", "int4_sym:128+gptq", "int4_asym:32+gptq", "int8_asym")


@pytest.fixture(scope="module")
def text(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    return path


def _spec(text: Path, **given: Any) -> SearchSpec:
    return SearchSpec(
        dataset=str(text),
        seq_len=64,
        num_samples=12,
        num_windows=16,
        candidates=FEW,
        num_probes=0,
        calibration=Calibration(dataset=str(OTHER), num_samples=16, seq_len=128),
        **given,
    )


@pytest.fixture(scope="module")
def found(demo_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchReport]:
    directory = tmp_path_factory.mktemp("search") / "out"
    return directory, llmcompress.search(demo_checkpoint, _spec(text, bits_per_weight=5.6), directory)


def _digests(directory: Path) -> list[str]:
    names = ("openvino_model.bin", "openvino_model.xml", "recipe.yaml")
    return [hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names]


def test_what_is_put_together_is_what_its_recipe_makes(
    found: tuple[Path, SearchReport], demo_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    directory, report = found
    assert report.chosen == "searched"
    formats = {each.format for each in report.weights}
    assert {"int4_asym:32+gptq", "int8_asym"} <= formats
    (embedding,) = (each for each in report.weights if each.name == "model.embed_tokens.weight")
    assert embedding.format.endswith("+gptq")
    # Of what is rounded a token loses more.
    assert embedding.predicted["int4_sym:128+gptq"] < 0.9 * embedding.predicted["int4_sym:128"]
    recipe = llmcompress.load_recipe(directory / "recipe.yaml", overrides=[f"calibration.dataset={OTHER}"])
    manifest = llmcompress.compress(demo_checkpoint, recipe, tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(directory)
    assert manifest.layers == read_measurements(directory).manifest.layers
    assert manifest.calibration == read_measurements(directory).manifest.calibration
    assert llmcompress.recipe_from_artifact(directory).weights == recipe.weights


def test_the_plan_is_held_against_others_and_predicted(
    found: tuple[Path, SearchReport], demo_checkpoint: Path, text: Path
) -> None:
    directory, report = found
    plan, *others = report.contenders
    assert others
    spec = EvalSpec(dataset=str(text), seq_len=64, num_windows=12, precision="pinned", backend="stateful")
    divergence = llmcompress.evaluate(directory, spec, reference=demo_checkpoint).divergence
    assert divergence is not None
    # On the windows of the prediction, as near as labels drawn for 768 tokens tell.
    assert plan.predicted_kl == pytest.approx(divergence.kl_divergence.value, rel=0.4)


@pytest.mark.slow
def test_a_tied_head_takes_what_its_embedding_takes(demo_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tied = tmp_path / "tied"
    shutil.copytree(demo_checkpoint, tied)
    model = AutoModelForCausalLM.from_pretrained(demo_checkpoint)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + model.model.embed_tokens.weight)
    model.model.embed_tokens.weight = model.lm_head.weight
    model.save_pretrained(tied)
    directory = tmp_path / "out"
    report = llmcompress.search(tied, _spec(text, bits_per_weight=4.9, budget_s=20.0), directory)
    (embedding,) = (each for each in report.weights if each.name == "model.embed_tokens.weight")
    assert not [each.name for each in report.weights if each.name == "lm_head.weight"]
    assert embedding.predicted["int4_sym:128+gptq"] < embedding.predicted["int4_sym:128"]
    assert report.repair is not None
    assert report.repair.num_measured > 0
    if report.chosen == "searched":
        recipe = llmcompress.load_recipe(directory / "recipe.yaml", overrides=[f"calibration.dataset={OTHER}"])
        llmcompress.compress(tied, recipe, tmp_path / "again")
        assert _digests(tmp_path / "again") == _digests(directory)
    # Its two uses are predicted as if they had nothing to do with each other.
    assert report.contenders[0].predicted_kl == pytest.approx(report.contenders[0].kl_divergence.value, rel=0.5)


@pytest.mark.slow
def test_a_further_search_makes_nothing_again(
    found: tuple[Path, SearchReport],
    demo_checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made_again(*given: object) -> None:
        raise AssertionError("GPTQ runs again")

    monkeypatch.setattr(gptq_formats, "gptq_in_formats", made_again)
    report = llmcompress.search(demo_checkpoint, _spec(text, bits_per_weight=4.9, front=(2_300_000,)), tmp_path / "out")
    assert report.contenders[0].size_bytes < found[1].contenders[0].size_bytes
    (further,) = report.further
    assert further.size_bytes == (tmp_path / further.directory / "openvino_model.bin").stat().st_size <= 2_300_000
    assert further.kl_divergence.value > report.contenders[0].kl_divergence.value
    llmcompress.verify(tmp_path / further.directory)


def test_a_search_that_was_killed_makes_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = SimpleNamespace(token_ids=np.zeros((1, 4), np.int64), record=SimpleNamespace(seed=0))
    model = torch.nn.Sequential(torch.nn.Linear(32, 2, bias=False), torch.nn.Linear(32, 2, bias=False))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    identity = {name: [Factors(torch.eye(32), torch.ones(2))] for name in parameters}
    graph = SimpleNamespace(get_ops=list)
    loaded = SimpleNamespace(clone=lambda: SimpleNamespace(model=None), model=graph, text_feed=lambda: None)
    sensitive = Sensitivity(1, {}, identity)
    original = Uncompressed(loaded, model, parameters, sensitive)  # type: ignore[arg-type]
    formats = Formats((Format("int4_sym", 32, "gptq"), Format("int4_sym", -1, "gptq")), (), frozenset())
    weight = IntegerWeight(np.zeros((2, 1, 32), np.int16), np.ones((2, 1, 1), np.float16), None, "i4")
    made: list[tuple[str, int]] = []

    def walk(graph: object, statistics: object, formats_of: Any, keep: Any, progress: object) -> None:
        for name in parameters:
            for mode, group_size in formats_of(f"self.{name}"):
                if len(made) == 3 and first:
                    raise KeyboardInterrupt
                made.append((name, group_size))
                keep(gptq_formats.Made(f"self.{name}", mode, group_size, weight))

    monkeypatch.setattr(gptq_formats, "gptq_in_formats", walk)
    monkeypatch.setattr(fisher, "embedding_moments", lambda *given: {})
    first = True
    with pytest.raises(KeyboardInterrupt):
        list(by_gptq(original, formats, windows, Shelf(tmp_path), silent))  # type: ignore[arg-type]
    first = False
    for _ in range(2):
        found = list(by_gptq(original, formats, windows, Shelf(tmp_path), silent))  # type: ignore[arg-type]
        assert {(each.weight, each.format) for each in found} == {
            (name, each) for name in parameters for each in formats.everywhere
        }
    assert sorted(made) == sorted((name, size) for name in parameters for size in (32, -1))
    assert found[0].kl_divergence == pytest.approx(float(parameters[found[0].weight].square().sum()) / 2)


def test_the_cost_of_a_matrix_is_that_of_its_errors_together(tmp_path: Path) -> None:
    """Against the Fisher matrix of a linear layer before a softmax, by its formula, token by token."""
    torch.manual_seed(0)
    table, layer = torch.randn(5, 8), torch.nn.Linear(8, 6, bias=False)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=self.layer(table[ids]))

    windows = np.tile(np.arange(5), (3000, 1))
    found = sensitivity(Model(), windows, 0, tmp_path, silent, jointly=True)
    error = 1e-2 * torch.randn(6, 8)
    probabilities = layer(table).detach().softmax(-1)
    variances = (probabilities * (1 - probabilities)).mean(0)
    expected = 0.5 * float((error @ (table.T @ table / 5) * error).sum(1) @ variances)
    assert found.joint_cost("layer.weight", error) == pytest.approx(expected, rel=0.05)
    # What does not change an output costs nothing, though each of its weights changes.
    unseen = 1e-2 * torch.randn(6, 3) @ torch.linalg.svd(table).Vh[5:]
    assert found.joint_cost("layer.weight", unseen) < 1e-3 * expected
    assert found.cost("layer.weight", unseen) > 0.1 * expected


def test_sensitivity_sums_factors_only_where_asked(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(4, 4))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=self.inner(ids))

    found: Sensitivity = sensitivity(Model(), np.zeros((1, 4), np.int64), 0, tmp_path, silent)
    assert not found.factors


@pytest.mark.parametrize("element", sorted(INTEGERS))
def test_a_shelf_gives_back_what_was_put_there(tmp_path: Path, element: str) -> None:
    bits, is_signed = num_bits_of(element), element.startswith("i")
    low = -(1 << (bits - 1)) if is_signed else 0
    codes = np.random.default_rng(0).integers(low, low + (1 << bits), (4, 2, 32)).astype(np.int16)
    zeros = None if is_signed else np.arange(8, dtype=np.int16).reshape(4, 2, 1) % (1 << bits)
    weight = IntegerWeight(codes, np.linspace(-1, 1, 8, dtype=np.float16).reshape(4, 2, 1), zeros, element)
    shelf, wanted = Shelf(tmp_path), Format("int4_sym", 32, "gptq")
    assert shelf.get("a.weight", wanted) is None
    shelf.keep("a.weight", wanted, weight)
    kept = shelf.get("a.weight", wanted)
    assert kept is not None
    assert np.array_equal(kept.codes, codes)
    assert np.array_equal(kept.scales, weight.scales)
    assert zeros is None if kept.zero_points is None else np.array_equal(kept.zero_points, zeros)
    assert kept.size_bytes == 256 * bits // 8 + 16 + (0 if zeros is None else bits)
    assert shelf.has("a.weight", wanted)
    assert not shelf.has("a.weight", wanted._replace(group_size=64))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert shelf.get("a.weight", wanted) is None
    with pytest.raises(KeyError, match="constant"):
        OnShelf(shelf, {"constant": ("a.weight", wanted)})["constant"]


def test_without_a_cache_there_is_another_place(demo_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record = CalibrationRecord(dataset="a", num_windows=1, seq_len=2, seed=0, token_ids_sha256="0" * 64)
    loaded: LoadedModel = llmcompress.load(demo_checkpoint, tokenizer=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "file"))
        assert shelf_of(loaded, record, tmp_path / "other").directory == tmp_path / "other"
    assert shelf_of(loaded, record, tmp_path / "other").directory != tmp_path / "other"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": ("int8_asym+gptq",)}, "got 'int8_asym\\+gptq': GPTQ leaves mode int8_asym as it is"),
        ({"candidates": ("int4_sym+awq",)}, "MODE or MODE:GROUP_SIZE is accepted, with or without \\+gptq"),
        ({"candidates": ("int4_sym:64+gptq",)}, "candidates with \\+gptq need a text"),
        ({"candidates": ("int4_sym:64",), "calibration": True}, "has no effect: no candidate has \\+gptq"),
        ({"front": (10, 10)}, "one size is named twice"),
    ],
)
def test_refusals(given: dict[str, Any], message: str) -> None:
    if "calibration" in given:
        given = {**given, "calibration": Calibration(dataset="text.txt")}
    with pytest.raises(UsageError, match=message):
        from_options(SearchSpec, {"dataset": "bundled", "max_kl": 0.1, **given})


def test_a_text_brings_gptq_in() -> None:
    spec = SearchSpec(max_kl=0.1, calibration=Calibration(dataset="text.txt"))
    assert tuple(map(str, spec.formats)) == (*CANDIDATES, *CALIBRATED)
    assert not SearchSpec(max_kl=0.1).is_calibrated
