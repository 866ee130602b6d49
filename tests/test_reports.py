"""Reports in an output directory: each read as itself, and only where it was measured on the bytes that are there."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from push_fixture import add_reports, evaluation, make_artifact, searched, tuning
from test_cli import SPEED

from llmcompress.artifact import manifest_sha256, read_manifest, read_measurements, write_report
from llmcompress.artifact.reports import add_benchmark
from llmcompress.errors import ArtifactError
from llmcompress.report.benchmark import BenchReport


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "made")


def benched(directory: Path, **asked: Any) -> BenchReport:
    spec = SPEED.spec.model_copy(update=asked)
    return SPEED.model_copy(update={"manifest_sha256": manifest_sha256(directory), "spec": spec})


def test_each_report_is_read_as_itself(made: Path) -> None:
    found = read_measurements(made)
    assert found == (read_manifest(made), manifest_sha256(made), None, None, None, None, {}, ())
    add_reports(made)
    write_report(made, "tune.json", tuning(made))
    write_report(made, "search.json", searched(made))
    found = read_measurements(made)
    assert found.manifest == read_manifest(made)
    assert found.manifest_sha256 == manifest_sha256(made)
    assert found.evaluation == evaluation(made)
    assert found.benchmark == benched(made)
    assert found.benchmarks == (benched(made),)
    assert (found.tuning, found.search, found.unused) == (tuning(made), searched(made), {})
    with pytest.raises(ArtifactError, match="is no llmcompress artifact"):
        read_measurements(made.parent)


def test_a_report_is_written_as_lines_that_a_person_reads(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Path] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: moved.append(self.parent) or replace(self, target))
    report = evaluation(made)
    assert write_report(made, "eval.json", report) == made / "eval.json"
    # What a kill leaves of it is no file of the artifact.
    assert moved == [made.parent]
    assert (made / "eval.json").read_text() == json.dumps(json.loads(report.model_dump_json()), indent=2) + "\n"


def test_of_two_runs_of_one_question_the_later_one_stays(made: Path) -> None:
    first = benched(made, devices=("CPU",), repetitions=3)
    assert add_benchmark(made, first) == made / "bench.json"
    again = benched(made, devices=("CPU",), repetitions=4)
    add_benchmark(made, again)
    assert read_measurements(made).benchmarks == (again,)
    other = benched(made, devices=("GPU",))
    add_benchmark(made, other)
    assert read_measurements(made).benchmark == other
    assert read_measurements(made).benchmarks == (other, again)
    # What was measured on other bytes does not stay beside it.
    write_report(made, "bench.json", other.model_copy(update={"manifest_sha256": "0" * 64}))
    add_benchmark(made, again)
    assert read_measurements(made).benchmarks == (again,)
    # A file of one run is the report itself, as earlier versions read it.
    assert "other_runs" not in json.loads((made / "bench.json").read_text())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 2}, "it has version 2, and this llmcompress reads up to 1"),
        ({"manifest_sha256": "0123456789abcdef"}, "it was measured on other bytes, of manifest 0123456789ab"),
        ({"manifest_sha256": None}, "it was measured on other bytes, of manifest unknown"),
        ({"steadiness": {"load_before": "x"}}, r"it cannot be read: steadiness.load_before: Input should be a valid"),
    ],
)
def test_a_report_that_is_not_used_is_named_with_the_reason(made: Path, changes: dict[str, Any], reason: str) -> None:
    add_reports(made)
    path = made / "bench.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    found = read_measurements(made)
    assert list(found.unused) == ["bench.json"]
    assert found.unused["bench.json"].startswith(reason)
    assert found.benchmark is None
    assert found.evaluation == evaluation(made)


def test_a_report_that_cannot_be_read_says_why(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_reports(made)
    write_report(made, "eval.json", evaluation(made, digest="f" * 64))
    (made / "tune.json").write_text("half a rep")
    read_bytes = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "bench.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert read_measurements(made).unused == {
        "eval.json": "it was measured on other bytes, of manifest ffffffffffff",
        "bench.json": "it cannot be read: Permission denied",
        "tune.json": "it is not JSON",
    }
