"""A sealed file is known from a damaged one, whatever is damaged."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from llmcompress.system import sealed
from llmcompress.system.sealed import Sealing, is_sealed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    with path.open("xb") as stream:
        sealing = Sealing(stream)
        assert [sealing.write(b"first"), sealing.write(b" and second")] == [5, 11]
        sealing.flush()
        assert path.stat().st_size == 16
        sealing.seal()
    return path


def test_a_sealed_file_ends_with_its_hash(file: Path) -> None:
    assert file.read_bytes() == b"first and second" + hashlib.sha256(b"first and second").digest()
    assert is_sealed(file)


def test_every_changed_bit_and_every_cut_is_seen(file: Path) -> None:
    content = file.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            assert not is_sealed(file)
        file.write_bytes(content[:place])
        assert not is_sealed(file)
    file.write_bytes(content + b"\0")
    assert not is_sealed(file)


@pytest.mark.parametrize("size", range(17))
def test_files_of_every_size(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_CHUNK_BYTES", 7)
    content = bytes(range(size))
    (tmp_path / "state").write_bytes(content + hashlib.sha256(content).digest())
    assert is_sealed(tmp_path / "state")


def test_what_is_not_there_is_not_sealed(tmp_path: Path) -> None:
    assert not is_sealed(tmp_path / "state")
    assert not is_sealed(tmp_path)


def test_a_large_file_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "_CHUNK_BYTES", 7)
    sizes: list[int] = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size or 0)
            return super().read(size)

    content = bytes(range(100))
    whole = content + hashlib.sha256(content).digest()
    monkeypatch.setattr(Path, "open", lambda *_: Watched(whole))
    assert is_sealed(tmp_path / "state")
    assert sizes == [*[7] * 14, 2, -1]
