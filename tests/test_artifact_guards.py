"""Each condition of what guards an output directory, alone: where another one would hold in its place, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from artifact_fixture import write_artifact

from llmcompress.artifact.placement import checked_output, refuse_existing, refuse_overlap, resolve_output
from llmcompress.errors import UsageError, WriteError

# --- may the output go there


@pytest.mark.parametrize("error", [OSError("no"), RuntimeError("no"), ValueError("no")])
def test_a_path_that_cannot_be_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(self: Path) -> Path:
        raise error

    monkeypatch.setattr(Path, "resolve", refuse)
    with pytest.raises(UsageError, match="cannot be an output directory: no"):
        resolve_output(tmp_path)


def test_a_mount_point_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(UsageError, match="is a mount point"):
        resolve_output(tmp_path)


def test_what_is_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = write_artifact(tmp_path / "out", 1)
    with pytest.raises(UsageError, match="exists already"):
        checked_output(made, (), overwrite=False)
    assert checked_output(made, (), overwrite=True) == made
    with pytest.raises(WriteError, match="File name too long"):
        refuse_existing(tmp_path / ("a" * 300), overwrite=False)


def test_an_input_that_is_not_there_yet(tmp_path: Path) -> None:
    target = tmp_path / "out"
    refuse_overlap(target, [tmp_path / "other"])
    for given, message in [(target, "is the input itself"), (target / "model", "contains the input")]:
        with pytest.raises(UsageError, match=message):
            refuse_overlap(target, [tmp_path / "other", given])
