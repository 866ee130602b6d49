"""Weights that are compressed where they are saved: the bytes are those of NNCF's own way, or that way is taken."""

from __future__ import annotations

import errno
import filecmp
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as opset
from safetensors.torch import load_file, save_file
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.compression import late_codes
from llmcompress.compression.coding import WeightLayout
from llmcompress.compression.compressible import can_be_late
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.kernels.integers import Integers
from llmcompress.compression.nncf.noted_codes import NotedWeight
from llmcompress.errors import WriteError
from llmcompress.spec import load_recipe

FILES = ("openvino_model.xml", "openvino_model.bin")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("late") / "llama", hidden_size=128, intermediate_size=256)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How the late saving of every graph ended."""
    ends: list[str] = []
    save = late_codes.save_with_codes

    def noted(*args: Any) -> object:
        ends.append("doubt")
        record = save(*args)
        ends[-1] = "done"
        return record

    monkeypatch.setattr(late_codes, "save_with_codes", noted)
    return ends


def same_as_nncf(source: Path, recipe: llmcompress.Recipe, folder: Path, **options: Any) -> bool:
    """Compress by both engines; whether the graphs are the same files."""
    llmcompress.compress(source, recipe, folder / "ours", graph_cache=False, **options)
    llmcompress.compress(source, recipe, folder / "nncf", engine="nncf", graph_cache=False, **options)
    return all(filecmp.cmp(folder / "ours" / name, folder / "nncf" / name, shallow=False) for name in FILES)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("int8", []),
        ("int8-sym", []),
        ("int4", ["weights.group_size=32"]),
        ("int4-sym", ["weights.group_size=32"]),
        # Which layers take 4 bits is decided by weights that are still there.
        ("int4-mixed", ["weights.group_size=32", "weights.ratio=0.5"]),
        ("nf4", ["weights.group_size=32"]),
        ("fp8", []),
        ("int4-sym", ["weights.group_size=32", "weights.mode=int3_sym"]),
        # NNCF makes its codes itself, and at once.
        ("mxfp4", []),
    ],
)
def test_what_is_saved_is_what_nncf_makes(
    name: str, changes: list[str], checkpoint: Path, tmp_path: Path, saved: list[str]
) -> None:
    recipe = load_recipe(name, changes)
    assert can_be_late(recipe, "llmcompress")
    assert same_as_nncf(checkpoint, recipe, tmp_path)
    assert saved == ["done"]


def test_equal_weights_are_stored_once(checkpoint: Path, tmp_path: Path, saved: list[str]) -> None:
    recipe, twins = load_recipe("int4-sym", ["weights.group_size=32"]), tmp_path / "twins"
    build_checkpoint(twins, hidden_size=128, intermediate_size=256)
    tensors = load_file(twins / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].clone()
    save_file(tensors, twins / "model.safetensors", metadata={"format": "pt"})
    assert same_as_nncf(twins, recipe, tmp_path)
    llmcompress.compress(checkpoint, recipe, tmp_path / "all", graph_cache=False)
    assert (tmp_path / "ours" / FILES[1]).stat().st_size < (tmp_path / "all" / FILES[1]).stat().st_size
    assert saved == ["done", "done"]


@pytest.mark.parametrize(
    ("values", "options"),
    [("overflow", {}), ("nan", {"allow_nonfinite": True})],
)
def test_what_the_kernels_do_not_make_goes_nncfs_way(
    values: str, options: dict[str, bool], tmp_path: Path, saved: list[str]
) -> None:
    odd = build_checkpoint(tmp_path / "odd", hidden_size=128, intermediate_size=256)
    tensors = load_file(odd / "model.safetensors")
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    weight[3, 5] = float("nan") if values == "nan" else 1e7
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    assert same_as_nncf(odd, load_recipe("int4-sym", ["weights.group_size=32"]), tmp_path, **options)
    assert saved == ["doubt"]


def test_a_loaded_model_stays_as_it_was(checkpoint: Path, tmp_path: Path, saved: list[str]) -> None:
    loaded = llmcompress.load(checkpoint)
    recipe = load_recipe("int4-sym", ["weights.group_size=32"])
    for name in ("first", "second"):
        llmcompress.compress(loaded, recipe, tmp_path / name)
    llmcompress.compress(checkpoint, recipe, tmp_path / "nncf", engine="nncf", graph_cache=False)
    for name in ("first", "second"):
        assert all(filecmp.cmp(tmp_path / name / file, tmp_path / "nncf" / file, shallow=False) for file in FILES)
    assert saved == ["done", "done"]


def test_a_disk_without_room_is_told_of_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WriteError, match="No space left on device"):
        llmcompress.compress(checkpoint, load_recipe("int8"), tmp_path / "out", graph_cache=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "changes", "engine"),
    [
        ("int8", [], "nncf"),
        ("none", [], "llmcompress"),
        ("int4-awq-se", ["calibration.dataset=texts.txt"], "llmcompress"),
        ("int4", ["weights.awq=true"], "llmcompress"),
        ("int4", ["pruning={method: magnitude, sparsity: 0.5}"], "llmcompress"),
    ],
)
def test_codes_that_depend_on_more_than_their_weight_are_made_at_once(
    name: str, changes: list[str], engine: Any
) -> None:
    assert not can_be_late(load_recipe(name, changes), engine)


def test_a_system_that_reserves_no_room_makes_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    assert not can_be_late(load_recipe("int8"), "llmcompress")


def graph(*names: str) -> ov.Model:
    """Adds constants of eight bytes to its input, those called scale in half precision."""
    given = opset.parameter([8], np.uint8, name="input")
    total: Any = given
    for number, name in enumerate(names):
        is_scale = name.endswith("/scale")
        constant = opset.constant(np.arange(number, number + 8, dtype=np.float16 if is_scale else np.uint8))
        constant.set_friendly_name(name)
        total = opset.add(total, opset.convert(constant, np.uint8) if is_scale else constant)
    return ov.Model([total], [given], "graph")


def weight(num_bytes: int) -> NotedWeight:
    codes = Integers(np.float32(-8), np.float32(7), False, np.int32(0), 4)
    return NotedWeight(np.zeros(num_bytes, np.uint8), WeightLayout("bf16", 8, 1, num_bytes // 16, codes))


@pytest.mark.parametrize(
    ("make", "codes", "message"),
    [
        (lambda: graph("a", "a"), {}, "constants are not told apart by their names"),
        (lambda: graph("a"), {"b": weight(16)}, "what belongs to b is not in the graph"),
        (lambda: graph("a"), {"a": weight(16)}, "what belongs to a is not in the graph"),
        (lambda: graph("a/scale", "a"), {"a": weight(32)}, "a/scale comes before the codes that it belongs to"),
        (lambda: graph("a", "a/scale"), {"a": weight(64)}, "constant a has another size"),
        (lambda: graph("a", "a/scale"), {"a": weight(32)}, "constant a/scale has another size"),
    ],
)
def test_a_graph_that_names_do_not_explain_is_not_saved(
    make: Callable[[], ov.Model], codes: dict[str, NotedWeight], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DoubtError, match=message):
        late_codes.save_with_codes(make(), codes, tmp_path / "model.xml", lambda _: None)
