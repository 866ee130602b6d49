"""What a search takes: time and own memory of each stage, and further sizes against the time of saving.

python benchmarks/generated_llama.py MODEL
python benchmarks/search_cost.py MODEL --text wikitext2-test-part1.txt
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path

from compress import memory_meanwhile
from rich.console import Console
from rich.table import Table

SHARES = (0.8, 0.9)
"""Further sizes, of the first one's bytes."""


def main() -> None:
    """Search once, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint")
    parser.add_argument("--text", type=Path, required=True, help="text for sensitivity and verdict")
    parser.add_argument("--size", type=int, default=620_000_000, help="limit in bytes")
    parser.add_argument("--num-samples", type=int, default=8, help="windows of 256 tokens for the sensitivity")
    parser.add_argument("--num-windows", type=int, default=4, help="windows of the verdict")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmcompress-bench-") as folder:
        output = Path(folder) / "out"
        options = {"size": args.size, "dataset": args.text, "num-samples": args.num_samples, "num-probes": 0}
        command = [sys.executable, "-m", "llmcompress", "search", str(args.source), "-o", str(output)]
        command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command += ["--num-windows", str(args.num_windows)]
        command += [text for share in SHARES for text in ("--front", str(int(share * args.size)))]
        samples = memory_meanwhile(command, Path(tempfile.gettempdir()) / "search_cost.log")
        report = json.loads((output / "search.json").read_text())
        saved = json.loads((output / "llmcompress.json").read_text())
    print_stages(report, samples)
    save_s = next(each["duration_s"] for each in saved["measured"]["stages"] if each["stage"] == "save")
    further = [each["write_s"] for each in report["further"]]
    print(f"saving {save_s:.1f} s; a further size, graph and all, {' and '.join(f'{each:.1f}' for each in further)} s")


def print_stages(report: dict[str, object], samples: list[tuple[float, int]]) -> None:
    """A row for each stage; what lies between them, checks and imports, is the first row."""
    measured = report["measured"]
    assert isinstance(measured, dict)
    started = datetime.fromisoformat(measured["created"]).timestamp()
    whole, rows = measured["duration_s"], []
    # The moment of the beginning is kept in whole seconds; stages follow one another until the end.
    end = min(started + 1 + whole, samples[-1][0])
    for stage in reversed(measured["stages"]):
        begin = end - stage["duration_s"]
        of_stage = [own for moment, own in samples if begin - 1 <= moment <= end]
        rows.append((stage["stage"], stage["duration_s"], max(of_stage, default=0)))
        end = begin
    rest = whole - sum(seconds for _, seconds, _ in rows)
    rows.append(("before", rest, max((own for moment, own in samples if moment <= end), default=0)))
    table = Table("stage", "s", "peak own memory, GB")
    for name, seconds, peak in reversed(rows):
        table.add_row(name, f"{seconds:.1f}", f"{peak / 1e9:.2f}")
    Console(width=100).print(table)
    print(json.dumps([{"stage": name, "s": seconds, "peak_own_bytes": peak} for name, seconds, peak in reversed(rows)]))


if __name__ == "__main__":
    main()
