"""The fuzzer: hostile and odd inputs for every way in.

``python tests/fuzz_run.py --seed 1 --count 10000 --commands 200`` runs them; ``--replay FOLDER`` one again that failed.

An input passes that ends in an error of the library of the classes that fit it, with a hint and in one line each, or in
a right result; in time; and with nothing written outside of ``out``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faults.points import Point, Points
from fuzz_doors import Door, doors
from fuzz_inputs import changed_bytes, changed_document
from fuzz_watch import files_below, watched
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from llmcompress.errors import LlmcompressError

LIMIT_S = 10
"""Without the time in which other programs had the processor."""
COMMAND_LIMIT_S = 60
MILLION = 1_000_000
SAVED = Path(tempfile.gettempdir()) / "llmcompress-fuzz"
EXIT_CODES = range(2, 11)
OUTSIDE = "outside of its output: "
_TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_ADDRESS = re.compile(r"\b0x[0-9a-f]{8,}\b")


class TooSlowError(Exception):
    """The call has not ended in its time."""


class Case(NamedTuple):
    """One changed file of a valid input."""

    door: Door
    file: str
    content: bytes
    how: str = "changed bytes"
    number: int = 0
    """With the seed's millions it names the input."""

    @property
    def key(self) -> tuple[str, str, int]:
        return f"{self.door.name}: {self.file}", f"C, S: {self.how}", self.number


class Fault(NamedTuple):
    """An input that does not pass."""

    case: Case
    what: str
    saved: Path


def places(slow: bool | None = None) -> list[tuple[Door, str]]:
    """Every file that is changed, with its way in."""
    return [(door, file) for door in doors() for file in door.files if slow is None or door.is_slow == slow]


class Fuzzer:
    """Valid inputs, made once, and what was found."""

    def __init__(self, root: Path, saved: Path = SAVED, state: Path | None = None) -> None:
        self.root, self.saved, self.points = root, saved, Points(state)
        self.counts: Counter[str] = Counter()
        self.faults: list[Fault] = []

    def valid(self, door: Door) -> Path:
        """The folder of a valid input; it is not changed."""
        folder = self.root / "valid" / door.name
        if not folder.exists():
            folder.mkdir(parents=True)
            door.make(folder)
        return folder

    def warm_up(self, chosen: Sequence[Door]) -> None:
        """Load the libraries by reading the valid inputs, each of which must be accepted."""
        os.environ.setdefault("MPLCONFIGDIR", str(self.root / "own"))
        for door in chosen:
            folder = self.root / "warm" / door.name
            shutil.copytree(self.valid(door), folder)
            door.call(folder)

    def prepared(self, case: Case) -> Path:
        """A copy with the case's file in it."""
        folder = self.root / "sandbox" / "input"
        shutil.rmtree(folder.parent, ignore_errors=True)
        # Linked where nothing writes: the weights are large.
        shutil.copytree(self.valid(case.door), folder, copy_function=os.link)
        (folder / case.file).unlink()
        (folder / case.file).write_bytes(case.content)
        return folder

    def try_case(self, case: Case) -> None:
        """Run a case in this process, unless an earlier call has."""
        if self.was_tried(case):
            return
        folder = self.prepared(case)
        found = called(case.door, folder, self.root / "sandbox")
        self._note(case, *found)

    def try_command(self, case: Case) -> None:
        """Run a case by the command line, unless an earlier call has."""
        if self.was_tried(case):
            return
        folder = self.prepared(case)
        self._note(case, *commanded(case.door.command, folder, self.root))

    def was_tried(self, case: Case) -> bool:
        return self.points.state is not None and self.points.has_survived(*case.key)

    def _note(self, case: Case, outcome: str, fault: str) -> None:
        self.counts[outcome] += 1
        executed = (fault,) if OUTSIDE in fault else ()
        wrong = [fault] if fault and not executed else []
        self.points.add(Point(*case.key, outcome, 0, [], [], wrong, executed))
        if fault:
            folder = self.saved / f"{len(self.faults):03d}-{case.door.name}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "content").write_bytes(case.content)
            (folder / "case.json").write_text(
                json.dumps({"door": case.door.name, "file": case.file, "command": outcome == "command", "what": fault})
            )
            self.faults.append(Fault(case, fault, folder))


def called(door: Door, folder: Path, sandbox: Path) -> tuple[str, str]:
    """How a call ends, and what is wrong with that ("" where nothing is)."""
    before = files_below(sandbox, apart=folder / "out")
    with watched(folder / "out") as seen:
        error = ended_with(door.call, folder)
    match error:
        case None:
            outcome, fault = "right result", ""
        case LlmcompressError():
            outcome, fault = type(error).__name__, wrong_error(error, door)
        case TooSlowError():
            outcome, fault = "too slow", f"takes longer than {LIMIT_S} s"
        case AssertionError():
            outcome, fault = "wrong result", f"the result is wrong: {error}"
        case _:
            outcome, fault = "traceback", f"{type(error).__name__}: {error}"
    after = files_below(sandbox, apart=folder / "out")
    if after != before:
        seen.append(f"changed: {sorted(set(after.items()) ^ set(before.items()))[:3]}")
    return outcome, fault or (OUTSIDE + "; ".join(seen[:3]) if seen else "")


def wrong_error(error: LlmcompressError, door: Door) -> str:
    """What is wrong with a refusal."""
    if not isinstance(error, door.says):
        return f"{type(error).__name__} is not of {', '.join(kind.__name__ for kind in door.says)}: {error}"
    if not error.message or not error.hint:
        return f"no message or no hint: {error!r}"
    lines = str(error).splitlines()
    if len(lines) > 2:
        return f"more than two lines: {str(error)!r}"
    if any(unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in _TURNS for c in "".join(lines)):
        return f"characters that steer a terminal: {str(error)!r}"
    if _ADDRESS.search(str(error)) or "Traceback" in str(error):
        return f"an address or a traceback: {error}"
    return ""


def commanded(arguments: tuple[str, ...], folder: Path, root: Path) -> tuple[str, str]:
    """The same of a command line; its home and caches lie in ``root``."""
    sandbox = folder.parent
    own = {name: root / "own" / name for name in ("HOME", "TMPDIR", "HF_HOME", "LLMCOMPRESS_CACHE", "NUMBA_CACHE_DIR")}
    for path in own.values():
        path.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **{name: str(path) for name, path in own.items()}, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    before = files_below(sandbox, apart=folder / "out")
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "llmcompress", *arguments],
            cwd=folder, env=environment, capture_output=True, timeout=COMMAND_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "command", f"{' '.join(arguments)} takes longer than {COMMAND_LIMIT_S} s"
    told = done.stderr.decode(errors="replace")
    if done.returncode not in (0, *EXIT_CODES):
        return "command", f"{' '.join(arguments)} ends with {done.returncode}: {told[-800:]}"
    if "Traceback" in told or (done.returncode and "error: " not in told):
        return "command", f"{' '.join(arguments)} says: {told[-800:]}"
    if files_below(sandbox, apart=folder / "out") != before:
        return "command", f"{' '.join(arguments)} changed files {OUTSIDE}"
    if left := [path for path in own["TMPDIR"].iterdir() if path.name != "pymp"]:
        return "command", f"{' '.join(arguments)} left {left} in the directory for temporary files"
    return "command", ""


def ended_with(call: Callable[[Path], Any], folder: Path) -> BaseException | None:
    """What a call raises; TooSlowError where it has not ended in its time, and it is left behind.

    In a thread: no signal reaches a main thread whose stack for signals is too small for the processor's state.
    """
    ends: list[BaseException | None] = []

    def work() -> None:
        try:
            call(folder)
            ends.append(None)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=work, daemon=True)
    began, waited = time.monotonic(), waited_s()
    thread.start()
    while thread.is_alive() and time.monotonic() - began - (waited_s() - waited) < LIMIT_S:
        thread.join(LIMIT_S / 10)
    return ends[0] if ends else TooSlowError()


def waited_s() -> float:
    """Seconds that threads of this process wanted a processor and had none; 0 where the system does not say."""
    found = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            found += int(path.read_text().split()[1])
    return found / 1e9


def documents(fuzzer: Fuzzer, door: Door, file: str) -> st.SearchStrategy[bytes]:
    """Changed documents of a JSON or YAML file, or of a safetensors header, as bytes; any bytes of another file."""
    content = (fuzzer.valid(door) / file).read_bytes()
    document, head = parsed(file, content)
    if document is None:
        return st.binary(max_size=200).map(lambda middle: content[: len(content) // 2] + middle)

    def encoded(changed: Any) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + head if file.endswith(".safetensors") else text

    return changed_document(document).map(encoded)


def parsed(file: str, content: bytes) -> tuple[Any, bytes]:
    """The JSON value of a file, and the bytes behind it; None where it holds none."""
    import yaml

    if file.endswith(".safetensors"):
        length = int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + length]), content[8 + length :]
    if file.endswith(".jsonl"):
        return json.loads(content.splitlines()[0]), b""
    if file.endswith(".json"):
        try:
            return (None, b"") if len(content) > 100_000 else (json.loads(content), b"")
        except ValueError:
            return None, b""  # The hash of the rest stands before it.
    return (yaml.safe_load(content), b"") if file.endswith(".yaml") else (None, b"")


def run_structured(fuzzer: Fuzzer, door: Door, file: str, count: int, number: int) -> None:
    """Try ``count`` inputs by Hypothesis."""
    done = 0

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip  # noqa: E501
    @given(documents(fuzzer, door, file))
    def tried(content: bytes) -> None:
        nonlocal done
        done += 1
        if done <= count:
            fuzzer.try_case(Case(door, file, content, "changed values", number * MILLION + done))

    tried()


def run_bytes(fuzzer: Fuzzer, door: Door, file: str, count: int, number: int) -> None:
    """Try ``count`` inputs with changed bytes."""
    content = (fuzzer.valid(door) / file).read_bytes()
    chance = random.Random(f"{number} {door.name} {file}")
    for done in range(count):
        fuzzer.try_case(Case(door, file, changed_bytes(content, chance), "changed bytes", number * MILLION + done))


def run(fuzzer: Fuzzer, number: int, count: int, *, slow_share: float = 0.04, only: Sequence[str] = ()) -> None:
    """Try about ``count`` inputs, of which ``slow_share`` go where one takes tenths of a second."""
    fuzzer.warm_up([door for door in doors() if (slow_share or not door.is_slow) and (not only or door.name in only)])
    for slow, share in ((False, 1 - slow_share), (True, slow_share)):
        chosen = [(door, file) for door, file in places(slow) if not only or door.name in only]
        each = -(-round(count * share) // (2 * len(chosen))) if share and chosen else 0
        for door, file in chosen if each else []:
            run_structured(fuzzer, door, file, each, number)
            run_bytes(fuzzer, door, file, each, number)


def run_commands(fuzzer: Fuzzer, number: int, count: int) -> None:
    """Try ``count`` inputs through the command line."""
    chance = random.Random(number)
    chosen = [(door, file) for door, file in places() if door.command]
    for index in range(count):
        door, file = chosen[index % len(chosen)]
        content = (fuzzer.valid(door) / file).read_bytes()
        changed = changed_bytes(content, chance)
        fuzzer.try_command(Case(door, file, changed, "by the command line", number * MILLION + index))


def replay(fuzzer: Fuzzer, folder: Path) -> None:
    """Try a saved input again."""
    told = json.loads((folder / "case.json").read_text())
    door = next(door for door in doors() if door.name == told["door"])
    case = Case(door, told["file"], (folder / "content").read_bytes())
    (fuzzer.try_command if told["command"] else fuzzer.try_case)(case)


@contextlib.contextmanager
def fuzzer_in(root: Path, saved: Path, state: Path | None = None) -> Iterator[Fuzzer]:
    """A fuzzer without the libraries' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield Fuzzer(root, saved, state)
        finally:
            logging.disable(logging.NOTSET)


def main() -> int:
    """Run the fuzzer as asked; 1 where an input does not pass."""
    parser = argparse.ArgumentParser(description="Hostile and odd inputs for every way in.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--commands", type=int, default=200)
    parser.add_argument("--door", nargs="*", default=[], choices=[door.name for door in doors()], help="default: all")
    parser.add_argument(
        "--state", type=Path, help="file of inputs, a line of JSON each, for a later call to go on with"
    )
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    saved = SAVED / ("replayed" if options.replay else str(options.seed))
    with (
        tempfile.TemporaryDirectory(prefix="llmcompress-fuzz-") as root,
        fuzzer_in(Path(root), saved, options.state) as fuzzer,
    ):
        if options.replay:
            fuzzer.warm_up(doors())
            replay(fuzzer, options.replay)
        else:
            try:
                run(fuzzer, options.seed, options.count, only=options.door)
                run_commands(fuzzer, options.seed, options.commands)
            except KeyboardInterrupt:
                print("stopped before its end")
    limits = f"each in {LIMIT_S} s, by the command line in {COMMAND_LIMIT_S} s"
    print(f"seed {options.seed}: {sum(fuzzer.counts.values()):,} inputs, {limits}: {dict(fuzzer.counts.most_common())}")
    for fault in fuzzer.faults:
        print(f"{fault.case.door.name} {fault.case.file}: {fault.what}\n  again: make fuzz REPLAY={fault.saved}")
    return 1 if fuzzer.faults else 0


if __name__ == "__main__":
    sys.exit(main())
