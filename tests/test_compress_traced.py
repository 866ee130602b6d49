"""The system calls of a whole local run: no name look-up, no connection, no full-precision model, no stray file."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from compress_fixture import Undisturbed, tree, undisturbed

__all__ = ["undisturbed"]

_CALL = re.compile(r"^\d+ +(\w+)\((.*)$")
_OPENED = re.compile(r'(?:AT_FDCWD|\d+)?(?:<[^>]*>)?(?:, )?"((?:[^"\\]|\\.)*)", (O_[A-Z_|]+).*= \d+<(.*)>$')
_WRITTEN = re.compile(r"^\d+<([^>]*)>.* = (\d+)$")


class Trace:
    """What a trace says, as far as it is asked for here."""

    def __init__(self, path: Path) -> None:
        self.network: list[str] = []
        self.connections: list[str] = []
        self.opened: list[str] = []
        self.opened_to_write: list[str] = []
        self.made: list[str] = []
        self.renames: list[str] = []
        self.bytes_written: dict[str, int] = defaultdict(int)
        for line in _whole_lines(path):
            if not (call := _CALL.match(line)):
                continue
            name, rest = call[1], call[2]
            if name in {"openat", "open", "creat"}:
                self._open(rest)
            elif name in {"write", "writev", "pwrite64", "pwritev"}:
                if written := _WRITTEN.match(rest):
                    self.bytes_written[_decoded(written[1])] += int(written[2])
            elif name.startswith("mkdir") and rest.endswith("= 0"):
                self.made.append(_decoded(rest.split('"')[1]))
            elif name.startswith("rename"):
                self.renames.append(_decoded(rest))
            elif name in {"connect", "sendto", "sendmsg", "sendmmsg"}:
                self.connections.append(f"{name}({rest}")
            self.network += [line] if "AF_INET" in line else []

    def _open(self, rest: str) -> None:
        self.opened.append(rest.split('"')[1] if '"' in rest else rest)
        if (opened := _OPENED.match(rest)) and re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", opened[2]):
            self.opened_to_write.append(_decoded(opened[3]))


def _whole_lines(path: Path) -> list[str]:
    """The lines of a trace; a call during which another thread made one is put together again."""
    whole, begun = [], {}
    for line in path.read_text(encoding="utf-8", errors="backslashreplace").splitlines():
        pid = line.split(" ", 1)[0]
        if line.endswith("<unfinished ...>"):
            begun[pid] = line.removesuffix("<unfinished ...>")
        elif resumed := re.match(r"\d+ +<\.\.\. \w+ resumed>(.*)$", line):
            whole.append(begun.pop(pid, "") + resumed[1])
        else:
            whole.append(line)
    return whole


def _decoded(text: str) -> str:
    """A path as strace writes it, with octal escapes, as text."""
    return re.sub(r"\\([0-7]{1,3})", lambda octal: chr(int(octal[1], 8)), text).encode("latin-1", "replace").decode()


@pytest.fixture(scope="module")
def trace(undisturbed: Undisturbed) -> Trace:
    if undisturbed.trace is None:
        pytest.skip("strace is not installed or may not trace here")
    assert undisturbed.report.returncode == 0, undisturbed.report.stderr
    return Trace(undisturbed.trace)


def test_the_trace_was_read(trace: Trace, undisturbed: Undisturbed) -> None:
    """What must be in it is: otherwise the tests below could not fail."""
    assert any(path.endswith("/config.json") for path in trace.opened)
    assert any(path.endswith("/llmcompress.json") for path in trace.opened_to_write)
    assert sum(trace.bytes_written.values()) > 400_000
    assert sum(str(undisturbed.other_output) in rename for rename in trace.renames) == 1


def test_nothing_is_sent_and_no_name_is_looked_up(trace: Trace) -> None:
    assert [call for call in trace.connections if "AF_UNIX" not in call] == []
    # urllib3 binds a socket to the loopback address to see whether there is IPv6.
    assert [
        line for line in trace.network if "socket(" not in line and "::1" not in line and "127.0.0.1" not in line
    ] == []
    assert [path for path in trace.opened if path.endswith(("/resolv.conf", "/etc/hosts"))] == []


def test_every_file_is_written_in_its_place(trace: Trace, undisturbed: Undisturbed) -> None:
    place, output = undisturbed.other_place, undisturbed.other_output
    staging = f"{place}/.{output.name}.staging-"
    elsewhere = [
        path
        for path in trace.opened_to_write
        if not path.startswith((staging, f"{place}/.{output.name}.lock", f"{place}/cache/", "/dev/"))
    ]
    # Python's tempfile tries whether the directory can be written, with a few bytes.
    assert [path for path in elsewhere if not path.startswith(f"{place}/tmp/")] == []
    assert sum(trace.bytes_written[path] for path in elsewhere) < 1000
    assert [path for path in trace.opened_to_write if path.startswith(staging)]
    made = [str(place / path) for path in trace.made]
    assert [path for path in made if not path.startswith((staging, f"{place}/cache/", f"{place}/tmp/"))] == []


def test_no_model_is_written_but_the_compressed_one(trace: Trace, undisturbed: Undisturbed) -> None:
    final = (undisturbed.other_output / "openvino_model.bin").stat().st_size
    source_bytes = len(undisturbed.checkpoint_tree["model.safetensors"])
    assert final < 0.5 * source_bytes
    binaries = [path for path in trace.opened_to_write if path.endswith((".bin", ".safetensors", ".pt", ".npy"))]
    assert sorted(Path(path).name for path in binaries) == [
        "openvino_detokenizer.bin",
        "openvino_model.bin",
        "openvino_tokenizer.bin",
    ]
    [model] = [path for path in binaries if path.endswith("/openvino_model.bin")]
    # It is mapped: no call writes to it.
    assert trace.bytes_written[model] == 0
    # The IR's text, the tokenizer in two forms and what the tokenizer's converter keeps for a moment.
    in_staging = sum(size for path, size in trace.bytes_written.items() if ".staging-" in path)
    assert in_staging < source_bytes


def test_home_stays_empty_and_nothing_is_left(undisturbed: Undisturbed) -> None:
    place = undisturbed.other_place
    assert list((place / "home").iterdir()) == []
    assert tree(place / "tmp") == {}
    assert tree(place / "hf") == {}
    expected = {"home", "tmp", "hf", "cache", undisturbed.other_source, undisturbed.other_output.name}
    assert {path.name for path in place.iterdir()} - {"trace"} == expected
