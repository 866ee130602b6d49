"""Every request that a command makes of the Hub meets every fault of a network and of a server.

    PYTHONPATH=tests python tests/faults/hub_requests.py --every 3 --state points.jsonl
    PYTHONPATH=tests python tests/faults/hub_requests.py --command push --fault "answer lost" --at 7   # again

The commands run in this process, whose libraries are imported once; the Hub is one on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fake_hub import FakeHub, Fault, account, new_repo, running, use
from interception import run_here
from invariants import digest, leaks, said_badly, tree, units
from points import Point, Points, table
from scenes import SECRET, TEXT
from world_fixture import without_workers

MODEL, ARTIFACT, PUSHED = "acme/base", "acme/artifact", "acme/pushed"
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
CODES = frozenset({4, 5, 6, 7, 8})
"""With which a command may end that the Hub did not let go on."""
PARTS = ("out", "cache")


class Talk(NamedTuple):
    """A command that talks to the Hub."""

    name: str
    arguments: Callable[[Path], list[str]]
    changed_by: frozenset[str] = frozenset()
    """Faults after which another result is the right one: a manifest names the commit that it was made from."""


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
)  # fmt: skip


class Stage(NamedTuple):
    """A place with inputs, and what the Hub holds before every run."""

    place: Path
    model: dict[str, bytes]
    artifact: dict[str, bytes]

    def hub(self) -> FakeHub:
        repos = {MODEL: new_repo(self.model), ARTIFACT: new_repo(self.artifact)}
        return FakeHub(repos=repos, account=account())


class Held(NamedTuple):
    """What a run left: in ``out``, and on the Hub for a reader."""

    units: dict[str, str]
    pushed: dict[str, str] | None
    """None: there is no such repository, or nothing in it yet."""


def begun(place: Path) -> Stage:
    """Make the inputs: a checkpoint, and an artifact of it that was evaluated."""
    from tiny_models import build_checkpoint

    for part in ("in", *PARTS):
        (place / part).mkdir(parents=True)
    model = build_checkpoint(place / "in" / "model", num_hidden_layers=1)
    shutil.copy(TEXT, place / "in" / "text.txt")
    artifact = place / "in" / "artifact"
    run_here(["compress", str(model), "-r", "int8", "-o", str(artifact)])
    run_here(["eval", str(artifact), "--reference", str(model), "--dataset", str(place / "in/text.txt"),
                  "--num-windows", "1", "--seq-len", "16"])  # fmt: skip
    return Stage(place, _files(model), _files(artifact))


def _files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def read(stage: Stage) -> dict[str, str]:
    """What commands read; the card of an artifact is what a push writes."""
    return {name: found for name, found in tree(stage.place / "in").items() if name != "artifact/README.md"}


def held(stage: Stage, hub: FakeHub) -> Held:
    """What there is now.

    Raises:
        ValueError: Something is half there.
    """
    repo = hub.repos.get(PUSHED)
    files = {} if repo is None else {name: digest(content) for name, content in repo.head.files.items()}
    files.pop(".gitattributes", None)
    # The card names the day.
    files.pop("README.md", None)
    return Held(units(stage.place / "out"), files or None)


@contextlib.contextmanager
def faked(stage: Stage) -> Iterator[FakeHub]:
    """A fresh Hub, and empty places."""
    for part in PARTS:
        shutil.rmtree(stage.place / part)
        (stage.place / part).mkdir()
    with running(stage.hub()) as hub, pytest.MonkeyPatch.context() as patch:
        use(hub.url, stage.place / "cache" / "hub", patch)
        patch.setenv("LLMCOMPRESS_CACHE", str(stage.place / "cache" / "llmcompress"))
        yield hub


def tried(stage: Stage, talk: Talk, kind: str, at: int, whole: Held, inputs: dict[str, str]) -> Point:
    """Let one request meet a fault, then run the command once more."""
    lost, wrong, where = list[str](), list[str](), "not reached"
    with faked(stage) as hub:
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
    parser.add_argument("--at", type=int, help="this request alone, counted from 0")
    parser.add_argument(
        "--state", type=Path, help="file of points, a line of JSON each, that a later call goes on with"
    )
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    points = Points(args.state)
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder, hurried():
        stage = begun(Path(folder))
        inputs = read(stage)
        for talk in TALKS:
            if args.command and talk.name not in args.command:
                continue
            requests, whole = undisturbed(stage, talk)
            print(f"{talk.name}: {requests} requests", flush=True)
            places = range(0, requests, args.every) if args.at is None else [args.at]
            for kind in args.fault or [kind for kind in KINDS if kind not in talk.changed_by]:
                for at in places:
                    if not points.has(talk.name, kind, at):
                        points.add(tried(stage, talk, kind, at, whole, inputs))
    print(table(points.all))


def undisturbed(stage: Stage, talk: Talk) -> tuple[int, Held]:
    """How many requests a command makes, and what it leaves.

    Raises:
        RuntimeError: It fails.
    """
    with faked(stage) as hub:
        ended = run_here(talk.arguments(stage.place))
        if ended.returncode:
            raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")
        return len(hub.requests), held(stage, hub)


if __name__ == "__main__":
    main()
