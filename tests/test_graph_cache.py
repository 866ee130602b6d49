"""A kept graph gives another checkpoint of its configuration the bytes that the whole way gives it, or is not used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from compress_fixture import at_stage, environment, kill_both, run, tree
from fake_hub import COMMIT, FakeHub, running, use
from tiny_models import build_checkpoint

from llmcompress.cli.cache import KINDS, cache_entries, prune_cache
from llmcompress.compression import bin_file, request
from llmcompress.compression.compress import compress
from llmcompress.compression.doubt import DoubtError
from llmcompress.compression.forecast import forecast
from llmcompress.compression.replay import (
    describing,
    keeping,
    key,
    recording,
    replaying,
    skeleton,
    streaming,
    unseen,
)
from llmcompress.compression.replay.content import TensorMemory, content, mapped
from llmcompress.compression.replay.hashing import SourceHashes, begin_hashing
from llmcompress.compression.replay.replaying import Replay, find_replay
from llmcompress.compression.replay.tracing import Origins
from llmcompress.errors import ModelError, UsageError, WriteError
from llmcompress.graph.xml_file import XmlConstant, xml_constants
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.tensors import read_checkpoint
from llmcompress.report.file_names import MODEL_BIN
from llmcompress.runner import compressing
from llmcompress.runner.compressing import CompressJob, compress_loaded
from llmcompress.spec import Access, Recipe, load_recipe
from llmcompress.system.background import LOG, working_on
from llmcompress.system.progress import silent

ALONE = """
import sys
from llmcompress.compression.compress import compress
from llmcompress.spec import load_recipe
report = compress(sys.argv[1], load_recipe("int4-sym", ["weights.group_size=32"]), sys.argv[2])
assert report.measured.replayed
print(*sorted({"torch", "transformers", "optimum", "nncf", "openvino"} & set(sys.modules)))
"""


FILES = ("skeleton.json", "openvino_model.xml", "literals.bin", "config.json")


class Kept(NamedTuple):
    """A cache that holds one graph, and a checkpoint that it was not made from."""

    cache: Path
    first: Path
    other: Path
    whole: Path
    """What the whole way makes of the other."""
    made: recording.FinishedRun
    """The run that the graph was kept of."""


def recipe(*overrides: str) -> Recipe:
    return load_recipe("int4-sym", ["weights.group_size=32", *overrides])


def build(directory: Path, **overrides: Any) -> Path:
    return build_checkpoint(directory, num_key_value_heads=4, num_hidden_layers=1, **overrides)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    place = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(key.VARIABLE, "on")
        patch.setenv("LLMCOMPRESS_CACHE", str(place / "cache"))
        first, other = build(place / "first", seed=0), build(place / "other", seed=1)
        report = compress(first, recipe(), place / "of-first")
        assert not report.measured.replayed
        assert not compress(other, recipe(), place / "whole", graph_cache=False).measured.replayed
        made = recording.FinishedRun(resolve(first), recipe(), "llmcompress", report, place / "of-first", True)
        yield Kept(place / "cache", first, other, place / "whole", made)


@pytest.fixture
def kept_with_uncompressed(once: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """With a cache of the test's own."""
    monkeypatch.setenv(key.VARIABLE, "on")
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    for kind in (key.KIND, "tokenizers"):
        shutil.copytree(once.cache / kind, tmp_path / "cache" / kind)
    return once._replace(cache=tmp_path / "cache")


@pytest.fixture
def kept(kept_with_uncompressed: Kept) -> Kept:
    """What other recipes would be worked out of is not there."""
    shutil.rmtree(uncompressed(kept_with_uncompressed))
    return kept_with_uncompressed


def find(checkpoint: Path, how: Recipe | None = None) -> Replay | None:
    return find_replay(resolve(checkpoint), how or recipe(), "llmcompress", tokenizer=True, progress=silent)


def entry(kept: Kept, kind: str = key.KIND) -> Path:
    """That of the recipe, or the only one."""
    (folder,) = (each for each in (kept.cache / kind).iterdir() if not is_uncompressed(each))
    return folder


def is_uncompressed(folder: Path) -> bool:
    return (folder / "skeleton.json").is_file() and b'"recipe":null,"engine":null' in (
        folder / "skeleton.json"
    ).read_bytes()


def uncompressed(kept: Kept) -> Path:
    (folder,) = filter(is_uncompressed, (kept.cache / key.KIND).iterdir())
    return folder


def without_measured(directory: Path) -> dict[str, bytes]:
    files = tree(directory)
    manifest = json.loads(files["llmcompress.json"])
    del manifest["measured"]
    return {**files, "llmcompress.json": json.dumps(manifest).encode()}


def test_another_checkpoint_gets_the_bytes_of_the_whole_way(kept: Kept, tmp_path: Path) -> None:
    report = compress(kept.other, recipe(), tmp_path / "out")
    assert report.measured.replayed
    assert without_measured(tmp_path / "out") == without_measured(kept.whole)


def test_a_plan_makes_what_is_kept_without_loading_the_model(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []

    def loaded(source: object, **options: object) -> object:
        loads.append(source)
        return load(source, **options)  # type: ignore[arg-type]

    load = compressing.load
    monkeypatch.setattr(compressing, "load", loaded)

    def job(name: str, how: Recipe) -> CompressJob:
        predicted = forecast(resolve(kept.other), how)
        return CompressJob(name, how, tmp_path / name, None, predicted)

    jobs = [job("kept", recipe()), job("new", load_recipe("int8"))]
    assert compress_loaded(str(kept.other), Access(), jobs[:1], progress=silent) == {"kept": None}
    assert not loads
    assert without_measured(tmp_path / "kept") == without_measured(kept.whole)
    shutil.rmtree(tmp_path / "kept")
    assert compress_loaded(str(kept.other), Access(), jobs, progress=silent) == {"kept": None, "new": None}
    assert len(loads) == 1
    measured = [json.loads((tmp_path / each.name / "llmcompress.json").read_bytes())["measured"] for each in jobs]
    assert [each["replayed"] for each in measured] == [True, False]


def test_neither_torch_nor_the_exporter_nor_openvino_is_imported(kept: Kept, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(kept.other), str(tmp_path / "out")]
    surroundings = environment(LLMCOMPRESS_CACHE=kept.cache, **{key.VARIABLE: "on"})
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        pytest.param("int8", (), marks=pytest.mark.slow),
        pytest.param("int4", ("weights.group_size=32",), marks=pytest.mark.slow),
        pytest.param("nf4", ("weights.group_size=32",), marks=pytest.mark.slow),
        pytest.param("fp8", ("weights.group_size=32",), marks=pytest.mark.slow),
        pytest.param("none", (), marks=pytest.mark.slow),
    ],
)
def test_every_data_free_recipe_is_kept(name: str, overrides: tuple[str, ...], kept: Kept, tmp_path: Path) -> None:
    how = load_recipe(name, overrides)
    compress(kept.first, how, tmp_path / "first")
    assert compress(kept.other, how, tmp_path / "out").measured.replayed
    compress(kept.other, how, tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        *((name, {}) for name in ("gpt2", "falcon", "gpt_neox", "phi3", "opt", "bloom")),
        ("qwen2", {"num_key_value_heads": 4}),
        # Experts are put together; of fewer, NNCF computes the router itself.
        ("qwen3_moe", {"num_experts": 80, "num_hidden_layers": 1, "num_key_value_heads": 4}),
        ("mixtral", {"num_local_experts": 80, "num_hidden_layers": 1, "num_key_value_heads": 4}),
    ],
)
def test_every_architecture_gets_the_bytes_of_the_whole_way(
    model_type: str, fields: dict[str, Any], kept: Kept, tmp_path: Path
) -> None:
    first, other = (build_checkpoint(tmp_path / f"c{seed}", model_type, seed=seed, **fields) for seed in (0, 1))
    compress(first, recipe(), tmp_path / "first")
    assert compress(other, recipe(), tmp_path / "out").measured.replayed
    compress(other, recipe(), tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")


def test_constants_that_are_equal_are_stored_once_as_openvino_does(kept: Kept, tmp_path: Path) -> None:
    """Codes of twice a weight are those of the weight; of two layers that differ so the real file has one."""
    checkpoint = build(tmp_path / "twice", seed=3)
    _change(
        checkpoint,
        "model.layers.0.mlp.up_proj.weight",
        lambda _, all_of: _twice(all_of["model.layers.0.mlp.gate_proj.weight"]),
    )
    assert compress(checkpoint, recipe(), tmp_path / "out").measured.replayed
    compress(checkpoint, recipe(), tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")
    assert (tmp_path / "out" / "openvino_model.bin").stat().st_size < (kept.whole / "openvino_model.bin").stat().st_size


def _change(checkpoint: Path, name: str, change: Callable[[np.ndarray, dict[str, np.ndarray]], np.ndarray]) -> None:
    """Change the bits of a tensor of bf16."""
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    path = checkpoint / "model.safetensors"
    tensors = load_torch(path)
    bits = {each: tensor.view(torch.uint16).numpy() for each, tensor in tensors.items()}
    tensors[name] = torch.from_numpy(change(bits[name], bits).copy()).view(torch.bfloat16)
    save_torch({each: tensor.clone() for each, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _with_nan(bits: np.ndarray, _: dict[str, np.ndarray]) -> np.ndarray:
    return np.where(np.arange(bits.size).reshape(bits.shape) == 5, np.uint16(0x7FC0), bits)


def _twice(bits: np.ndarray) -> np.ndarray:
    """The next power of two, where the number is not zero: one more in the exponent."""
    return np.where(bits & 0x7FFF, bits + np.uint16(1 << 7), bits).astype(np.uint16)


def _damage_text(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return damage


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-7])

    return cut


def _of_another_key(folder: Path) -> None:
    """An entry that is whole and belongs to another configuration, in this one's place."""
    _, _, body = (folder / "skeleton.json").read_bytes().partition(b"\n")
    changed = body.replace(b'"engine":"llmcompress"', b'"engine":"somebody"')
    assert changed != body
    sealed = hashlib.sha256(changed).hexdigest().encode()
    (folder / "skeleton.json").write_bytes(sealed + b"\n" + changed)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        *((key.KIND, _damage_text(name)) for name in FILES),
        *((key.KIND, _cut(name)) for name in FILES),
        (key.KIND, lambda folder: (folder / "literals.bin").unlink()),
        (key.KIND, _of_another_key),
        (key.KIND, lambda folder: shutil.move(folder, folder.with_name(f".{folder.name}-1234"))),
        ("tokenizers", _damage_text("files/openvino_tokenizer.xml")),
        ("tokenizers", _cut("verdict.json")),
    ],
)
def test_a_damaged_or_foreign_entry_is_not_used(kind: str, spoil: Callable[[Path], None], kept: Kept) -> None:
    assert is_kept(kept.other, kind)
    spoil(entry(kept, kind))
    assert not is_kept(kept.other, kind)


def is_kept(checkpoint: Path, kind: str) -> bool:
    found = find(checkpoint)
    return found is not None and (kind == key.KIND or found.texts is not None)


def test_an_unseen_tokenizer_is_converted_and_kept(kept: Kept, tmp_path: Path) -> None:
    copy = shutil.copytree(kept.other, tmp_path / "copy")
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|assistant|>", "<|answer|>"))
    assert not is_kept(copy, "tokenizers")
    assert compress(copy, recipe(), tmp_path / "out").measured.replayed
    assert is_kept(copy, "tokenizers")
    compress(copy, recipe(), tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")


@pytest.mark.slow
def test_a_checkpoint_in_shards_has_the_graph_of_one_in_a_file(kept: Kept, tmp_path: Path) -> None:
    shards = build(tmp_path / "shards", seed=1, max_shard_size="200KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert compress(shards, recipe(), tmp_path / "out").measured.replayed
    compress(shards, recipe(), tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_precisions_are_kept(dtype: str, kept: Kept, tmp_path: Path) -> None:
    first, other = (build(tmp_path / f"c{seed}", seed=seed, dtype=dtype) for seed in (0, 1))
    compress(first, recipe(), tmp_path / "first")
    assert compress(other, recipe(), tmp_path / "out").measured.replayed
    compress(other, recipe(), tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")


@pytest.mark.slow
def test_an_unseen_tokenizer_is_the_same_without_torch(kept: Kept, tmp_path: Path) -> None:
    """As the command does it, whose worker leaves torch out."""
    shutil.rmtree(entry(kept, "tokenizers"))
    options = ("-r", "int4-sym", "--set", "weights.group_size=32", "-o", tmp_path / "out")
    done = run("compress", kept.other, *options, LLMCOMPRESS_CACHE=kept.cache)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "llmcompress.json").read_text())["measured"]["peak_rss_bytes"] < 5e8
    assert without_measured(tmp_path / "out") == without_measured(kept.whole)


def test_a_damaged_entry_is_replaced(kept: Kept) -> None:
    _cut("literals.bin")(entry(kept))
    assert recording.keep_run(kept.made, silent) == ""
    assert find(kept.other) is not None


@pytest.mark.parametrize("what", ["versions", "code", "machine", "variables"])
def test_an_entry_of_other_surroundings_is_not_read(what: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**key.surroundings(), what: "another"}
    monkeypatch.setattr(key, "surroundings", lambda: changed)
    assert find(kept.other) is None


def test_a_configuration_that_differs_in_names_alone_is_the_same(kept: Kept, tmp_path: Path) -> None:
    copy = shutil.copytree(kept.other, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "_name_or_path": "mine"}))
    assert find(copy) is not None
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0, "rms_norm_eps": 1e-4}))
    assert find(copy) is None


def test_where_tensors_are_equal_or_uniform_the_graph_is_another(kept: Kept, tmp_path: Path) -> None:
    """The converter makes one constant of two, and leaves out a product with ones."""
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    ones = shutil.copytree(kept.other, tmp_path / "ones")
    _change(ones, "model.norm.weight", lambda bits, _: np.full_like(bits, 0x3F80))
    equal = shutil.copytree(kept.other, tmp_path / "equal")
    _change(equal, up, lambda _, bits: bits[gate])
    assert find(kept.other) is not None
    assert find(ones) is None
    assert find(equal) is None
    assert content(mapped(read_checkpoint(ones))).uniform == {"model.norm.weight": "803f"}
    assert content(mapped(read_checkpoint(equal))).equal == ((gate, up),)


def test_a_weight_that_is_not_finite_is_refused_as_always(kept: Kept, tmp_path: Path) -> None:
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"):
        copy = shutil.copytree(kept.other, tmp_path / name)
        _change(copy, name, _with_nan)
        assert find(copy) is not None
        with pytest.raises(ModelError, match="NaN"):
            compress(copy, recipe(), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_file_that_changes_while_it_is_read_leaves_a_doubt(kept: Kept, tmp_path: Path) -> None:
    copy = shutil.copytree(kept.other, tmp_path / "copy")
    found = find(copy)
    assert found is not None
    steps = []

    def touch(step: object) -> None:
        steps.append(step)
        (copy / "model.safetensors").touch()

    with (tmp_path / "model.bin").open("xb+") as file, pytest.raises(DoubtError, match="changed"):
        streaming.stream(found.graph, found.tensors, found.hashes, file, 1, touch)
    assert steps


def test_the_device_takes_weights_while_others_are_computed(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bin_file, "SYNC_BYTES", 1)
    threads = []

    def synced(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().name == MODEL_BIN:
            threads.append(threading.current_thread())
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", synced)
    assert compress(kept.other, recipe(), tmp_path / "out").measured.replayed
    assert without_measured(tmp_path / "out") == without_measured(kept.whole)
    # Once more at the end, by the one that puts the directory in place.
    assert len(threads) > 1
    assert [thread is threading.main_thread() for thread in threads] == [False] * (len(threads) - 1) + [True]


def test_a_device_that_refuses_some_of_it_meanwhile_is_told_of(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bin_file, "SYNC_BYTES", 1)

    def refused(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(WriteError, match="Input/output error"):
        compress(kept.other, recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_only_compared_does_not_reach_the_device(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bin_file, "SYNC_BYTES", 1)

    def refused(descriptor: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", refused)
    _cut("literals.bin")(entry(kept))
    assert recording.keep_run(kept.made, silent) == ""
    assert find(kept.other) is not None


def test_files_are_hashed_no_longer_than_somebody_waits(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[SourceHashes] = []

    def noted(tensors: TensorMemory) -> SourceHashes:
        begun.append(begin_hashing(tensors))
        return begun[-1]

    monkeypatch.setattr(replaying, "begin_hashing", noted)
    _cut("literals.bin")(entry(kept))
    assert find(kept.other) is None
    assert [hashes.ended.is_set() for hashes in begun] == [True]
    with pytest.raises(RuntimeError, match="after shutdown"):
        begun[0].pool.submit(print)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (recipe("weights.ratio=0.8"), "ratio 0.8"),
        (recipe("weights.awq=true"), "searches for codes"),
        (load_recipe("int8-ptq", ["calibration.dataset=some.txt"]), "does more than compress weights"),
    ],
)
def test_what_depends_on_values_goes_the_whole_way(how: Recipe, reason: str, kept: Kept) -> None:
    assert reason in key.why_not(resolve(kept.other), how, "llmcompress")
    assert find(kept.other, how) is None


def test_other_sources_go_the_whole_way(kept: Kept) -> None:
    source = resolve(kept.other)
    assert key.why_not(source, recipe(), "llmcompress") == ""
    assert "no checkpoint of floats" in key.why_not(source._replace(layout="ir"), recipe(), "llmcompress")
    assert "code of its own" in key.why_not(source._replace(trust_remote_code=True), recipe(), "llmcompress")
    assert "NNCF's" in key.why_not(source, recipe(), "nncf")


def test_it_is_switched_off_by_a_parameter_and_by_the_environment(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    neither, use, keep = key.GraphCache(), key.GraphCache(uses=True), key.GraphCache(uses=True, keeps=True)
    asked, beside = keep._replace(is_asked=True), keep._replace(in_background=True)
    calls: tuple[key.GraphCacheOption, ...] = (True, None, False, "background")
    assert [key.cache_use(wanted) for wanted in calls] == [asked, keep, neither, beside]
    monkeypatch.setenv(key.VARIABLE, "background")
    assert [key.cache_use(wanted) for wanted in calls] == [asked, beside, neither, beside]
    monkeypatch.delenv(key.VARIABLE)
    assert [key.cache_use(wanted) for wanted in calls] == [asked, use, neither, beside]
    monkeypatch.setenv(key.VARIABLE, "use")
    assert [key.cache_use(wanted) for wanted in calls] == [asked, use, neither, beside]
    monkeypatch.setenv(key.VARIABLE, "off")
    assert [key.cache_use(wanted) for wanted in calls] == [neither, neither, neither, neither]
    monkeypatch.setenv(key.VARIABLE, "no")
    with pytest.raises(UsageError, match="got 'no'; accepted: on, off"):
        key.cache_use(True)
    monkeypatch.delenv(key.VARIABLE)
    with pytest.raises(UsageError, match="got 'later'; accepted: True, False, 'background'"):
        key.cache_use("later")  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [True, None])
def test_who_asks_for_a_graph_that_cannot_be_kept_is_told(
    asked: bool | None, kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compress(kept.first, recipe("weights.ratio=0.5"), tmp_path / "out", graph_cache=asked)
    told = [record.getMessage() for record in caplog.records if "the graph is not kept" in record.getMessage()]
    assert len(told) == bool(asked)
    assert all("which layers take int4_sym at ratio 0.5 depends on the weights' values" in each for each in told)


def test_unasked_a_kept_graph_is_used_and_none_is_kept(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(key.VARIABLE)
    before = sorted(path.name for path in (kept.cache / key.KIND).iterdir())
    assert compress(kept.other, recipe(), tmp_path / "used").measured.replayed
    new = recipe().model_copy(update={"weights": recipe().weights.model_copy(update={"group_size": 16})})
    assert not compress(kept.other, new, tmp_path / "new").measured.replayed
    assert sorted(path.name for path in (kept.cache / key.KIND).iterdir()) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_recording_leaves_no_entry_and_ends_the_run_well(
    stop: BaseException, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise stop

    shutil.rmtree(entry(kept))
    monkeypatch.setattr(recording, "_graphs", interrupted)
    assert recording.keep_run(kept.made, silent) == "it was interrupted"
    assert list((kept.cache / key.KIND).iterdir()) == []
    assert find(kept.other) is None


def test_an_artifact_that_is_not_what_the_graph_gives_keeps_none(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where something wrote to it, or a constant comes from weights in a way that is not known."""
    shutil.rmtree(entry(kept))
    changed = kept.made._replace(artifact=shutil.copytree(kept.made.artifact, tmp_path / "changed"))
    literal = _a_literal(kept)
    with (changed.artifact / "openvino_model.bin").open("r+b") as file:
        file.seek(literal.offset)
        file.write(bytes(literal.size))
    reason = recording.keep_run(changed, silent)
    assert "rotary" in reason
    assert "depends on weights in a way that is not known" in reason
    # Of the same configuration the next run does not try again.
    monkeypatch.setattr(recording, "_graphs", lambda *_: pytest.fail("tried again"))
    assert recording.keep_run(kept.made, silent) == reason
    assert find(kept.other) is None


def test_a_graph_that_gives_other_bytes_is_not_kept(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find(kept.first)
    assert found is not None
    weights = found.graph.skeleton.weights
    swapped = found.graph.skeleton.model_copy(update={"weights": weights[::-1]})
    shutil.rmtree(entry(kept))
    others = recording._Made(found.graph._replace(skeleton=swapped), found.graph)
    monkeypatch.setattr(recording, "_graphs", lambda *_: others)
    assert recording.keep_run(kept.made, silent)
    assert find(kept.other) is None


def _a_literal(kept: Kept) -> XmlConstant:
    """Of no tensor: the frequencies of the positions."""
    constants = xml_constants((kept.made.artifact / "openvino_model.xml").read_bytes())
    return max((each for each in constants if "rotary" in each.name), key=lambda each: each.size)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_keeps_the_graph_leaves_the_artifact(kept: Kept, tmp_path: Path) -> None:
    shutil.rmtree(entry(kept))
    output = tmp_path / "out"

    def kill(process: subprocess.Popen[str]) -> None:
        while not (output / "llmcompress.json").is_file():
            time.sleep(0.01)
        kill_both(process)

    options = ("-r", "int4-sym", "--set", "weights.group_size=32", "-o", output)
    how = {"LLMCOMPRESS_CACHE": kept.cache, key.VARIABLE: "on"}
    at_stage(["compress", kept.other, *options], "convert the tokenizer", kill, **how)
    assert without_measured(output) == without_measured(kept.whole)
    assert find(kept.other) is None
    assert run("compress", kept.other, *options, "--overwrite", **how).returncode == 0
    assert find(kept.other) is not None


def test_of_two_runs_that_keep_the_same_graph_one_stays_whole(tmp_path: Path) -> None:
    folder = tmp_path / "graphs" / "key"
    contents = [{"one": bytes([number]) * 100_000, "two": bytes([number]) * 100_000} for number in range(8)]
    threads = [threading.Thread(target=skeleton.put_folder, args=(folder, files)) for files in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found in contents
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_the_cache_lists_and_prunes_them(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.cli import cache

    assert {key.KIND, "tokenizers"} <= set(KINDS)
    assert {each.kind for each in cache_entries()} == {key.KIND, "tokenizers"}
    monkeypatch.setattr(cache, "RECENT_S", -1.0)
    assert prune_cache(kinds=(key.KIND,)).num_removed == 1
    assert find(kept.other) is None


def test_origins_are_found_of_copies_turned_joined_widened_and_cut() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(96, 512, generator=generator).to(torch.bfloat16) for name in "abc"}
    origins = Origins(tensors)

    def bits(tensor: torch.Tensor) -> np.ndarray:
        return tensor.contiguous().view(torch.uint16).numpy().copy()

    def told(array: np.ndarray, element: str = "bf16") -> list[tuple[object, ...]]:
        found = origins.of(array, element)
        assert found is not None
        return [(piece.tensor, piece.start, piece.stop, piece.turned) for piece in found.pieces]

    whole = 96 * 512 * 2
    assert told(tensors["b"].view(torch.uint16).numpy()) == [("b", 0, whole, None)]
    assert told(bits(tensors["b"].T)) == [("b", 0, whole, (96, 512))]
    assert told(bits(torch.stack([tensors["c"], tensors["a"]]))) == [("c", 0, whole, None), ("a", 0, whole, None)]
    assert told(bits(tensors["a"][10:90])) == [("a", 10 * 1024, 90 * 1024, None)]
    assert told(tensors["a"].float().numpy(), "f32") == [("a", 0, whole, None)]
    assert origins.of(bits(tensors["a"] * 2), "bf16") is None


def test_a_checkpoint_of_the_hub_has_the_graph_of_a_directory(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(FakeHub(files={path.name: path.read_bytes() for path in kept.other.iterdir()})) as hub:
        use(hub.url, tmp_path / "hub", monkeypatch)
        report = compress("acme/tiny", recipe(), tmp_path / "out")
    assert report.measured.replayed
    assert (report.provenance.id, report.provenance.revision) == ("acme/tiny", COMMIT)
    ours, whole = tree(tmp_path / "out"), tree(kept.whole)
    assert {name for name in whole if ours.get(name) != whole[name]} == {"llmcompress.json"}


def test_a_command_keeps_in_the_background_unless_it_ends_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("llmcompress.compression.compress.compress", lambda graph_cache: asked.append(graph_cache))
    monkeypatch.setattr("llmcompress.system.environment._ends_after_this_call", False)
    monkeypatch.setattr(request.os, "getppid", lambda: os.getpid())
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv(key.VARIABLE)
    for wanted in (None, True, False):
        request.requested(graph_cache=wanted)
    monkeypatch.setenv("CI", "true")
    request.requested(graph_cache=None)
    monkeypatch.delenv("CI")
    # As in a container that it is the first process of.
    monkeypatch.setattr(request.os, "getppid", lambda: 1)
    request.requested(graph_cache=None)
    monkeypatch.setattr(request.os, "getppid", lambda: os.getpid())
    monkeypatch.setenv(key.VARIABLE, "use")
    request.requested(graph_cache=None)
    assert asked == ["background", True, False, None, None, None]


def test_in_the_background_a_graph_is_kept_as_before_the_call_ends(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start(function: Callable[..., None], kwargs: dict[str, Any], *, what: str) -> bool:
        # As another process gets it.
        started.append((pickle.loads(pickle.dumps((function, kwargs))), what))
        return True

    monkeypatch.setattr(keeping, "start_background", start)
    before = read(entry(kept))
    shutil.rmtree(entry(kept))
    compress(kept.first, recipe(), tmp_path / "first", graph_cache="background")
    assert find(kept.other) is None
    (((function, kwargs), what),) = started
    assert what == "keeps the graph of first by int4-sym"
    with threads_kept():
        function(**kwargs)
    took = skeleton.read_keeping(entry(kept))
    assert took is not None
    assert took.in_background
    assert took.processor_s > 0
    after = read(entry(kept))
    assert {name for name in after if after[name] != before.get(name)} <= {"keeping.json", "skeleton.json"}
    assert compress(kept.other, recipe(), tmp_path / "out").measured.replayed
    assert without_measured(tmp_path / "out") == without_measured(kept.whole)


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_in_the_background_nothing_is_kept_where_there_is_no_room(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(entry(kept))
    monkeypatch.setattr(keeping, "free_bytes", lambda _: 1000)
    with caplog.at_level("INFO", "llmcompress"):
        keeping.keep_beside(kept.made)
        monkeypatch.setattr(keeping, "memory", lambda: SimpleNamespace(available=1000))
        keeping.keep_beside(kept.made)
    disk, ram = (record.getMessage() for record in caplog.records if record.name == keeping.__name__)
    assert "first by int4-sym: not kept: " in disk
    assert "of the disk should be free beside other work" in disk
    assert "of memory should be free beside other work" in ram
    assert find(kept.other) is None


def test_what_cannot_be_kept_starts_no_process(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "start_background", lambda *_, **__: False)
    assert "another one is being kept" in keeping.keep_in_background(kept.made, silent)
    monkeypatch.setattr(keeping, "start_background", lambda *_, **__: pytest.fail("started"))
    searching = kept.made._replace(recipe=recipe("weights.awq=true"))
    assert "searches for codes" in keeping.keep_in_background(searching, silent)


def _let_it_have_its_share(pid: int) -> None:
    """On a machine that has something else to do it would never end; only root may lift it all the way."""
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        for child in psutil.Process(pid).children():
            for thread in child.threads():
                os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, thread.id, 0)


@pytest.mark.slow
def test_a_command_leaves_a_process_that_keeps_the_graph(kept: Kept, tmp_path: Path) -> None:
    shutil.rmtree(entry(kept))
    options = ("-r", "int4-sym", "--set", "weights.group_size=32", "-o", tmp_path / "out")
    how = {"LLMCOMPRESS_CACHE": kept.cache, key.VARIABLE: "background"}
    assert run("compress", kept.other, *options, **how).returncode == 0
    listed = run("cache", "list", **how).stdout
    deadline = time.monotonic() + 300
    while (work := working_on()) is not None:
        assert time.monotonic() < deadline
        _let_it_have_its_share(work.pid)
        time.sleep(0.1)
    assert "keeps the graph of other by int4-sym, for" in listed
    assert "other by int4-sym: kept" in (kept.cache / LOG).read_text()
    assert "of a processor, apart from its run" in run("cache", "list", **how).stdout
    assert find(kept.first) is not None


@pytest.mark.parametrize(
    "how",
    [
        load_recipe("int8"),
        *(
            pytest.param(load_recipe(name, overrides), marks=pytest.mark.slow)
            for name, overrides in (
                ("int8-sym", ()),
                ("int4", ("weights.group_size=64",)),
                ("int4", ("weights.group_size=32", "weights.all_layers=true")),
                ("nf4", ("weights.group_size=32",)),
                ("fp8", ("weights.group_size=32",)),
                ("none", ()),
            )
        ),
    ],
    ids=lambda how: how.name,
)
def test_an_unseen_recipe_gives_the_bytes_of_the_whole_way(
    how: Recipe, kept_with_uncompressed: Kept, tmp_path: Path
) -> None:
    kept = kept_with_uncompressed
    assert compress(kept.other, how, tmp_path / "out").measured.replayed
    compress(kept.other, how, tmp_path / "whole", graph_cache=False)
    assert without_measured(tmp_path / "out") == without_measured(tmp_path / "whole")


def test_an_unseen_recipe_that_nncf_computes_goes_the_whole_way(kept_with_uncompressed: Kept) -> None:
    mxfp4 = load_recipe("mxfp4")
    assert find(kept_with_uncompressed.other, mxfp4) is None
    reasons = [path.read_text() for path in (kept_with_uncompressed.cache / key.KIND).glob("*/reason.txt")]
    assert len(reasons) == 1
    assert reasons[0].startswith("NNCF computes a weight of shape")


def test_an_unseen_recipe_of_which_a_run_warns_goes_the_whole_way(kept_with_uncompressed: Kept) -> None:
    found = skeleton.read_graph(
        uncompressed(kept_with_uncompressed), json.loads(uncompressed_json(kept_with_uncompressed))["key"]
    )
    assert found is not None
    odd = load_recipe("int4-sym", ["weights.group_size=96", "weights.group_size_fallback=adjust"])
    with pytest.raises(describing.NotKeptError, match="a run warns"):
        unseen.work_out(found, odd)


def uncompressed_json(kept: Kept) -> bytes:
    return (uncompressed(kept) / "skeleton.json").read_bytes().partition(b"\n")[2]


def test_an_uncompressed_graph_that_gives_something_else_is_not_kept(kept_with_uncompressed: Kept) -> None:
    kept = kept_with_uncompressed
    sealed = skeleton.read_graph(uncompressed(kept), json.loads(uncompressed_json(kept))["key"])
    of_recipe = skeleton.read_graph(
        entry(kept), json.loads((entry(kept) / "skeleton.json").read_bytes().partition(b"\n")[2])["key"]
    )
    assert sealed is not None
    assert of_recipe is not None
    took = skeleton.read_keeping(entry(kept))
    assert took is not None
    place = uncompressed(kept)
    shutil.rmtree(place)
    literal = of_recipe._replace(literals=bytes(len(of_recipe.literals)))
    unseen.keep_uncompressed(sealed, literal, recipe(), took)
    assert "differs from the artifact" in str(skeleton.why_not_kept(place))
    unseen.keep_uncompressed(sealed, of_recipe, recipe(), took)
    assert skeleton.why_not_kept(place) is not None
