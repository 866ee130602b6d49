"""Commands in odd surroundings: users, permissions, names, languages, clocks, closed streams, what is read-only.

    PYTHONPATH=tests python tests/faults/surroundings.py --state points.jsonl
    PYTHONPATH=tests python tests/faults/surroundings.py --case "no HOME"

Each case makes an artifact and verifies it. It works and gives the bytes that it gives elsewhere, or ends with a code
and words that say what is in the way.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import interception
from interception import Ended, to_its_end
from invariants import leaks, said_badly, tree, units
from points import Point, Points, add_arguments, table
from rebuild import OTHER_USER, as_user, other_user_refused
from scenes import INT4, PARTS, SECRET, command, environment

CLOCK = Path(__file__).with_name("clock.c")
FAILED_WRITE, REFUSED, USAGE = 8, 3, 2
LONGEST = 255
READ_ONLY = (
    'for part in $0; do mount --bind "$part" "$part" && mount -o remount,bind,ro "$part" || exit 99; done; exec "$@"'
)
"""In a name space of its own, so that only this command sees it; permissions would not stop root."""


class Case(NamedTuple):
    """What surrounds a command."""

    name: str
    codes: tuple[int, ...] = ()
    """With which it may end; none: it has to work."""
    settings: tuple[tuple[str, str], ...] = ()
    """Of the environment; ``PLACE`` stands for the place."""
    without: tuple[str, ...] = ()
    """What the environment lacks."""
    shell: str = ""
    """Begins the shell that carries the command out."""
    output: bytes = b"model"
    source: bytes = b"model"
    read_only: tuple[str, ...] = ()
    """Parts of the place."""
    user: int | None = None
    clock: tuple[int, int] = (0, 1)
    """By how many seconds it jumps, and how often it is looked at between two jumps."""
    cached: bool = True
    """Whether ``LLMCOMPRESS_CACHE`` and ``HF_HOME`` are set; where they are not, root would write into its own home."""
    mode: int = 0
    """Bits that no file of the output may have."""


DAY = 86400
CASES = (
    Case("umask 000", shell="umask 000"),
    Case("umask 077", shell="umask 077", mode=0o077),
    Case("umask 777", codes=(FAILED_WRITE,), shell="umask 777", user=OTHER_USER),
    Case("no HOME", without=("HOME",), cached=False, user=OTHER_USER),
    Case("HOME is not there", settings=(("HOME", "/nonexistent"),), cached=False, user=OTHER_USER),
    Case("HOME is empty", settings=(("HOME", ""),), cached=False, user=OTHER_USER),
    Case("HOME is read-only", read_only=("home",), cached=False),
    Case("HOME is a file", settings=(("HOME", "/dev/null"),), cached=False),
    Case("the cache is read-only", read_only=("cache",)),
    Case("the cache is a file", settings=(("LLMCOMPRESS_CACHE", "/dev/null"), ("HF_HOME", "/dev/null"))),
    Case("TMPDIR is read-only", read_only=("tmp",)),
    Case("TMPDIR is not there", settings=(("TMPDIR", "/nonexistent"),)),
    Case("only the output can be written", read_only=("cache", "home", "tmp", "work", "in")),
    Case("nothing can be written", (FAILED_WRITE,), read_only=("cache", "home", "tmp", "work", "in", "out")),
    Case("LANG=C", settings=(("LANG", "C"), ("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0"))),
    Case("a language that is not there", settings=(("LANG", "xx_XX"), ("LC_ALL", "xx_XX.nothing"))),
    Case("output in ASCII", settings=(("PYTHONIOENCODING", "ascii"),), output="größer 模型".encode()),
    Case("Turkish, and an odd time zone", settings=(("LANG", "tr_TR.UTF-8"), ("TZ", "XYZ-14:59"))),
    Case("a terminal of one column", settings=(("COLUMNS", "1"), ("TERM", "dumb"), ("FORCE_COLOR", "1"))),
    Case("hashes by another seed", settings=(("PYTHONHASHSEED", "4294967295"),)),
    Case("PATH is empty", settings=(("PATH", ""),)),
    Case("stdin is closed", shell="exec <&-"),
    Case("stdout is closed", shell="exec >&-"),
    Case("stderr is closed", shell="exec 2>&-"),
    Case("stdout is full", (1, FAILED_WRITE), shell="exec >/dev/full"),
    Case("stderr is full", shell="exec 2>/dev/full"),
    Case("the working directory is gone", (USAGE,), shell='mkdir gone && cd gone && rmdir "$PWD"'),
    Case("64 open files", shell="ulimit -n 64"),
    Case("24 open files", (1, REFUSED, FAILED_WRITE), shell="ulimit -n 24"),
    Case("spaces and quotes", output=b" two  words'\"$HOME;`*? ", source=b"the model"),
    Case("a name that is no UTF-8", (USAGE,), output=b"\xff\xfe model"),
    Case("a source whose name is no UTF-8", (USAGE,), source=b"\xe4\xf6"),
    Case("a name of 255 bytes", output=b"x" * LONGEST),
    Case("a source with a name of 255 bytes", source=b"y" * LONGEST),
    Case("a name of 255 bytes in 85 characters", output="模".encode() * 85),
    Case("a name of 256 bytes", (USAGE, FAILED_WRITE), output=b"x" * (LONGEST + 1)),
    Case("a line break in the name", (USAGE,), output=b"two\nlines"),
    Case("the clock goes back by a day", clock=(-DAY, 50)),
    Case("the clock goes on by a year", clock=(365 * DAY, 50)),
    Case("the clock jumps at every look", clock=(-3600, 1)),
    Case("1970", clock=(-int(time.time()) + 10, 10**9)),
    Case("another user", user=OTHER_USER),
    Case("another user, the cache is root's", user=OTHER_USER, read_only=("cache",)),
    Case("another user, the output is root's", (FAILED_WRITE,), user=OTHER_USER, read_only=("out",)),
)


def begun(place: Path) -> str:
    """Make the sources, and the artifact as it is elsewhere; returns its digest."""
    from tiny_models import build_checkpoint

    for part in PARTS:
        (place / part).mkdir(parents=True)
    model = build_checkpoint(place / "in/model", num_hidden_layers=1)
    for case in CASES:
        link = os.fsencode(place / "in") + b"/" + case.source
        if not os.path.lexists(link):
            shutil.copytree(os.fsencode(model), link)
    ended = to_its_end(command("compress", model, *INT4, "-o", place / "out/first"), environment(place), place / "work")
    if ended.returncode:
        raise RuntimeError(f"an undisturbed run failed: {ended.stderr}")
    return units(place / "out")["first/"]


def settings_of(place: Path, case: Case, clock: Path) -> dict[str, str]:
    """The environment of a case."""
    found = environment(place) | dict(case.settings)
    if not case.cached:
        del found["LLMCOMPRESS_CACHE"], found["HF_HOME"]
    if case.clock[0]:
        found |= {"LD_PRELOAD": str(clock), "FAULTS_JUMP_S": str(case.clock[0]), "FAULTS_EVERY": str(case.clock[1])}
    return {name: value for name, value in found.items() if name not in case.without}


def carried_out(place: Path, case: Case, arguments: Sequence[str], clock: Path) -> Ended:
    """Run a command in the surroundings of a case."""
    command = ["sh", "-c", f'{case.shell}\nexec "$@"', "sh", *arguments] if case.shell else list(arguments)
    command = [*as_user(case.user), *command]
    if case.read_only and case.user is None:
        parts = " ".join(str(place / part) for part in case.read_only)
        command = ["unshare", "--mount", "sh", "-c", READ_ONLY, parts, *command]
    return to_its_end(command, settings_of(place, case, clock), place / "work")


def tried(place: Path, whole: str, case: Case, clock: Path) -> Point:
    """Compress and verify; look at what was said and what there is."""
    for part in PARTS:
        if part != "in":
            shutil.rmtree(place / part)
            (place / part).mkdir()
            if case.user is not None and part not in case.read_only:
                os.chown(place / part, case.user, case.user)
    before = tree(place / "in")
    output = os.fsdecode(os.fsencode(place / "out") + b"/" + case.output)
    source = os.fsdecode(os.fsencode(place / "in") + b"/" + case.source)
    ended = carried_out(place, case, command("compress", source, *INT4, "-o", output), clock)
    lost, wrong = list[str](), list[str]()
    leaked = list(leaks(place, ended, SECRET))
    quiet = "stderr" in case.name
    if ended.returncode and not quiet:
        wrong += said_badly(ended, frozenset(case.codes))
    if ended.returncode == 0:
        lost += made(place, whole, output, case)
        verified = carried_out(place, case, command("verify", output), clock)
        if verified.returncode and verified.returncode not in case.codes:
            wrong.append(f"verify ended with {verified.returncode}: {verified.stderr[-200:]}")
    elif not case.codes:
        lost.append(f"it ended with {ended.returncode}: {ended.stderr[-300:]}")
    elif set(units(place / "out").values()) - {whole}:
        lost.append("something else is in place")
    leaked += [f"left behind: {path.name}" for path in (place / "out").iterdir() if path.name.startswith(".")]
    leaked += [f"left behind: {path.name}" for path in (place / "work").iterdir()]
    if tree(place / "in") != before:
        lost.append("an input was changed")
    return Point("compress, verify", case.name, 0, "", ended.returncode, lost, leaked, wrong)


def made(place: Path, whole: str, output: str, case: Case) -> Iterator[str]:
    """What is not as it is elsewhere."""
    try:
        if set(units(place / "out").values()) != {whole}:
            yield "other bytes than elsewhere"
    except (ValueError, OSError, KeyError) as error:
        yield f"not whole: {error}"
    for path in (Path(output), *Path(output).rglob("*")):
        if stat.S_IMODE(path.stat().st_mode) & case.mode:
            yield f"{path.name} may be read by others"


def main() -> None:
    """Try every case, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--every", type=int, default=1, help="of the cases")
    add_arguments(parser, "case")
    args = parser.parse_args()
    if reason := interception.why_not():
        sys.exit(f"not swept: {reason}")
    points, deadline = Points(args.state), time.monotonic() + args.limit_s
    refused = other_user_refused()
    with tempfile.TemporaryDirectory(prefix="llmcompress-faults-") as folder:
        Path(folder).chmod(0o755)
        place, clock = Path(folder) / "place", interception.build(Path(folder), CLOCK)
        whole = begun(place)
        for case in CASES[:: args.every]:
            if (args.case and case.name not in args.case) or points.has_survived("compress, verify", case.name, 0):
                continue
            if refused and (case.user is not None or case.read_only):
                print(f"not swept: {case.name}: {refused}")
            elif time.monotonic() < deadline:
                points.add(tried(place, whole, case, clock))
    print(table(points.all))


if __name__ == "__main__":
    main()
