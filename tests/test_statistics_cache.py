"""Activation statistics are used again only where everything they depend on is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcompress.compression.nncf.statistics import statistics
from llmcompress.report.record import CalibrationRecord, FileRecord, Provenance
from llmcompress.spec import StatisticsPrecision, WeightCompression

WEIGHTS = FileRecord(path="model.safetensors", size_bytes=1, sha256="a" * 64)
CONFIG = FileRecord(path="config.json", size_bytes=1, sha256="b" * 64)
PROVENANCE = Provenance(
    kind="checkpoint", model_type="llama", architecture="LlamaForCausalLM", dtype="bf16", files=(CONFIG, WEIGHTS)
)
CALIBRATION = CalibrationRecord(dataset="x.txt", num_windows=4, seq_len=8, seed=0, token_ids_sha256="c" * 64)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path))


def _collect(
    provenance: Provenance = PROVENANCE,
    calibration: CalibrationRecord = CALIBRATION,
    precision: StatisticsPrecision = "f32",
) -> bool:
    """Use the cache as a run does; True if the statistics had to be collected."""
    with statistics(provenance, calibration, precision) as directory:
        if directory.exists():
            assert (directory / "statistics").read_bytes() == b"numbers"
            return False
        directory.mkdir()
        (directory / "statistics").write_bytes(b"numbers")
    return True


def test_collected_once() -> None:
    assert [_collect(), _collect(), _collect()] == [True, False, False]


def test_anything_else_is_another_key() -> None:
    assert _collect()
    other_config = CONFIG.model_copy(update={"sha256": "d" * 64})
    assert _collect(PROVENANCE.model_copy(update={"files": (other_config, WEIGHTS)}))
    assert _collect(calibration=CALIBRATION.model_copy(update={"token_ids_sha256": "e" * 64}))
    assert _collect(calibration=CALIBRATION.model_copy(update={"num_windows": 3}))
    assert _collect(precision="bf16")
    assert not _collect()


def test_damage_is_noticed(tmp_path: Path) -> None:
    assert _collect()
    kept = next((tmp_path / "statistics").glob("*/statistics"))
    kept.write_bytes(b"nimbers")
    assert _collect()
    assert not _collect()


def _interrupted() -> None:
    with statistics(PROVENANCE, CALIBRATION, "f32") as directory:
        directory.mkdir()
        (directory / "statistics").write_bytes(b"half")
        raise KeyboardInterrupt


def test_interrupted_collection_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    assert not list((tmp_path / "statistics").iterdir())
    assert _collect()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    assert _collect()
    kept = next((tmp_path / "statistics").iterdir())
    abandoned = kept.with_name(f"{kept.name}.{2**22 + 1}-0badcafe")
    kept.rename(abandoned)
    assert _collect()
    assert [path.name for path in (tmp_path / "statistics").iterdir()] == [kept.name]


def test_a_cache_that_cannot_be_written_stops_no_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert [_collect(), _collect()] == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scale_estimation": True}, True),
        ({"gptq": True}, False),
        ({"gptq": True, "awq": True}, True),
        ({"gptq": True, "ratio": 0.5}, True),
        ({"ratio": 0.5, "sensitivity_metric": "mean_activation_variance"}, True),
        ({"ratio": 0.5}, True),
        ({"awq": True}, True),
    ],
)
def test_which_methods_use_it(options: dict[str, object], expected: bool) -> None:
    """Beside calibration data; GPTQ collects its Hessians apart."""
    assert WeightCompression.model_validate({"mode": "int4_sym", **options}).collects_statistics is expected
