"""Every request that a command makes of the Hub meets every fault of a network and of a server.

    PYTHONPATH=tests python tests/faults/hub_requests.py --every 3 --state points.jsonl
    PYTHONPATH=tests python tests/faults/hub_requests.py --command push --fault "answer lost" --at 7   # again

The commands run in this process, whose libraries are imported once; the Hub is one on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_hub import FakeHub, Fault, account, new_repo, running, use
from interception import run_here
from invariants import MANIFEST, digest, lasting, leaks, said_badly, tree, units
from points import Point, Points, add_arguments, table
from scenes import SECRET, TEXT
from world_fixture import without_workers

MODEL, ARTIFACT, PUSHED = "acme/base", "acme/artifact", "acme/pushed"
ADAPTER, THEIRS, ROWS = "acme/adapter", "somebody/artifact", "acme/rows"
KINDS: dict[str, dict[str, Any]] = {
    "401": {"kind": "status", "status": 401, "times": -1},
    "403": {"kind": "status", "status": 403, "times": -1},
    "404": {"kind": "status", "status": 404},
    "500 once": {"kind": "status", "status": 500},
    "503 for ever": {"kind": "status", "status": 503, "times": -1},
    "reset": {"kind": "reset"},
    "answer lost": {"kind": "lost"},
    "cut": {"kind": "cut"},
    "short": {"kind": "short"},
    "long": {"kind": "long"},
    "wrong bytes": {"kind": "wrong bytes"},
    "redirect loop": {"kind": "redirect loop", "times": -1},
    "another commit": {"kind": "moved"},
}
COLLECTION = "acme/models-0123456789abcdef01234567"
CODES = frozenset({4, 5, 6, 7, 8})
"""With which a command may end that the Hub did not let go on."""
PARTS = ("out", "cache")


class Talk(NamedTuple):
    """A command that talks to the Hub."""

    name: str
    arguments: Callable[[Path], list[str]]
    changed_by: frozenset[str] = frozenset()
    """Faults after which another result is the right one: a manifest names the commit that it was made from."""
    measured: tuple[str, ...] = ()
    """Functions that are called once, in the undisturbed run: what they measure the Hub has no part in."""


PLAN = f"""\
output: {{place}}/out/models
models: [{MODEL}]
recipes: [int8]
"""

CALIBRATED = f"""\
name: calibrated
weights: {{{{mode: int4_asym, group_size: 32, awq: true}}}}
calibration: {{{{dataset: "{ROWS}@{{commit}}", split: train, num_samples: 4, seq_len: 16}}}}
"""


def text(place: Path) -> tuple[str, str]:
    return "--dataset", f"{place}/in/text.txt"


TALKS = (
    Talk(
        "compress from the Hub",
        lambda place: ["compress", MODEL, "-r", "int8", "-o", f"{place}/out/model", "--overwrite"],
        frozenset({"another commit"}),
    ),
    Talk("verify on the Hub", lambda place: ["verify", ARTIFACT]),
    Talk(
        "eval on the Hub",
        lambda place: [
            "eval", ARTIFACT, "--reference", MODEL, "--dataset", f"{place}/in/text.txt", "--num-windows", "1",
            "--seq-len", "16", "--backend", "stateful",
        ],
    ),
    Talk("push", lambda place: ["push", f"{place}/in/artifact", PUSHED]),
    Talk(
        "push with a tag into a collection",
        lambda place: ["push", f"{place}/in/artifact", PUSHED, "--tag", "v1", "--collection", COLLECTION],
        # The tag names the commit that was made; after another one there is a newer one, and a tag is not moved.
        frozenset({"another commit"}),
    ),
    Talk("push a pull request", lambda place: ["push", f"{place}/in/artifact", THEIRS, "--create-pr"]),
    Talk("try a push", lambda place: ["push", f"{place}/in/artifact", PUSHED, "--dry-run"]),
    Talk(
        "try to compress from the Hub",
        lambda place: ["compress", MODEL, "-r", "int8", "-o", f"{place}/out/model", "--dry-run"],
    ),
    Talk(
        "merge an adapter of the Hub",
        lambda place: ["compress", ADAPTER, "--merge-adapter", "-r", "int8", "-o", f"{place}/out/model", "--overwrite"],
        frozenset({"another commit"}),
    ),
    Talk("chat with a model of the Hub", lambda place: ["chat", MODEL, "-p", "Hello", "-n", "2"]),
    Talk(
        "bench on the Hub",
        lambda place: ["bench", MODEL, "-p", "8", "-n", "2", "-r", "3"],
        measured=("benchmarking.benchmark.benchmark",),
    ),
    Talk(
        "search on the Hub",
        lambda place: [
            "search", MODEL, "--bits", "6", *text(place), "--num-samples", "4", "--num-windows", "4", "--seq-len", "32",
            "--num-probes", "0", "-o", f"{place}/out/model", "--overwrite",
        ],
        frozenset({"another commit"}),
    ),
    Talk(
        "tune by a reference on the Hub",
        lambda place: [
            "tune", f"{place}/in/artifact", "--reference", MODEL, *text(place), "--num-windows", "4", "--seq-len", "96",
            "--workload", "chat:8/2", "-r", "3", "--property", "KV_CACHE_PRECISION=u8,f16",
        ],
        measured=("tuning.tune.search", "tuning.tune.verify"),
    ),
    Talk(
        "calibrate by a dataset of the Hub",
        lambda place: [
            "compress", f"{place}/in/model", "-r", f"{place}/in/calibrated.yaml", "-o", f"{place}/out/model",
            "--overwrite",
        ],
    ),
    Talk(
        "run a plan with the Hub", lambda place: ["run", f"{place}/in/plan.yaml"], frozenset({"another commit"}),
    ),
)  # fmt: skip


class Stage(NamedTuple):
    """A place with inputs, and what the Hub holds before every run."""

    place: Path
    repos: dict[str, dict[str, bytes]]
    measured: dict[str, Any]
    """What functions gave that are called once."""

    def hub(self) -> FakeHub:
        repos = {name: new_repo(files) for name, files in self.repos.items()}
        return FakeHub(repos=repos, account=account(), collections={COLLECTION: []})


class Held(NamedTuple):
    """What a run left: in ``out``, and on the Hub for a reader."""

    units: dict[str, str]
    pushed: dict[str, str] | None
    """None: there is no such repository, or nothing in it yet."""
    named: dict[str, Any]
    """Tags, pull requests and collections: of what they lead to, the files."""


def begun(place: Path) -> Stage:
    """Make the inputs: a checkpoint, and an artifact of it that was evaluated."""
    from tiny_models import build_checkpoint

    for part in ("in", *PARTS):
        (place / part).mkdir(parents=True)
    model = build_checkpoint(place / "in" / "model", num_hidden_layers=1)
    shutil.copy(TEXT, place / "in" / "text.txt")
    artifact = place / "in" / "artifact"
    run_here(["compress", str(model), "-r", "int8", "-o", str(artifact)])
    run_here(["eval", str(artifact), "--reference", str(model), *text(place), "--num-windows", "1", "--seq-len", "16"])
    (place / "in" / "plan.yaml").write_text(PLAN.format(place=place))
    rows = [json.dumps({"text": line}) for line in TEXT.read_text(encoding="utf-8").splitlines() if line]
    dataset = {"train.jsonl": "\n".join(rows[:100]).encode()}
    commit = new_repo(dataset).head.sha
    (place / "in" / "calibrated.yaml").write_text(CALIBRATED.format(commit=commit))
    repos = {ROWS: dataset, MODEL: _files(model), ARTIFACT: _files(artifact), THEIRS: {}}
    return Stage(place, repos | {ADAPTER: _adapter(model, place / "in" / "adapter")}, {})


def _adapter(model: Path, place: Path) -> dict[str, bytes]:
    """A LoRA of the model, whose base is on the Hub."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = MODEL
    adapted.save_pretrained(place)
    return _files(place)


def _files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def read(stage: Stage) -> dict[str, str]:
    """What commands read; the card and the tuning of an artifact are what they write."""
    written = ("artifact/README.md", "artifact/tune.json")
    return {name: found for name, found in tree(stage.place / "in").items() if name not in written}


def held(stage: Stage, hub: FakeHub) -> Held:
    """What there is now.

    Raises:
        ValueError: Something is half there.
    """
    files: dict[str, str] = {}
    named: dict[str, Any] = {"collections": hub.collections}
    for name in (PUSHED, THEIRS):
        if (repo := hub.repos.get(name)) is not None:
            files |= {f"{name}/{path}": found for path, found in _files_of(repo.head.files).items()}
            named |= {f"{name} at {tag}": _files_of(repo.commits[sha].files) for tag, sha in repo.tags.items()}
            pulls = [f"refs/pr/{pull['num']}" for pull in repo.pulls]
            named |= {f"{name} at {ref}": _files_of(repo.commits[repo.refs[ref]].files) for ref in pulls}
    return Held(units(stage.place / "out"), files or None, named)


def _files_of(files: dict[str, bytes]) -> dict[str, str]:
    """Without what the Hub puts there; the card names the day, and what was measured differs."""
    left_out = (".gitattributes", "README.md", "late.txt")
    return {
        name: digest(json.dumps(lasting(json.loads(content))).encode() if name == MANIFEST else content)
        for name, content in files.items()
        if name not in left_out
    }


@contextlib.contextmanager
def faked(stage: Stage, talk: Talk) -> Iterator[FakeHub]:
    """A fresh Hub, and empty places."""
    for part in PARTS:
        shutil.rmtree(stage.place / part)
        (stage.place / part).mkdir()
    with running(stage.hub()) as hub, pytest.MonkeyPatch.context() as patch:
        use(hub.url, stage.place / "cache" / "hub", patch)
        _use_datasets(hub.url, stage.place / "cache" / "datasets", patch)
        patch.setenv("LLMCOMPRESS_CACHE", str(stage.place / "cache" / "llmcompress"))
        for name in talk.measured:
            patch.setattr(f"llmcompress.{name}", _once(stage, name))
        yield hub


def _use_datasets(url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """The same for the library of datasets, which remembers what a Hub listed."""
    import datasets
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()
    patch.setattr(datasets.config, "HF_ENDPOINT", url)
    patch.setattr(datasets.config, "HUB_DATASETS_URL", url + "/datasets/{repo_id}/resolve/{revision}/{path}")
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")


def _once(stage: Stage, name: str) -> Callable[..., Any]:
    """A function that is called once for the whole sweep."""
    module, _, function = name.rpartition(".")
    real = vars(importlib.import_module(f"llmcompress.{module}"))[function]

    def call(*given: Any, **named: Any) -> Any:
        if name not in stage.measured:
            stage.measured[name] = real(*given, **named)
        return stage.measured[name]

    return call


def tried(stage: Stage, talk: Talk, kind: str, at: int, whole: Held, inputs: dict[str, str]) -> Point:
    """Let one request meet a fault, then run the command once more."""
    lost, wrong, where = list[str](), list[str](), "not reached"
    with faked(stage, talk) as hub:
        hub.inject(Fault(**{**KINDS[kind], "at": at}))
        ended = run_here(talk.arguments(stage.place))
        if len(hub.requests) > at:
            where = " ".join(hub.requests[at])
        try:
            found = held(stage, hub)
            lost += [f"{name} is half there" for name in found.units if found.units[name] != whole.units.get(name)]
            if found.pushed not in (None, whole.pushed):
                lost.append("a reader of the Hub sees a half model")
        except (ValueError, OSError, KeyError) as error:
            lost.append(f"not whole: {error}")
        leaked = list(leaks(stage.place, ended, SECRET))
        if ended.returncode == 0:
            if not lost and held(stage, hub) != whole:
                wrong.append("exit code 0, but something is missing")
        else:
            wrong += said_badly(ended, CODES)
        hub.inject()
        again = run_here(talk.arguments(stage.place))
        if again.returncode or held(stage, hub) != whole:
            lost.append(f"the next run ended with {again.returncode}: {again.stderr[-300:]}")
    if read(stage) != inputs:
        lost.append("an input was changed")
    return Point(talk.name, kind, at, where, ended.returncode, lost, leaked, wrong)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Time limits and pauses of a machine that does not wait, and the secret as the token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("LLMCOMPRESS_GRAPH_CACHE", "off")
        patch.setenv("LLMCOMPRESS_PROGRESS_S", "86400")
        patch.setattr("llmcompress.hub.patience.PAUSES_S", (0.01, 0.01))
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        patch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.25)
        without_workers(patch)
        yield


def main() -> None:
    """Sweep, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", nargs="*", choices=[talk.name for talk in TALKS], help="default: all")
    parser.add_argument("--fault", nargs="*", choices=list(KINDS), help="default: all")
    parser.add_argument("--every", type=int, default=1, help="of the requests")
    parser.add_argument("--turns", type=int, help="faults that each request meets, other ones in turn; default: all")
    parser.add_argument("--at", type=int, help="this request alone, counted from 0")
    add_arguments(parser)
    parser.add_argument("--new", action="store_true", help="leave out points that did not survive when last tried")
    args = parser.parse_args()
    deadline = time.monotonic() + args.limit_s
    logging.disable(logging.CRITICAL)
    points = Points(args.state)
    is_done = points.has if args.new else points.has_survived
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder, hurried():
        stage = begun(Path(folder))
        inputs = read(stage)
        for talk in TALKS:
            if args.command and talk.name not in args.command:
                continue
            requests, whole = undisturbed(stage, talk)
            print(f"{talk.name}: {requests} requests", flush=True)
            places = range(0, requests, args.every) if args.at is None else [args.at]
            kinds = args.fault or [kind for kind in KINDS if kind not in talk.changed_by]
            for kind, at in met(kinds, places, args.turns or len(kinds)):
                if not is_done(talk.name, kind, at) and time.monotonic() < deadline:
                    points.add(tried(stage, talk, kind, at, whole, inputs))
            if time.monotonic() < deadline:
                print(f"{talk.name}: all tried", flush=True)
    print(table(points.all))


def met(kinds: Sequence[str], places: Sequence[int], turns: int) -> Iterator[tuple[str, int]]:
    """Which request meets which fault: each request ``turns`` of them, where the one before it left off."""
    for number, at in enumerate(places):
        for turn in range(min(turns, len(kinds))):
            yield kinds[(number * turns + turn) % len(kinds)], at


def undisturbed(stage: Stage, talk: Talk) -> tuple[int, Held]:
    """How many requests a command makes, and what it leaves.

    Raises:
        RuntimeError: It fails.
    """
    with faked(stage, talk) as hub:
        ended = run_here(talk.arguments(stage.place))
        if ended.returncode:
            raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")
        return len(hub.requests), held(stage, hub)


if __name__ == "__main__":
    main()
