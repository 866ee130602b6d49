"""What the pages name, in one folder: checkpoints, artifacts, texts, a picture, all small; and a Hub with models."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, account, new_repo
from tiny_models import build_checkpoint, read_config

import llmcompress
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.system.progress import Reporter, silent

HERE = Path(__file__).parent
CHECKPOINTS = ("checkpoint", "path/to/checkpoint", "MODEL", "ORIGINAL", "base", "fine-tune", "ref-llama-8m")
ARTIFACTS = ("model-int4-ov", "model-none-ov", "ref-int4", "some/openvino/directory")
TEXTS = ("texts", "other", "train", "heldout", "wikitext2-test-part1", "hub")
LLAMAS = ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct")
SEES = "google/gemma-3-4b-it"
SEEING = {"gemma3": SEES, "mistral3": "mistralai/Mistral-Small-3.1-24B-Instruct-2503"}
CONVERSATION = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}


def build_world(folder: Path) -> Path:
    """Make the folder; a model of two layers stands for every text model."""
    model = build_checkpoint(folder / CHECKPOINTS[0], num_hidden_layers=2, max_position_embeddings=8192)
    for name in CHECKPOINTS[1:]:
        shutil.copytree(model, folder / name)
    llmcompress.compress(model, "int4", folder / ARTIFACTS[0], progress=None)
    for name in ARTIFACTS[1:]:
        shutil.copytree(folder / ARTIFACTS[0], folder / name)
    # No word of many tokens, which would be a sequence that texts have in common.
    words = [word for word in BUNDLED_TEXT.read_text(encoding="utf-8").split() if len(word) < 20]
    for name in TEXTS:
        # No two have a sequence of words in common.
        drawn = random.Random(name)
        rows = [" ".join(drawn.choices(words, k=60)) for _ in range(150)]
        (folder / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows), encoding="utf-8")
    (folder / "chat.jsonl").write_text("\n".join([json.dumps(CONVERSATION)] * 40), encoding="utf-8")
    (folder / "my-recipe.yaml").write_text("name: my-recipe\nweights: {mode: int8_sym}\n")
    return folder


def add_quantized(folder: Path) -> None:
    """What is quantized already: a checkpoint, files of GGUF and ONNX."""
    from quantized_fixture import LAYOUTS, quantized

    quantized(folder / "checkpoint", folder / "SOURCE", LAYOUTS["gptq-4"])
    shutil.copy(HERE / "gguf_models" / "k-quants.gguf", folder / "model.Q4_K_M.gguf")
    (folder / "REPOSITORY").mkdir()
    for name in ("NAME.gguf", "other.gguf"):
        shutil.copy(folder / "model.Q4_K_M.gguf", folder / "REPOSITORY" / name)
    shutil.copytree(HERE / "onnx_models" / "genai-int4", folder / "model")


def add_picture(path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (56, 56), "red").save(path)


def hub_of(folder: Path) -> FakeHub:
    """A Hub that has the models that the pages name."""
    files = {path.name: path.read_bytes() for path in (folder / CHECKPOINTS[0]).iterdir()}
    gemma = read_config(folder / CHECKPOINTS[0]) | {"model_type": "gemma3_text"}
    repos = {name: new_repo(files) for name in LLAMAS}
    repos["google/gemma-3-1b-it"] = new_repo(files | {"config.json": json.dumps(gemma).encode()})
    return FakeHub(repos=repos, account=account("me"))


def add_vision(hub: FakeHub, folder: Path) -> None:
    """Models with eyes on the Hub."""
    from vision_fixture import build_vision

    for kind, name in SEEING.items():
        built = build_vision(kind, folder / kind)
        hub.repos[name] = new_repo({path.name: path.read_bytes() for path in built.iterdir()})


def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call what would run in a process of its own right here: the libraries are imported once."""

    def here(
        function: Callable[..., Any],
        kwargs: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        *,
        progress: Reporter = silent,
        **_: Any,
    ) -> Any:
        return function(**(kwargs() if callable(kwargs) else kwargs), progress=progress)

    runner = [f"runner.{name}" for name in ("run", "compressing", "measuring", "tuning")]
    for place in ("system.process", "tuning.trials", *runner):
        monkeypatch.setattr(f"llmcompress.{place}.run_supervised", here)


def datasets_are_local(monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    """Whatever dataset of the Hub is asked for is the lines of a file."""
    import datasets

    class Builder:
        hash = "as pinned"

        def download_and_prepare(self) -> None: ...

        def as_dataset(self, split: str) -> Any:
            return datasets.Dataset.from_dict({"text": text.read_text(encoding="utf-8").splitlines()})

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder())
