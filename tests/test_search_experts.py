"""A search of a mixture of experts: which weights have formats of their own, and experts that no token was sent to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from tiny_models import ARCHITECTURES, build_checkpoint

import llmcompress
from llmcompress import SearchReport, SearchSpec
from llmcompress.artifact import read_measurements
from llmcompress.cli.search import print_search
from llmcompress.graph.model import parameter_name
from llmcompress.searching.candidates import BACKUP, REST, Candidate, Table, by_name
from llmcompress.searching.pieces import Piece, pieces, routers
from llmcompress.searching.plans import plan_recipe
from llmcompress.searching.sensitivity import Sensitivity
from llmcompress.spec.search import Format

EVERY = slice(None)


def _searched(model_type: str, tmp_path: Path, demo_checkpoint: Path, **spec: Any) -> SearchReport:
    """A search whose plan's recipe makes its bytes."""
    source = build_checkpoint(tmp_path / "model", model_type, num_hidden_layers=1)
    text = tmp_path / "text.txt"
    text.write_text((demo_checkpoint / "LICENSE-PYTHON.txt").read_text())
    options = {"seq_len": 32, "num_samples": 4, "num_windows": 4, "num_probes": 0, **spec}
    report = llmcompress.search(source, SearchSpec(dataset=str(text), **options), tmp_path / "out")
    assert report.chosen == "searched"
    llmcompress.compress(source, tmp_path / "out" / "recipe.yaml", tmp_path / "again", tokenizer=False)
    digests = {
        hashlib.sha256((tmp_path / each / "openvino_model.bin").read_bytes()).digest() for each in ("out", "again")
    }
    assert len(digests) == 1
    return report


@pytest.mark.slow
def test_stacks_of_experts_have_formats_of_their_own(
    tmp_path: Path, demo_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = {"candidates": ("int2_sym:32", "int4_sym:32", "int8_asym"), "bits_per_weight": 6.8}
    report = _searched("qwen3_moe", tmp_path, demo_checkpoint, **spec)
    layers = read_measurements(tmp_path / "out").manifest.layers
    assert len(report.weights) == len(layers)
    formats = {each.name: each.format for each in report.weights}
    stacks = [name for name in formats if ".experts." in name]
    assert {name.partition(".experts.")[2] for name in stacks} == {"gate_up_proj.0", "gate_up_proj.1", "down_proj"}
    # The CPU plugin would make floats of stacks in int2, in each inference.
    assert {formats[name] for name in stacks} == {"int4_sym:32", "int8_asym"}
    # A token that is sent elsewhere is no small error, which is all that predictions know of.
    assert formats["model.layers.0.mlp.gate.weight"] == "int8_asym"
    assert report.contenders[0].predicted_kl == pytest.approx(report.contenders[0].kl_divergence.value, rel=0.5)
    assert report.experts is not None
    assert report.experts.num_experts == 2 * 8
    print_search(
        report.model_copy(update={"experts": report.experts.model_copy(update={"never_called": tuple("abcd")})})
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert "the text called 12 of 16 matrices of experts; never a, b, c and others" in shown


@pytest.mark.slow
def test_experts_without_names_agree(tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "granitemoe", ARCHITECTURES["mixtral"])
    spec = {"candidates": ("int2_sym:32", "int4_sym:32", "int8_asym"), "bits_per_weight": 4.0}
    report = _searched("granitemoe", tmp_path, demo_checkpoint, **spec)
    layers = read_measurements(tmp_path / "out").manifest.layers
    (rest,) = (each for each in report.weights if each.name == REST)
    assert len({(each.mode, each.group_size) for each in layers if "/" in each.name}) == 1
    assert rest.num_parameters == sum(each.num_parameters for each in layers if "/" in each.name)
    assert sum(each.size_bytes for each in report.weights) == sum(each.size_bytes for each in layers)


def test_half_a_stack_has_the_name_that_a_dry_run_gives_it() -> None:
    half = "model.layers.3.mlp.experts.gate_up_proj.1"
    assert parameter_name("__module.model.layers.3.mlp.experts/prim::ListUnpack/VariadicSplit.1") == half
    assert parameter_name(f"self.{half}") == half


def test_pieces_of_stacks_are_found_by_their_values() -> None:
    random = np.random.default_rng(0)
    stacks = {name: random.standard_normal((3, 8, 4), np.float32) for name in ("a.experts.up", "b.experts.up")}
    expected = {
        "__module.b.experts/Split.0": Piece("b.experts.up", (EVERY, slice(0, 4), EVERY), False),
        "__module.b.experts/Split.1": Piece("b.experts.up", (EVERY, slice(4, 8), EVERY), False),
        "__module.a.experts/Odd": Piece("a.experts.up", (EVERY, slice(1, None, 2), EVERY), False),
        "__module.a.experts/One": Piece("a.experts.up", (2,), True),
    }
    whole = {name: torch.from_numpy(each) for name, each in stacks.items()}
    constants = []
    for name, piece in expected.items():
        constant = ops.constant(np.ascontiguousarray(piece.of(whole[piece.stack]).numpy()))
        constant.set_friendly_name(name)
        constants.append(constant)
    other = ops.constant(random.standard_normal((3, 4, 4), np.float32))
    other.set_friendly_name("other")
    model = ov.Model([ops.result(each) for each in (*constants, other)], [])
    assert pieces(model, {*expected, "other"}, whole) == expected
    assert [expected[name].expert for name in expected] == [None, None, None, 2]
    parameters = {**whole, "a.router.weight": torch.zeros(3, 4), "a.norm": torch.zeros(3), "c.up": torch.zeros(3, 4)}
    assert routers(parameters) == {"a.router.weight"}


def test_experts_that_were_not_called_count_as_the_others() -> None:
    diagonal = torch.ones(4, 2, 2)
    diagonal[1:3] = 0
    found = Sensitivity(10, {"stack": diagonal}, {})
    assert found.called("stack").tolist() == [True, False, False, True]
    assert found.cost("stack", torch.ones(4, 2, 2)) == pytest.approx(2 * 8 / 20)
    half = Piece("stack", (EVERY, slice(0, 1), EVERY), False)
    assert found.cost("stack", torch.ones(4, 1, 2), half) == pytest.approx(2 * 4 / 20)


def test_weights_whose_loss_is_not_known_take_8_bits() -> None:
    few, names = Format("int2_sym", 32), ("router", "up", "x/Gather_1", "x/Gather_3")
    candidates = by_name([Candidate(name, each, 8, 4, 0.1) for name in names for each in (few, BACKUP)])
    assert [(each.weight, each.num_parameters, each.size_bytes) for each in candidates[-2:]] == [(REST, 16, 8)] * 2
    table = Table(candidates, (few,), frozenset(), frozenset(), 1, settled=frozenset({"router"}))
    assert [(each.weight, each.format) for each in table.permitted] == [("up", few), (REST, few), ("router", BACKUP)]
    assert [each.weight for each in table._replace(formats=()).permitted] == ["router", "up", REST]
    recipe = plan_recipe({each.weight: each for each in table.permitted}, table)
    assert recipe.weights is not None
    assert [(rule.match, rule.mode) for rule in recipe.weights.rules] == [
        ("router", "int8_asym"), ("up", "int2_sym"), (REST, "int2_sym")
    ]  # fmt: skip
