"""A tiny Llava, loaded and at int8, once for each file of tests that imports these fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
from vision_fixture import build_vision

import llmcompress

KIND = "llava"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vision(KIND, tmp_path_factory.mktemp(KIND) / "checkpoint")


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> llmcompress.LoadedModel:
    return llmcompress.load(checkpoint)


@pytest.fixture(scope="module")
def int8(loaded: llmcompress.LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp(KIND) / "int8"
    llmcompress.compress(loaded, "int8", output)
    return output
