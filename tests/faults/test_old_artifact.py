"""An artifact as the first version that evaluated wrote it: a later one reads it, or says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from interception import run_here

from llmcompress.artifact import read_measurements

FROZEN = Path(__file__).with_name("old_artifact")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FROZEN, tmp_path / "old"))


def test_an_artifact_of_an_earlier_version_is_verified_described_and_compared(old: Path) -> None:
    verified = run_here(["verify", str(old)])
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "12 files, all as the manifest says" in verified.stdout
    assert run_here(["card", str(old)]).returncode == 0
    divergence = json.loads((old / "eval.json").read_bytes())["divergence"]["kl_divergence"]["value"]
    compared = run_here(["compare", str(old)])
    assert compared.returncode == 0
    assert f"{divergence:.2e}" in compared.stdout
    assert run_here(["recipes", "show", str(old / "recipe.yaml")]).stdout.startswith("name: int8\n")


def test_damage_of_an_earlier_versions_artifact_is_found(old: Path) -> None:
    with (old / "openvino_model.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\x01\x02")
    verified = run_here(["verify", str(old)])
    assert verified.returncode == 4
    assert "openvino_model.bin" in verified.stdout + verified.stderr


def test_its_graph_is_read_and_run(old: Path) -> None:
    import numpy as np
    import openvino as ov

    model = ov.Core().compile_model(old / "openvino_model.xml", "CPU")
    names = {name for port in model.inputs for name in port.get_names()}
    values = {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]], "position_ids": [[0, 1, 2]], "beam_idx": [0]}
    logits = model({name: np.array(value) for name, value in values.items() if name in names})["logits"]
    assert logits.shape[:2] == (1, 3)
    assert np.isfinite(logits).all()


def test_a_report_of_a_later_version_is_not_used(old: Path) -> None:
    report = json.loads((old / "eval.json").read_bytes())
    assert read_measurements(old).evaluation is not None
    (old / "eval.json").write_text(json.dumps(report | {"schema_version": 2}))
    found = read_measurements(old)
    assert found.evaluation is None
    assert found.unused["eval.json"] == "it has version 2, and this llmcompress reads up to 1"
