"""A small artifact, made in this process or by a child: ``python artifact_fixture.py OUTPUT SEED [options]``."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from llmcompress.artifact import file_records, staging
from llmcompress.errors import LlmcompressError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.record import EnvironmentRecord, Measured, Provenance
from llmcompress.spec import Recipe

CHILD = [sys.executable, "-B", str(Path(__file__))]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}


def contents(seed: int, size: int = 2000) -> dict[str, bytes]:
    """The files of an artifact: other bytes for another seed."""
    return {
        "openvino_model.bin": hashlib.shake_256(b"%d" % seed).digest(size),
        "openvino_model.xml": b"<net seed='%d'/>" % seed,
        "tokenizer/vocab.json": json.dumps({"seed": seed}).encode(),
    }


def manifest_for(directory: Path) -> CompressionReport:
    files = file_records(directory)
    return CompressionReport(
        llmcompress_version="0.1.0",
        provenance=Provenance(
            kind="checkpoint", model_type="llama", architecture="LlamaForCausalLM", dtype="bf16", files=()
        ),
        recipe=Recipe(name="none", method="none"),
        calibration=None,
        environment=EnvironmentRecord(versions={"openvino": "2026.4.1"}, cpu="test", num_threads=1, platform="test"),
        num_parameters=1000,
        bits_per_weight=16.0,
        size_bytes=sum(record.size_bytes for record in files),
        mapped_share=1.0,
        tokenizer="equal",
        chat_template="equal",
        layers=(),
        files=files,
        measured=Measured(created="2026-01-01T00:00:00Z", duration_s=1.0, peak_rss_bytes=1, stages=()),
    )


def write_artifact(
    output: Path,
    seed: int,
    *,
    overwrite: bool = False,
    inputs: tuple[Path, ...] = (),
    size: int = 2000,
    pause_s: float = 0,
) -> Path:
    with staging(output, overwrite=overwrite, inputs=inputs) as staged:
        for name, content in contents(seed, size).items():
            path = staged.path / name
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                for start in range(0, len(content), max(1, len(content) // 4)):
                    file.write(content[start : start + max(1, len(content) // 4)])
                    file.flush()
                    time.sleep(pause_s)
        print("staged", flush=True)
        published = staged.publish(manifest_for(staged.path))
        print("published", flush=True)
        time.sleep(pause_s)
    return published


def seed_of(output: Path, seeds: tuple[int, ...], size: int = 2000) -> int | None:
    """Which artifact the output is, checked without the package; None if it is absent. Fails for anything between."""
    if not os.path.lexists(output):
        return None
    manifest = json.loads((output / "llmcompress.json").read_text())
    listed = {record["path"]: (record["size_bytes"], record["sha256"]) for record in manifest["files"]}
    found = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    del found["llmcompress.json"]
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}
    matching = [seed for seed in seeds if contents(seed, size) == found]
    assert len(matching) == 1, f"no artifact that was ever written: {sorted(found)}"
    return matching[0]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--input", type=Path, action="append", default=[])
    parser.add_argument("--default-sigxfsz", action="store_true")
    parser.add_argument("--flock-always-succeeds", action="store_true")
    parser.add_argument("--no-exchange", action="store_true")
    options = parser.parse_args()
    if options.default_sigxfsz:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if options.flock_always_succeeds:
        import fcntl

        fcntl.flock = lambda descriptor, operation: None
    if options.no_exchange:
        from llmcompress.system import files as exchange

        exchange._exchange = lambda first, second: False
    try:
        write_artifact(
            options.output,
            options.seed,
            overwrite=options.overwrite,
            inputs=tuple(options.input),
            size=options.size,
            pause_s=options.pause,
        )
    except LlmcompressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        print(f"unexpected: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
