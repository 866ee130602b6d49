"""What a kept graph is known by: all that decides its bytes, and nothing else."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import llmcompress
from llmcompress.compression.replay import key
from llmcompress.compression.replay.content import content, mapped
from llmcompress.errors import UsageError
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.loaders.tensors import read_checkpoint
from llmcompress.spec import Recipe, WeightCompression, load_recipe


@pytest.fixture(scope="module")
def source(demo_checkpoint: Path) -> Source:
    return resolve(demo_checkpoint)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))


def recipe(*changes: str) -> Recipe:
    return load_recipe("int4-sym", ["weights.group_size=32", *changes])


def digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- what a call does


@pytest.mark.parametrize("wanted", [True, False, None, "background"])
@pytest.mark.parametrize("setting", ["on", "off", "background", "use", "", None])
def test_what_a_call_does(setting: str | None, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if setting is None:
        monkeypatch.delenv(key.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(key.VARIABLE, setting)
    found = key.cache_use(wanted)
    is_off = setting == "off" or wanted is False
    in_background = not is_off and wanted is not True and (wanted == "background" or setting == "background")
    assert found == key.GraphCache(
        uses=not is_off,
        keeps=not is_off and (wanted is True or in_background or setting == "on"),
        is_asked=not is_off and wanted is True,
        in_background=in_background,
    )
    assert key.setting() == (setting or None)


def test_what_a_call_cannot_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(key.VARIABLE, raising=False)
    for wanted in ("on", "no"):
        with pytest.raises(UsageError, match=f"got '{wanted}'; accepted: True, False, 'background'"):
            key.cache_use(wanted)  # type: ignore[arg-type]
    monkeypatch.setenv(key.VARIABLE, "yes")
    with pytest.raises(UsageError, match="got 'yes'; accepted: on, off, background, use"):
        key.setting()


# --- which graphs are kept


def test_which_sources_a_graph_is_kept_of(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(changed: Source, engine: Any = "llmcompress") -> str:
        return key.why_not(changed, recipe(), engine)

    assert reason(source) == ""
    floats = "the source is no checkpoint of floats in safetensors files"
    checkpoint = read_checkpoint(source.path)
    quantized = {**source.config, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    for changes in ({"layout": "ir"}, {"container": checkpoint}, {"config": quantized}):
        assert reason(source._replace(**changes)) == floats, changes
    assert reason(source._replace(text_only=True)) == "it is a part of a vision-language checkpoint"
    own = "an adapter or code of its own belongs to the model"
    adapter: Any = object()
    assert reason(source._replace(trust_remote_code=True)) == reason(source._replace(adapter=adapter)) == own
    assert reason(source, "nncf") == "the arithmetic is NNCF's"
    monkeypatch.setattr(Source, "sees", True)
    assert reason(source) == "a vision-language model is several graphs"
    monkeypatch.delattr(os, "posix_fallocate")
    assert reason(source) == "this system does not reserve room in a file"


@pytest.mark.parametrize("name", ["none", "int8", "int4-sym", "nf4"])
def test_recipes_without_data_are_kept(name: str, source: Source) -> None:
    found = load_recipe(name, ["weights.group_size=32"] if name in ("int4-sym", "nf4") else [])
    assert key.why_not(source, found, "llmcompress") == ""


TEXT = {"dataset": "text.txt"}
MORE = "does more than compress weights without data"
VALUES = "a method searches for codes by the weights' values"
INT4 = {"mode": "int4_sym", "group_size": 32}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"weights": {**INT4, "ratio": 0.5}}, "which layers take int4_sym at ratio 0.5 depends on the weights' values"),
        ({"weights": {**INT4, "awq": True}}, VALUES),
        ({"weights": {**INT4, "rules": [{"match": ".*down.*", "mode": "int8_sym"}]}}, ""),
        ({"weights": {**INT4, "scale_estimation": True}, "calibration": TEXT}, MORE),
        ({"weights": {**INT4, "gptq": True}, "calibration": TEXT}, MORE),
        ({"weights": INT4, "training": {**TEXT, "method": "distillation"}}, MORE),
        ({"weights": INT4, "pruning": {"method": "depth", "layers": [0]}}, MORE),
        ({"weights": INT4, "pruning": {"method": "magnitude", "sparsity": 0.5}}, MORE),
    ],
)
def test_recipes_that_depend_on_values_or_data(given: dict[str, Any], reason: str, source: Source) -> None:
    found = key.why_not(source, Recipe.model_validate({"name": "mine", **given}), "llmcompress")
    assert found in (reason, f"recipe mine {reason}")


def test_methods_that_search_for_codes() -> None:
    for method in ("awq", "scale_estimation", "gptq"):
        assert key._depends_on_values(WeightCompression.model_validate({**INT4, method: True})) == VALUES
    assert key._depends_on_values(WeightCompression.model_validate(INT4)) == ""


# --- the key


def test_the_configuration_holds_what_decides_bytes(source: Source) -> None:
    named = source._replace(config={**source.config, "_name_or_path": "x", "transformers_version": "1", "a": 1})
    found = key.configuration(named, recipe(), "llmcompress")
    plain = {
        name: value for name, value in source.config.items() if name not in ("_name_or_path", "transformers_version")
    }
    generation = json.loads((source.path / "generation_config.json").read_bytes())
    assert found == {
        "config": {**plain, "a": 1},
        "generation_config": {name: value for name, value in generation.items() if name != "transformers_version"},
        "recipe": json.loads(recipe().portable().model_dump_json()),
        "engine": "llmcompress",
        **key.surroundings(),
    }
    json.dumps(found)
    assert key.without_recipe(found) == {**found, "recipe": None, "engine": None}


def test_a_checkpoint_without_settings_of_generation(source: Source, tmp_path: Path) -> None:
    found = key.configuration(source._replace(path=tmp_path), recipe(), "llmcompress")
    assert found["generation_config"] == {}


def test_the_folder_of_a_key(source: Source, tmp_path: Path) -> None:
    configured = {"config": {"a": 1}, "recipe": "r", "engine": "e"}
    found = key.graph_key(source, configured, mapped(read_checkpoint(source.path)))
    headers = [
        [name, tensor.dtype, list(tensor.shape)] for name, tensor in read_checkpoint(source.path).tensors.items()
    ]
    assert found.configuration == configured
    assert found.tensors["headers"] == sorted(headers)
    assert set(found.tensors) == {"headers", "content"}
    assert found.folder == tmp_path / "cache" / "graphs" / f"{digest(configured)[:32]}-{digest(found.tensors)[:32]}"
    assert not key.is_any_kept(configured)
    found.folder.mkdir(parents=True)
    assert key.is_any_kept(configured)
    assert not key.is_any_kept({**configured, "engine": "other"})


def test_versions_code_machine_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = ("NNCF", "OV", "OPENVINO", "OMP", "MKL", "TORCH", "PYTORCH", "ATEN", "DNNL", "ONEDNN")
    for name in list(os.environ):
        if name.startswith(tuple(f"{prefix}_" for prefix in prefixes)):
            monkeypatch.delenv(name)
    for prefix in (*prefixes, "OTHER", "NNCFX"):
        monkeypatch.setenv(f"{prefix}_A", prefix)
    found = key.surroundings.__wrapped__()
    assert found["variables"] == {f"{prefix}_A": prefix for prefix in prefixes}
    assert found["python"] == sys.version
    assert found["versions"]["openvino"] == importlib.metadata.version("openvino")
    assert {"nncf", "optimum-intel", "transformers", "torch", "tokenizers"} <= set(found["versions"])
    assert platform.machine() in found["machine"][0]
    if sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2} if process == 0 else {0})
        assert key.surroundings.__wrapped__()["machine"][2] == 3
    monkeypatch.setattr(key.sys, "platform", "darwin")
    assert key.surroundings.__wrapped__()["machine"][2] == 0


def test_the_code_is_that_of_every_file_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(llmcompress.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(f"{path.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    assert key.surroundings.__wrapped__()["code"] == whole.hexdigest()


# --- what of the values decides the graph


def checkpoint(place: Path, **tensors: Any) -> Any:
    place.mkdir()
    save_file(tensors, place / "model.safetensors")
    return mapped(read_checkpoint(place))


def test_equal_and_uniform_tensors(tmp_path: Path) -> None:
    """Told by their bytes; only of those that begin alike is all looked at."""
    random = np.random.default_rng(0)
    large = random.integers(0, 100, 2_500_000).astype(np.int8)
    late = large.copy()
    late[-1] += 1
    late_uniform = np.zeros(2_500_000, np.int8)
    late_uniform[-1] = 1
    found = content(
        checkpoint(
            tmp_path / "model",
            a=large, b=large, c=late, d=large.reshape(2, -1), e=random.standard_normal(100).astype(np.float32),
            ones=np.ones((3, 5), np.float32), zeros=np.zeros(2_500_000, np.int8), nearly=late_uniform,
            pair=np.array([1, 1], np.int64), single=np.array([7], np.int64), other=np.array([1, 2], np.int64),
            empty=np.empty((0,), np.float32), byte=np.array([3], np.int8), again=random.permutation(100),
            twice=np.arange(40, dtype=np.int16), thrice=np.arange(40, dtype=np.int16),
            same=np.arange(40, dtype=np.int16), left=np.arange(50, dtype=np.int64), right=np.arange(50, dtype=np.int64),
        )
    )  # fmt: skip
    assert found.uniform == {
        "ones": np.float32(1).tobytes().hex(),
        "zeros": "00",
        "pair": np.int64(1).tobytes().hex(),
        "single": np.int64(7).tobytes().hex(),
        "byte": "03",
    }
    assert found.equal == (("a", "b"), ("left", "right"), ("same", "thrice", "twice"))
    assert found.plain() == {"uniform": found.uniform, "equal": [list(names) for names in found.equal]}


def test_tensors_of_fewer_bits_than_a_byte(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\x22\x22")
    assert content(mapped(read_checkpoint(tmp_path))).uniform == {"a": "22"}


def test_what_is_written_to_a_private_map_stays_here(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.int8)
    tensors = checkpoint(tmp_path / "model", a=values)
    assert tensors.bytes_of("a").tobytes() == values.tobytes()
    assert not tensors.bytes_of("a").flags.writeable
    private = mapped(read_checkpoint(tmp_path / "model"), private=True)
    private.bytes_of("a")[:] = 9
    assert private.bytes_of("a").tobytes() == b"\x09" * 4
    assert mapped(read_checkpoint(tmp_path / "model")).bytes_of("a").tobytes() == values.tobytes()
