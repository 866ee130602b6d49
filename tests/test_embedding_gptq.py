"""GPTQ of embeddings: it goes by the Fisher information of what they give, and its codes are those of GPTQ by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import llmcompress
from llmcompress import Recipe
from llmcompress.compression.fisher import embedding_moments, embedding_names
from llmcompress.compression.forecast import forecast
from llmcompress.compression.nncf.embeddings import embeddings_by_gptq
from llmcompress.compression.nncf.runs import model_inputs
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.errors import ModelError, RecipeError
from llmcompress.graph.integer_weights import IntegerWeight, integer_weights
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.report.compression import Engine
from llmcompress.spec import Calibration, WeightCompression
from llmcompress.system.progress import silent

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def loaded(demo_checkpoint: Path) -> LoadedModel:
    return llmcompress.load(demo_checkpoint, tokenizer=False)


class _Model(torch.nn.Module):
    """A table, a nonlinearity, and a head with a weight of its own or the table's."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(6, 4)
        self.head = torch.nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def inside(self, given: torch.Tensor) -> torch.Tensor:
        return torch.tanh(given) * torch.tensor([0.1, 1.0, 2.0, 3.0]) + given.flip(-1)

    def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.head(self.inside(self.table(ids))))


@pytest.mark.parametrize("tied", [False, True])
def test_the_moments_are_the_fisher_information_of_what_an_embedding_gives(tied: bool) -> None:
    """By the Jacobian of the logits and the covariance of a drawn label, token by token."""
    torch.manual_seed(0)
    model = _Model(tied=tied)
    windows = np.tile(np.array([0, 1, 1, 2, 4]), (1500, 1))
    found = embedding_moments(model, ["table.weight"], windows, 0, silent)["table.weight"]

    expected = torch.zeros(4, 4)
    inputs, outputs = torch.zeros(4, 4), torch.zeros(6)
    for token in windows[0]:
        given = model.table.weight[token].detach()
        jacobian = torch.autograd.functional.jacobian(lambda x: model.head(model.inside(x)), given)
        probabilities = model.head(model.inside(given)).softmax(-1).detach()
        covariance = probabilities.diag() - probabilities.outer(probabilities)
        expected += jacobian.T @ covariance @ jacobian
        inputs += model.inside(given).outer(model.inside(given)).detach()
        outputs += covariance.diagonal()
    if tied:
        expected += inputs * outputs.sum() / len(windows[0])
    expected /= expected.diagonal().mean()
    # As near as labels drawn for 7,500 tokens tell.
    assert np.allclose(found, expected.numpy(), atol=0.05)
    again = embedding_moments(_Model(tied=tied), ["table.weight"], windows[:1], 0, silent)["table.weight"]
    assert np.mean(np.diagonal(again)) == pytest.approx(1, rel=1e-5)


def test_what_is_no_embedding_is_named() -> None:
    model = _Model(tied=False)
    assert embedding_names(model) == {"table.weight"}
    with pytest.raises(ModelError, match=r"head\.weight is no embedding of the model in torch"):
        embedding_moments(model, ["head.weight"], np.zeros((1, 4), np.int64), 0, silent)


def test_an_embedding_that_is_never_looked_up_is_named() -> None:
    class Scaled(_Model):
        def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
            table = self.table.weight * 2
            return SimpleNamespace(logits=self.head(self.inside(table[ids])))

    with pytest.raises(ModelError, match=r"table\.weight is no embedding of the model in torch"):
        embedding_moments(Scaled(tied=False), ["table.weight"], np.zeros((1, 4), np.int64), 0, silent)


def _by_hand(weight: np.ndarray, hessian: np.ndarray, made: IntegerWeight, columns: np.ndarray) -> np.ndarray:
    """GPTQ of a symmetric format, a column at a time, with the scales that were found."""
    damped = hessian.astype(np.float64) + 0.1 * np.diag(hessian).mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(columns, columns)])).T
    left, values = weight[:, columns].astype(np.float64), np.empty_like(weight)
    scales = made.scales.astype(np.float64)[:, :, 0]
    for number, column in enumerate(columns):
        scale = scales[:, column // made.codes.shape[2]]
        rounded = np.clip(np.rint(left[:, number] / scale), -8, 7) * scale
        values[:, column] = rounded
        error = (left[:, number] - rounded) / upper[number, number]
        left[:, number:] -= error[:, None] * upper[number, number:]
    return values


@pytest.mark.parametrize(
    ("engine", "order"),
    [pytest.param("nncf", "columns", marks=pytest.mark.slow), ("llmcompress", "activations")],
)
def test_the_codes_are_those_of_gptq_by_hand(
    loaded: LoadedModel, demo_checkpoint: Path, engine: Engine, order: str
) -> None:
    model = loaded.clone().model
    random = np.random.default_rng(0)
    factor = random.standard_normal((256, 256)) * np.linspace(0.2, 2, 256)
    hessian = (factor @ factor.T / 256).astype(np.float32)
    weights = WeightCompression.model_validate(
        {
            "mode": "int4_sym",
            "group_size": 64,
            "gptq": True,
            "statistics": "original",
            "gptq_order": order,
            "rules": [
                {"match": EMBEDDING, "mode": "int4_sym", "group_size": 64, "method": "gptq"},
                {"match": ".*", "mode": "int8_sym"},
            ],
        }
    )
    assert weights.gives_gptq(EMBEDDING)
    windows = random.integers(3, 400, (1, 8))
    with embeddings_by_gptq({EMBEDDING: hessian}):
        compress_weights(model, weights, model_inputs(model, windows), engine=engine)
    (made,) = (each for name, each in integer_weights(model).items() if parameter_name(name) == EMBEDDING)
    assert made.element == "i4"
    original = _original(demo_checkpoint)
    columns = np.argsort(-np.diag(hessian), kind="stable") if order == "activations" else np.arange(256)
    values, expected = made.values().reshape(original.shape), _by_hand(original, hessian, made, columns)
    code = float(np.abs(made.scales.astype(np.float32)).mean())
    # What lies all but half way between two codes may take the other one, and those behind make up for it.
    assert float(np.abs(values - expected).mean()) < 0.05 * code
    rounded = np.clip(np.rint(original.reshape(made.codes.shape) / made.scales), -8, 7) * made.scales
    lost, lost_rounded = (
        float(np.einsum("ri,ij,rj", error, hessian, error, optimize=True))
        for error in (values - original, rounded.reshape(original.shape) - original)
    )
    assert lost < 0.8 * lost_rounded


def _original(checkpoint: Path) -> np.ndarray:
    from safetensors import safe_open

    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118
                return np.asarray(file.get_tensor(EMBEDDING).float().numpy())
    raise AssertionError("no embedding")


def test_only_a_rule_gives_embeddings_to_gptq() -> None:
    given = {"mode": "int4_sym", "gptq": True, "statistics": "original", "all_layers": True}
    rule = {"match": EMBEDDING, "mode": "int4_sym", "method": "gptq"}
    assert not WeightCompression.model_validate(given).gives_gptq(EMBEDDING)
    assert WeightCompression.model_validate({**given, "rules": [rule]}).gives_gptq(EMBEDDING)
    assert WeightCompression.model_validate({**given, "rules": [{**rule, "match": "Gather"}]}).gives_gptq(EMBEDDING)
    for other in (
        {**given, "statistics": "compressed", "rules": [rule]},
        {**given, "rules": [{**rule, "method": None}]},
    ):
        assert not WeightCompression.model_validate(other).gives_gptq(EMBEDDING)


def test_a_source_without_gradients_is_refused_and_memory_is_counted(
    loaded: LoadedModel, demo_checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word " * 4000)
    rule = {"match": EMBEDDING, "mode": "int4_sym", "group_size": 64, "method": "gptq"}
    weights = {"mode": "int4_sym", "group_size": 64, "gptq": True, "statistics": "original"}
    calibration = Calibration(dataset=str(text), num_samples=4, seq_len=512)

    def recipe(**added: Any) -> Recipe:
        return Recipe.model_validate({"name": "a", "weights": {**weights, **added}, "calibration": calibration})

    source = loaded.source
    assert forecast(source, recipe(rules=[rule])).peak_rss_bytes >= forecast(source, recipe()).peak_rss_bytes
    llmcompress.compress(demo_checkpoint, "none", tmp_path / "ir")
    with pytest.raises(RecipeError, match="GPTQ of an embedding goes by gradients of the original in torch"):
        llmcompress.compress(tmp_path / "ir", recipe(rules=[rule]), tmp_path / "out")
