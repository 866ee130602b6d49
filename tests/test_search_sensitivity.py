"""The sensitivity of a search against gradients by autograd, and the cost of formats against stock NNCF's codes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nncf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, build_checkpoint

import llmcompress
from llmcompress.compression import matrix_uses
from llmcompress.compression.coding import weighted_error
from llmcompress.compression.late_codes import codes_left_for_later
from llmcompress.compression.matrix_uses import OtherUseError, uses_noted
from llmcompress.compression.nncf.weights import compress_weights
from llmcompress.errors import ModelError
from llmcompress.graph.integer_weights import integer_weights
from llmcompress.graph.model import parameter_name
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.torch_model import load_torch_model
from llmcompress.searching import sensitivity as sensitivity_room
from llmcompress.searching.candidates import Formats, Uncompressed, data_free, uniform
from llmcompress.searching.sensitivity import Sensitivity, sensitivity
from llmcompress.spec.search import parse_format
from llmcompress.system.file_memory import FileMemory
from llmcompress.system.progress import silent

GPT_NEO = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global"], 2]],
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def _in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor that computes in bf16."""
    monkeypatch.setattr(matrix_uses, "multiplies_in", lambda device: "f32")


def _squares(model: Any, windows: np.ndarray, seed: int) -> dict[str, torch.Tensor]:
    """Gradients of the whole model in f32, window by window."""
    model.float().requires_grad_(True)
    found = {name: torch.zeros_like(each) for name, each in model.named_parameters() if each.ndim >= 2}
    generator = torch.Generator().manual_seed(seed)
    for window in windows:
        logits = model(torch.from_numpy(window[None]), use_cache=False).logits[0]
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        for name, total in found.items():
            gradient = model.get_parameter(name).grad
            total += 0 if gradient is None else gradient**2
    return found


def _same(found: Sensitivity, expected: dict[str, torch.Tensor]) -> None:
    assert found.diagonal.keys() == expected.keys()
    for name, squares in expected.items():
        assert torch.allclose(found.diagonal[name], squares, rtol=1e-3, atol=1e-5 * float(squares.max())), name
    assert any(float(each.abs().max()) > 0 for each in expected.values())


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"tied": True}),
        pytest.param("gpt2", {}, id="products by addmm"),
        pytest.param("opt", {}, id="positions in a layer's own way"),
        pytest.param("gpt_neo", {}, id="positions that all windows share"),
        pytest.param("falcon", {}, id="turned matrices"),
        pytest.param("mixtral", {}, id="stacks of experts"),
        pytest.param("gemma2", {}, id="a scaled embedding"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 100.0], ids=["one by one", "together"])
def test_squares_are_those_of_autograd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, changes: dict[str, Any], share: float
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "gemma2", {**ARCHITECTURES["llama"], "head_dim": 32})
    monkeypatch.setitem(ARCHITECTURES, "gpt_neo", GPT_NEO)
    source = resolve(build_checkpoint(tmp_path / "model", model_type, **changes))
    windows = np.random.default_rng(0).integers(3, 100, (3, 8))
    # A token twice, and the last one of other windows as well.
    windows[:, :2] = 7
    windows = windows.astype(np.int64)
    expected = _squares(load_torch_model(source), windows, 5)
    monkeypatch.setattr(sensitivity_room, "LOGITS_SHARE", share)
    model = load_torch_model(source)
    dtypes = {name: each.dtype for name, each in model.named_parameters()}
    found = sensitivity(model, windows, 5, tmp_path, silent)
    _same(found, expected)
    if model_type == "llama":
        assert all(each.dtype == dtypes[name] for name, each in model.named_parameters() if each.ndim == 2)


@pytest.mark.parametrize("model_type", ["llama", "falcon"])
def test_factors_are_there_of_each_layer_however_it_multiplies(tmp_path: Path, model_type: str) -> None:
    model = load_torch_model(resolve(build_checkpoint(tmp_path / "model", model_type)))
    windows = np.random.default_rng(0).integers(3, 100, (2, 8)).astype(np.int64)
    inputs: dict[str, torch.Tensor] = {}
    names = {id(each): name for name, each in model.named_parameters()}
    linear = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]

    def keep(module: Any, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        inputs.setdefault(names[id(module.weight)], given[0].detach().flatten(0, -2))

    for module in linear:
        module.register_forward_hook(keep)
    found = sensitivity(model, windows[:1], 0, tmp_path, silent, jointly=True)
    # A head that is tied has its embedding's factors as well.
    assert found.factors.keys() >= inputs.keys()
    assert len(inputs) == len(linear)
    for name, given in inputs.items():
        assert torch.allclose(found.factors[name][0].columns, given.float().T @ given.float(), rtol=1e-3, atol=1e-3)
        assert float(found.factors[name][0].rows.min()) >= 0
        assert float(found.factors[name][0].rows.max()) > 0


def test_products_in_bf16_give_squares_that_are_nearly_those(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(build_checkpoint(tmp_path / "model"))
    windows = np.random.default_rng(0).integers(3, 100, (6, 16)).astype(np.int64)
    expected = sensitivity(load_torch_model(source), windows, 5, tmp_path, silent).diagonal
    asked: list[torch.device] = []

    def in_bf16(device: torch.device) -> str:
        asked.append(device)
        return "bf16"

    monkeypatch.setattr(matrix_uses, "multiplies_in", in_bf16)
    found = sensitivity(load_torch_model(source), windows, 5, tmp_path, silent).diagonal
    assert [each.type for each in asked] == ["cpu"]
    for name, squares in expected.items():
        # Not the same: products were rounded.
        assert 0 < float((found[name] - squares).norm() / squares.norm()) < 0.1, name
        assert float(found[name].sum()) == pytest.approx(float(squares.sum()), rel=0.05), name


class _Twice(torch.nn.Module):
    """A layer that is gone through twice, and a matrix that is turned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(12, 8)
        self.layer = torch.nn.Linear(8, 8)
        self.turned = torch.nn.Parameter(torch.randn(8, 12))
        self.halves = torch.nn.Parameter(torch.randn(4, 8))
        self.given = torch.nn.Parameter(torch.randn(1, 8))

    def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
        hidden = torch.tanh(self.layer(torch.tanh(self.layer(self.table(ids)))))
        first, second = self.halves.chunk(2)
        hidden = hidden + (hidden @ first.T) @ second + torch.nn.functional.linear(self.given, self.layer.weight)
        return SimpleNamespace(logits=hidden @ self.turned)


def test_matrices_that_are_used_otherwise_have_their_gradients_too(tmp_path: Path) -> None:
    windows = np.random.default_rng(1).integers(0, 12, (4, 6)).astype(np.int64)
    _same(sensitivity(_Twice().bfloat16(), windows, 0, tmp_path, silent), _squares(_Twice().bfloat16(), windows, 0))
    model = _Twice().requires_grad_(False)
    assert model.turned.dtype == torch.float32
    with uses_noted(model, ["turned"], lambda use: None, once=True) as uses:
        assert model.turned.shape == (8, 12)
        uses.check()
        model(torch.from_numpy(windows), use_cache=False)
        with pytest.raises(OtherUseError, match=r"^turned$") as refused:
            uses.check()
    assert refused.value.names == {"turned"}


class _Masked(_Twice):
    """A model that never says one of its tokens."""

    def forward(self, ids: torch.Tensor, use_cache: bool) -> Any:
        logits = super().forward(ids, use_cache).logits
        mask = torch.zeros(12)
        mask[5] = -torch.inf
        return SimpleNamespace(logits=logits + mask)


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model, ids = _Twice(), np.full((1, 4), 3, np.int64)
    with torch.no_grad():
        model.table.weight[3, 2] = torch.nan
    assert all(
        torch.isfinite(each).all() for each in sensitivity(_Masked(), ids, 0, tmp_path, silent).diagonal.values()
    )
    with pytest.raises(ModelError, match="gives NaN or infinite logits, which have no gradient to go by"):
        sensitivity(model, ids, 0, tmp_path, silent)


def test_a_disk_without_room_leaves_squares_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = np.random.default_rng(1).integers(0, 12, (2, 6)).astype(np.int64)
    expected = sensitivity(_Twice(), windows, 0, tmp_path, silent).diagonal
    monkeypatch.setattr(FileMemory, "block", lambda *given: None)
    found = sensitivity(_Twice(), windows, 0, tmp_path, silent).diagonal
    assert all(torch.equal(found[name], each) for name, each in expected.items())


STOCK = {
    "int8_asym": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
    "int4_sym:64": {"mode": nncf.CompressWeightsMode.INT4_SYM, "group_size": 64},
    "int4_asym:32": {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": 32},
}


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gpt2"])
def test_costs_are_those_of_the_codes_that_stock_nncf_makes(tmp_path: Path, model_type: str) -> None:
    source = build_checkpoint(tmp_path / "model", model_type)
    loaded = llmcompress.load(source, tokenizer=False)
    model = load_torch_model(loaded.source)
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    diagonal = {name: torch.rand(each.shape, generator=generator) for name, each in parameters.items() if each.ndim > 1}
    original = Uncompressed(loaded, model, parameters, Sensitivity(50, diagonal, {}))
    formats = Formats(tuple(map(parse_format, STOCK)), (), frozenset())
    found = {(each.weight, str(each.format)): each.kl_divergence for each in data_free(original, formats, silent)}
    seen = set()
    for name, options in STOCK.items():
        further = {} if name == "int8_asym" else {"all_layers": True, "ratio": 1.0}
        graph = nncf.compress_weights(loaded.clone().model, **options, **further)
        for constant, weight in integer_weights(graph).items():
            parameter = parameter_name(constant)
            if (parameter, name) not in found or parameter not in diagonal:
                continue
            error = torch.from_numpy(weight.values()).reshape(parameters[parameter].shape) - parameters[parameter]
            expected = float((error.double() ** 2 * diagonal[parameter]).sum()) / 100
            assert found[parameter, name] == pytest.approx(expected, rel=1e-4), (parameter, name)
            seen.add((parameter, name))
    assert seen == {key for key in found if key[0] in diagonal}
    assert {name for _, name in seen} == set(STOCK)


@pytest.mark.parametrize("size", [384, 12], ids=["by kernels", "too small for these"])
def test_a_weight_whose_scales_exceed_half_precision_takes_8_bits(tmp_path: Path, size: int) -> None:
    checkpoint = build_checkpoint(tmp_path / "model", intermediate_size=size)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name][0, 0] = 1e30
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    loaded = llmcompress.load(checkpoint, tokenizer=False)
    model = load_torch_model(loaded.source)
    parameters = {key: each.detach() for key, each in model.named_parameters()}
    diagonal = {key: torch.ones(each.shape) for key, each in parameters.items() if each.ndim > 1}
    original = Uncompressed(loaded, model, parameters, Sensitivity(50, diagonal, {}))
    formats = Formats(tuple(map(parse_format, STOCK)), (), frozenset())
    found = list(data_free(original, formats, silent))
    assert {str(each.format) for each in found if each.weight == name} == {"int8_asym"}
    assert {str(each.format) for each in found if each.weight == name.replace("up", "gate")} == set(STOCK)
    assert all(np.isfinite(each.kl_divergence) for each in found)


def test_squares_of_another_number_of_values_are_not_summed(tmp_path: Path) -> None:
    loaded = llmcompress.load(build_checkpoint(tmp_path / "model"), tokenizer=False)
    model = loaded.clone().model
    with codes_left_for_later(model) as noted:
        compress_weights(model, uniform(parse_format("int4_sym:32"), all_layers=True))
    weight = next(iter(noted.values()))
    num_values = weight.layout.num_groups * weight.layout.group_size
    with ThreadPoolExecutor(1) as pool:
        assert weighted_error(weight.values, weight.layout, np.ones(num_values - 1, np.float32), pool) is None
        assert weighted_error(weight.values, weight.layout, np.zeros(num_values, np.float32), pool) == 0
