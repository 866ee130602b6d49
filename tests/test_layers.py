"""Layers: other versions of transformers in front of a worker's search path. Wheels come from a folder."""

from __future__ import annotations

import base64
import filecmp
import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, FakeHub, environment, running, use
from layers_fixture import folder_with, look_around, make, make_and_compress_by_stock
from packaging.specifiers import SpecifierSet

from llmcompress.artifact import read_manifest
from llmcompress.cli import layers as layers_of_cli
from llmcompress.cli import progress as progress_of_cli
from llmcompress.cli import run as run_command
from llmcompress.errors import LockedError, ResourceError, UsageError
from llmcompress.loaders import environments, layer_folders
from llmcompress.loaders.environments import (
    LAYERS,
    LayerMissingError,
    TransformersLayer,
    fitting_layer,
    needed_layer,
    on_layer,
)
from llmcompress.loaders.exporter import declared_windows
from llmcompress.loaders.layer_folders import folder_of, install, remove
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.system.cache import lock_of
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import Progress, silent

VERSION = "5.0.0"
INSTALLED = "5.5.4"
"""The version that these tests are written for."""


def wheel(directory: Path, version: str = VERSION) -> str:
    """Write a wheel of a stand-in for transformers, and return its hash."""
    info = f"transformers-{version}.dist-info"
    files = {
        "transformers/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def recorded(text: str) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")

    rows = [f"{name},sha256={recorded(text)},{len(text)}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    path = directory / f"transformers-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersLayer:
    """A layer whose wheel is in a folder, with a cache of its own and no network."""
    house, pins = tmp_path / "wheels", tmp_path / "pins"
    house.mkdir()
    pins.mkdir()
    (pins / f"transformers-{VERSION}.txt").write_text(f"transformers=={VERSION} --hash=sha256:{wheel(house)}\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", pins)
    for module in (environments, layers_of_cli):
        monkeypatch.setattr(module, "LAYERS", (TransformersLayer(VERSION),))
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(house))
    monkeypatch.delenv("LLMCOMPRESS_LAYERS", raising=False)
    return TransformersLayer(VERSION)


@pytest.fixture
def other_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the version were installed that these tests are written for."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: INSTALLED if name == "transformers" else version(name))


def source(model_type: str, path: Path = Path("m")) -> Source:
    return Source("checkpoint", "checkpoint", path, {"model_type": model_type})


@pytest.fixture
def gemma2(tmp_path: Path) -> Source:
    """A source of that type, of which nothing is read."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").touch()
    return source("gemma2", tmp_path / "m")


@pytest.mark.usefixtures("other_transformers")
def test_the_newest_tested_version_in_the_window_is_taken() -> None:
    chosen = {name: layer.version for name in declared_windows() if (layer := fitting_layer(name)) is not None}
    expected = {
        "gemma2": "5.0.0",
        "gemma3_text": "5.0.0",
        "qwen3_5_text": "5.2.0",
        "mamba": "5.2.0",
        "lfm2": "5.2.0",
        "llama4_text": "4.57.6",
        "exaone4": "4.57.6",
        "zamba2": "4.57.6",
        "chatglm": "4.55.4",
        "deepseek_v3": "4.53.3",
        "gemma4_unified_text": "5.10.4",
    }
    assert {name: chosen.get(name) for name in expected} == expected
    assert not {"llama", "qwen3", "granitemoehybrid", "gemma4_text"} & chosen.keys()


def test_what_is_pinned_is_what_the_version_needs() -> None:
    for layer in LAYERS:
        pinned, text = layer.packages, layer.requirements.read_text()
        assert pinned["transformers"] == layer.version
        # huggingface_hub of 1 and above is for transformers 5, and tokenizers 0.22 for 4.56 and above.
        assert ("huggingface_hub" in pinned) == layer.version.startswith("4.")
        assert ("tokenizers" in pinned) == (layer.version in ("4.51.3", "4.53.3", "4.55.4"))
        for name in pinned:
            wheels = 5 if name == "tokenizers" else 1
            own = text.partition(f"{name}==")[2].split("==")[0]
            assert own.count("--hash=sha256:") == wheels


def test_an_installed_layer_goes_before_the_installed_version(
    layer: TransformersLayer, gemma2: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    told: list[Progress] = []
    found = on_layer(layer, look_around, gemma2, {"more": 7}, progress=told.append)
    seen = {"transformers": VERSION, "metadata": VERSION, "hub": False, "listed": None}
    assert found == {**seen, "path": gemma2.path, "more": 7}
    assert [step.stage for step in told] == [f"install transformers-{VERSION}"] * 2
    assert layer.is_installed


def test_the_hub_is_asked_before_the_layer_begins_and_never_on_it(
    layer: TransformersLayer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    files = {"config.json": b'{"model_type": "gemma2"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}
    with running(FakeHub(files=files)) as hub:
        use(hub.url, tmp_path / "hub", monkeypatch)
        found = resolve("acme/tiny")
        assert found.files is not None
        seen = on_layer(layer, look_around, found, {})
    assert (seen["hub"], seen["listed"]) == (False, None)
    assert {name: (seen["path"] / name).read_bytes() for name in files} == files


def test_what_is_half_installed_is_not_used_and_removed(layer: TransformersLayer) -> None:
    folder = folder_of(layer.requirements)
    left = folder.with_name(f".{folder.name}-killed") / "packages" / "transformers"
    left.mkdir(parents=True)
    assert not layer.is_installed
    assert install(layer.requirements) == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (folder / "transformers" / "__init__.py").is_file()


def test_two_runs_at_once_install_it_once(layer: TransformersLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[float] = []

    def slowly(requirements: Path, target: Path) -> None:
        target.mkdir()
        time.sleep(0.3)
        done.append(time.monotonic())

    monkeypatch.setattr(layer_folders, "_install", slowly)
    threads = [threading.Thread(target=install, args=(layer.requirements,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(done), layer.is_installed) == (1, True)


def test_a_wheel_with_another_hash_is_refused(layer: TransformersLayer) -> None:
    layer.requirements.write_text(f"transformers=={VERSION} --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ResourceError, match="pip could not install it; its last lines:\n") as caught:
        install(layer.requirements)
    assert "DO NOT MATCH THE HASHES" in caught.value.message or "Expected sha256" in caught.value.message
    assert "it takes the network" in caught.value.hint
    assert list(folder_of(layer.requirements).parent.iterdir()) == []


def test_uv_installs_where_there_is_no_pip(layer: TransformersLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "uv says why")

    monkeypatch.setattr(layer_folders.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(layer_folders.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(layer_folders.subprocess, "run", run)
    with pytest.raises(ResourceError, match=r"uv could not install it; its last lines:\n  \| uv says why"):
        install(layer.requirements)
    assert commands[0][:3] == ["/bin/uv", "pip", "install"]
    assert "--require-hashes" in commands[0]
    monkeypatch.setattr(layer_folders.shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="to install it, pip or uv is needed, and neither is there"):
        install(layer.requirements)


def test_what_a_run_uses_is_not_removed(layer: TransformersLayer) -> None:
    folder = install(layer.requirements)
    with lock_of(folder).read_lock(), pytest.raises(LockedError, match="a run is using it"):
        remove(layer.requirements)
    assert remove(layer.requirements)
    assert not layer.is_installed
    assert not remove(layer.requirements)


@pytest.mark.usefixtures("other_transformers")
def test_without_leave_the_command_is_named(layer: TransformersLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source("gemma2")
    needed = needed_layer(found)
    assert needed == layer
    with pytest.raises(LayerMissingError) as caught:
        on_layer(needed, look_around, found, {})
    error: LayerMissingError = pickle.loads(pickle.dumps(caught.value))
    assert error.message == (
        "optimum-intel converts 'gemma2' only with transformers at least 4.57 and at most 5.0; "
        f"{INSTALLED} is installed, and {VERSION} is not there as a layer"
    )
    command = f"run: llmcompress doctor --layers --install {VERSION}"
    assert error.hint == f"{command}; LLMCOMPRESS_LAYERS=auto does so wherever it is needed"
    assert (error.version, error.exit_code) == (VERSION, 2)
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    with pytest.raises(LayerMissingError, match="is not there as a layer") as caught:
        on_layer(needed, look_around, found, {}, offline=True)
    assert (caught.value.version, caught.value.hint) == ("", f"with the network, {command}")


def test_layers_can_be_left_out(layer: TransformersLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "off")
    assert needed_layer(source("gemma2")) is None
    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "on")
    with pytest.raises(UsageError, match="LLMCOMPRESS_LAYERS: got 'on'; accepted: ask, auto, off"):
        needed_layer(source("gemma2"))


def test_what_was_converted_before_needs_no_layer(layer: TransformersLayer) -> None:
    assert needed_layer(source("gemma2")._replace(layout="ir")) is None


def test_a_version_that_is_tried_alone_is_said_to_be_so(
    layer: TransformersLayer, gemma2: Source, caplog: pytest.LogCaptureFixture
) -> None:
    install(layer.requirements)
    on_layer(layer._replace(is_tested=False), look_around, gemma2, {"more": 0})
    assert f"m: transformers {VERSION} is beyond what optimum-intel requires; tried, and not tested" in caplog.text


def test_doctor_installs_lists_and_removes(layer: TransformersLayer, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> Any:
        assert run_command(["doctor", "--layers", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["layers"]

    assert [(each["version"], each["installed"]) for each in run()] == [(VERSION, False)]
    there = run("--install", VERSION)[0]
    assert there["installed"]
    assert there["packages"] == {"transformers": VERSION}
    assert Path(there["directory"], "transformers").is_dir()
    assert not run("--remove", VERSION)[0]["installed"]
    assert run_command(["doctor", "--layers"]) == 0
    assert VERSION in capsys.readouterr().out


def test_doctor_names_what_it_cannot_do(layer: TransformersLayer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--layers", "--install", "9.9"]) == 2
    assert f"there is no layer '9.9'; accepted: {VERSION}" in capsys.readouterr().err
    assert run_command(["doctor", "--remove", VERSION]) == 2
    assert "--install and --remove are of layers" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [True, False])
def test_at_a_terminal_it_is_asked_for(answer: bool, layer: TransformersLayer, monkeypatch: pytest.MonkeyPatch) -> None:
    questions: list[str] = []

    def confirm(question: str, err: bool) -> bool:
        questions.append(question)
        return answer

    def call() -> str:
        environments.require_layer(layer, {"model_type": "gemma2"})
        return "done"

    monkeypatch.setattr("typer.confirm", confirm)
    with pytest.raises(LayerMissingError):
        progress_of_cli.with_layers(call)
    monkeypatch.setattr(progress_of_cli, "_can_ask", lambda: True)
    if answer:
        assert progress_of_cli.with_layers(call) == "done"
    else:
        with pytest.raises(LayerMissingError):
            progress_of_cli.with_layers(call)
    assert questions == [f"Install transformers {VERSION} in the cache, for such models alone?"]
    assert layer.is_installed == answer


COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "initializer_range": 0.08,
}
FIELDS: dict[str, dict[str, Any]] = {
    "gemma3_text": {},
    "qwen3_5_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "llama4_text": {
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "attention_chunk_size": 64,
        "interleave_moe_layer_step": 2,
    },
    "mamba": {"state_size": 8},
    "exaone4": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FIELDS)
def test_one_command_installs_what_it_takes(model_type: str, tmp_path: Path) -> None:
    layer = fitting_layer(model_type)
    assert layer is not None
    made = {"model_type": model_type, "fields": {**COMMON, **FIELDS[model_type]}, "directory": tmp_path}
    run_supervised(make_and_compress_by_stock, made, search_path=(folder_with(layer),))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llmcompress",
            "compress",
            tmp_path / "checkpoint",
            "-r",
            "int8",
            "-o",
            tmp_path / "out",
        ],
        env={**os.environ, "LLMCOMPRESS_LAYERS": "auto", "LLMCOMPRESS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (tmp_path / name / "openvino_model.bin" for name in ("out", "stock"))
    assert filecmp.cmp(ours, theirs, shallow=False)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.environment.versions["transformers"] == layer.version
    assert SpecifierSet(manifest.transformers or "").contains(layer.version)


@pytest.mark.slow
def test_a_model_of_the_hub_is_compressed_on_a_layer(tmp_path: Path) -> None:
    layer = fitting_layer("gemma3_text")
    assert layer is not None
    made = {"model_type": "gemma3_text", "fields": COMMON, "directory": tmp_path}
    run_supervised(make_and_compress_by_stock, made, search_path=(folder_with(layer),))
    files = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    command = [sys.executable, "-m", "llmcompress", "compress", "acme/tiny", "-r", "int8", "-o", tmp_path / "out"]
    with running(FakeHub(files=files)) as hub:
        layers = {"LLMCOMPRESS_LAYERS": "auto", "LLMCOMPRESS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        env = {**os.environ, **layers, **environment(hub, tmp_path / "hub")}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = (tmp_path / name / "openvino_model.bin" for name in ("out", "stock"))
    assert filecmp.cmp(ours, theirs, shallow=False)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.provenance.id, manifest.provenance.revision) == ("acme/tiny", COMMIT)
    assert manifest.environment.versions["transformers"] == layer.version


@pytest.mark.slow
def test_what_the_installed_version_cannot_build_is_predicted_on_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompress.cli.dry_run import forecast_source
    from llmcompress.spec import Access, load_recipe

    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    layer = fitting_layer("gemma4_unified_text")
    assert layer is not None
    fields = {**COMMON, "global_head_dim": 16, "tie_word_embeddings": False}
    made = {"model_type": "gemma4_unified_text", "fields": fields, "directory": tmp_path}
    num_parameters = run_supervised(make, made, search_path=(folder_with(layer),))
    predicted = forecast_source(
        str(tmp_path / "checkpoint"), load_recipe("int8"), tmp_path / "out", Access(), "llmcompress", silent
    )
    assert predicted.num_parameters == num_parameters


@pytest.mark.slow
def test_optimum_and_a_loaded_model_take_what_a_worker_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmcompress

    monkeypatch.setenv("LLMCOMPRESS_LAYERS", "auto")
    layer = fitting_layer("gemma3_text")
    assert layer is not None
    made = {"model_type": "gemma3_text", "fields": COMMON, "directory": tmp_path}
    run_supervised(make_and_compress_by_stock, made, search_path=(folder_with(layer),))
    checkpoint = tmp_path / "checkpoint"
    model = llmcompress.OVModelForCausalLM.from_pretrained(checkpoint, quantization_config="int8")
    model.save_pretrained(tmp_path / "saved")
    loaded = llmcompress.load(checkpoint)
    llmcompress.compress(loaded, "int8", tmp_path / "compressed")
    expected = tmp_path / "stock" / "openvino_model.bin"
    for name in ("saved", "compressed"):
        assert filecmp.cmp(tmp_path / name / "openvino_model.bin", expected, shallow=False)
        assert read_manifest(tmp_path / name).environment.versions["transformers"] == layer.version
    assert llmcompress.check_conversion(checkpoint).passed
    with pytest.raises(UsageError, match=r"takes 'gemma3_text' only with transformers>=4\.57,<=5\.0"):
        llmcompress.OVModelForCausalLM.from_pretrained(checkpoint, quantization_config="int8", use_cache=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "version"), [("chatglm", "4.55.4"), ("minicpm3", "4.53.3"), ("gemma4_unified_text", "5.10.4")]
)
def test_a_line_of_the_table_is_made_again(model_type: str, version: str, tmp_path: Path) -> None:
    """One type for each layer that no type above needs; two of them by a stand-in."""
    results = tmp_path / "results.json"
    command = [
        sys.executable,
        Path(__file__).parents[1] / "benchmarks" / "architectures.py",
        model_type,
        "--results",
        results,
    ]
    surroundings = {**os.environ, "LLMCOMPRESS_LAYERS": "auto", "LLMCOMPRESS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())[model_type]
    assert (found["transformers"], found["state"], found["genai"]) == (version, "run", "")
    assert (found["logits"], found["int8"], found["int4"]) == (True, True, True)
    assert max(found["errors"].values()) < 1e-4
