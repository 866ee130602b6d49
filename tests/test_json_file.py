"""JSON objects of a model's directory, and notes that later runs can do without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmcompress.errors import ModelError
from llmcompress.system import json_file
from llmcompress.system.json_file import noted, read_json, write_json


def test_an_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, "ä"], "b": null}', encoding="utf-8")
    assert read_json(path) == {"a": [1, "ä"], "b": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer, not the file itself"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"{", "it is not JSON"),
        (b"\xff{}", "it is not JSON"),
        ('{"a": 1}'.encode("utf-16"), "it is not JSON"),
        (b"[1]", "it holds a list; an object is needed"),
        (b'"a"', "it holds a str; an object is needed"),
    ],
)
def test_what_is_no_object_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_json(path)
    assert caught.value.message.startswith(message)
    assert caught.value.where == str(path)
    assert caught.value.hint == ("run `git lfs pull`" if "LFS" in message else "download the file again")
    assert noted(path) == {}


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(ModelError, match="the file is missing") as caught:
            read_json(path)
        assert (caught.value.where, caught.value.hint) == (str(path), "download the file again")
        assert noted(path) == {}

    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, os.strerror(13))

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match="it cannot be read: Permission denied") as caught:
        read_json(tmp_path / "config.json")
    assert (caught.value.where, caught.value.hint) == (str(tmp_path / "config.json"), "download the file again")


def test_no_more_is_read_than_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": 10}')
    assert json_file.MAX_BYTES == 64_000_000
    monkeypatch.setattr(json_file, "MAX_BYTES", 9)
    assert read_json(path) == {"a": 10}
    path.write_bytes(b'{"a": 10} ')
    with pytest.raises(ModelError, match="it has more than 9 bytes") as caught:
        read_json(path)
    assert (caught.value.where, caught.value.hint) == (str(path), "download the file again")
    # What comes after is not looked at.
    sizes: list[int] = []
    open_ = Path.open

    class Watched:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, size: int) -> bytes:
            sizes.append(size)
            content: bytes = self.file.read(size)
            return content

    monkeypatch.setattr(Path, "open", lambda self, mode: Watched(open_(self, mode)))
    with pytest.raises(ModelError, match="it has more than 9 bytes"):
        read_json(path)
    assert sizes == [10]


def test_a_note_is_read_where_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(b'{"a": 1}')
    assert noted(path) == {"a": 1}
    for end in range(8):
        path.write_bytes(b'{"a": 1}'[:end])
        assert noted(path) == {}


def test_the_same_content_is_written_the_same(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    write_json(path, {"b": "ä", "a": {"d": 1, "c": [2]}})
    assert path.read_bytes() == ('{\n  "a": {\n    "c": [\n      2\n    ],\n    "d": 1\n  },\n  "b": "ä"\n}\n'.encode())
    assert json.loads(path.read_bytes()) == {"a": {"c": [2], "d": 1}, "b": "ä"}


def test_encodings_and_line_ends_are_the_same_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    read, write = Path.read_text, Path.write_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: asked.append(how) or read(self, **how))
    monkeypatch.setattr(Path, "write_text", lambda self, text, **how: asked.append(how) or write(self, text, **how))
    write_json(tmp_path / "note.json", {"a": 1})
    assert noted(tmp_path / "note.json") == {"a": 1}
    assert asked == [{"encoding": "utf-8", "newline": "\n"}, {"encoding": "utf-8"}]
