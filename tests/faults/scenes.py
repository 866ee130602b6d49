"""The commands that are swept, each with the place that it needs and what it may leave.

Small enough that a run takes seconds: what is injected is faults, not load.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
SECRET = "hf_canaryfaultsfaultsfaultsfaultsfault"
PARTS = ("in", "out", "cache", "home", "tmp", "work")
TEXT = ROOT / "llmcompress" / "data" / "heldout.txt"

Settings = Mapping[str, str]
PUSHED = "acme/pushed"


@contextmanager
def alone(place: Path) -> Iterator[Settings]:
    """What a command needs that needs nothing but its place."""
    yield {}


class Scene(NamedTuple):
    """A command and its place."""

    name: str
    prepare: Callable[[Path, Settings], None]
    """Fills a place, once; what is in ``out`` and ``cache`` then is what every run begins with."""
    arguments: Callable[[Path], list[str]]
    codes: frozenset[int] = frozenset({1, 3, 8, 10, 130, 143})
    """With which the command may end where a file system or a signal stopped it."""
    begins_cold: bool = False
    """Whether each run begins with the cache as prepared, not as a first run left it."""
    around: Callable[[Path], AbstractContextManager[Settings]] = alone
    """Holds while a run lasts, and says what the run then sees of it in its environment."""


def environment(place: Path) -> dict[str, str]:
    """What a run in a place sees of its surroundings; nothing of the person's who sweeps."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "LLMCOMPRESS_CACHE": str(place / "cache" / "llmcompress"),
        "LLMCOMPRESS_GRAPH_CACHE": "off",
        "LLMCOMPRESS_PROGRESS_S": "86400",
        "HF_HOME": str(place / "cache" / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": SECRET,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "llmcompress", *map(str, arguments)]


def made(place: Path, settings: Settings, *arguments: str | Path) -> None:
    """Run a command of the preparation."""
    done = subprocess.run(
        command(*arguments), env={**environment(place), **settings}, cwd=place / "work", capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the preparation failed: {done.stderr}")


def _checkpoint(place: Path) -> Path:
    from tiny_models import build_checkpoint

    return build_checkpoint(place / "in" / "model", num_hidden_layers=1, num_key_value_heads=4)


def _text(place: Path) -> Path:
    return Path(shutil.copy(TEXT, place / "in" / "text.txt"))


def _learning(place: Path) -> Path:
    recipe = place / "in" / "learned.yaml"
    recipe.write_text(
        "name: learned\nweights: {mode: int4_asym, group_size: 32}\n"
        f"training: {{method: distillation, dataset: {place}/in/text.txt, num_samples: 4, seq_len: 32, num_steps: 3,\n"
        "  batch_size: 2, num_validation_samples: 2, num_validations: 2}\n"
    )
    return recipe


def _plan(place: Path) -> None:
    (place / "in" / "plan.yaml").write_text(
        f"output: {place}/out/models\nmodels: [{place}/in/model]\n"
        "recipes: [int8, {recipe: int4, name: small, set: {weights.group_size: 32}}]\n"
    )


def _old(place: Path, settings: Settings) -> None:
    """An output that a run replaces."""
    made(place, settings, "compress", place / "in/model", "-r", "int8", "-o", place / "out/model")


INT4 = ("-r", "int4", "--set", "weights.group_size=32")
KEPT = ("-r", "int4-sym", "--set", "weights.group_size=32")
"""A graph of which NNCF computes nothing by NumPy, as it does the codes of the smallest weights: it can be kept."""


def _compress(place: Path, settings: Settings) -> None:
    _checkpoint(place)
    _old(place, settings)


def _kept(place: Path, settings: Settings) -> None:
    _compress(place, settings)
    on = {**settings, "LLMCOMPRESS_GRAPH_CACHE": "on"}
    for number in range(2):
        made(place, on, "compress", place / "in/model", *KEPT, "-o", place / f"work/{number}", "--graph-cache")
    if not json.loads((place / "work/1/llmcompress.json").read_text())["measured"]["replayed"]:
        raise RuntimeError("no graph was kept")
    for number in range(2):
        shutil.rmtree(place / f"work/{number}")


def gguf(place: Path, **sizes: int) -> None:
    """A GGUF file of a model of these sizes."""
    from gguf_fixture import blocks, write_gguf
    from tiny_models import build_checkpoint

    checkpoint = build_checkpoint(place / "work/checkpoint", dtype="float16", **sizes)
    write_gguf(checkpoint, place / "in/model.gguf", blocks("Q8_0"))
    shutil.rmtree(checkpoint)


def _evaluated(place: Path, settings: Settings) -> None:
    _text(place)
    _compress(place, settings)


def _learned(place: Path, settings: Settings) -> None:
    _evaluated(place, settings)
    _learning(place)


def _judged(place: Path, settings: Settings) -> None:
    """An artifact that can be pushed: it was evaluated."""
    _evaluated(place, settings)
    made(place, settings, *_eval(place)[len(command()) :])


def _planned(place: Path, settings: Settings) -> None:
    _checkpoint(place)
    _plan(place)


def _to(place: Path, source: str, *options: str | Path) -> list[str]:
    """Compress something into the place's output."""
    return command("compress", place / "in" / source, *options, "-o", place / "out/model", "--overwrite")


def _search(place: Path) -> list[str]:
    text = ("--dataset", place / "in/text.txt", "--num-samples", "4", "--seq-len", "32", "--num-windows", "4")
    rest = ("--num-probes", "0", "-o", place / "out/model", "--overwrite")
    return command("search", place / "in/model", "--bits", "6", *text, *rest)


def _eval(place: Path) -> list[str]:
    text = ("--dataset", place / "in/text.txt", "--num-windows", "2", "--seq-len", "32")
    return command("eval", place / "out/model", "--reference", place / "in/model", *text, "--backend", "stateful")


def tune(place: Path) -> list[str]:
    few = ("--workload", "chat:8/2", "-r", "3", "--property", "KV_CACHE_PRECISION=u8,f16")
    text = ("--dataset", place / "in/text.txt", "--num-windows", "4", "--seq-len", "96")
    return command("tune", place / "out/model", "--reference", place / "in/model", *text, *few)


@contextmanager
def on_a_hub(place: Path) -> Iterator[Settings]:
    """A Hub that holds what ``out/hub`` holds, which then is what a reader of it sees."""
    from fake_hub import FakeHub, environment, new_repo, running

    directory = place / "out" / "hub"
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*")}
    with running(FakeHub(repos={PUSHED: new_repo(files)} if files else {})) as hub:
        yield {**environment(hub, place / "cache" / "hub"), "HF_HUB_OFFLINE": "0"}
        pushed = hub.repos[PUSHED].head.files if PUSHED in hub.repos else {}
    shutil.rmtree(directory, ignore_errors=True)
    for name, content in pushed.items():
        # What the Hub itself puts into each new repository.
        if name != ".gitattributes":
            directory.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)


SCENES: tuple[Scene, ...] = (
    Scene("compress", _compress, lambda place: _to(place, "model", *INT4)),
    Scene(
        "compress by a kept graph",
        _kept,
        lambda place: ["env", "LLMCOMPRESS_GRAPH_CACHE=on", *_to(place, "model", *KEPT)],
    ),
    Scene("keep a graph", _compress, lambda place: _to(place, "model", *KEPT, "--graph-cache"), begins_cold=True),
    Scene(
        "import a GGUF file", lambda place, _: gguf(place, num_hidden_layers=1), lambda place: _to(place, "model.gguf")
    ),
    Scene("train", _learned, lambda place: _to(place, "model", "-r", place / "in/learned.yaml")),
    Scene("search", _evaluated, _search),
    Scene("eval", _evaluated, _eval),
    Scene("run a plan", _planned, lambda place: command("run", place / "in/plan.yaml")),
    Scene("write a card", _compress, lambda place: command("card", place / "out/model")),
    Scene("tune", _evaluated, tune),
    Scene("push", _judged, lambda place: command("push", place / "out/model", PUSHED), around=on_a_hub),
    Scene("prune the cache", _kept, lambda place: command("cache", "prune", "--all"), begins_cold=True),
)
