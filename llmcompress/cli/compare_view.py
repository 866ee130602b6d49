"""A comparison of artifacts for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmcompress.cli.console import stdout
from llmcompress.wording import interval_text, rate_text, shape_text, size_text

if TYPE_CHECKING:
    from llmcompress.comparison import Summary

_NOTHING = "not measured"


def print_comparison(rows: Sequence[Summary]) -> None:
    """Print one column for each artifact."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", style="bold", no_wrap=True)
    for row in rows:
        table.add_column(row.directory, justify="right", overflow="fold")
    lines = {
        "recipe": [row.recipe for row in rows],
        "size": [size_text(row.size_bytes) for row in rows],
        "bits per weight": [f"{row.bits_per_weight:.2f}" for row in rows],
        "perplexity": [interval_text(row.perplexity, ".4g") if row.perplexity else _NOTHING for row in rows],
        "KL divergence": [interval_text(row.kl_divergence, ".3g") if row.kl_divergence else _NOTHING for row in rows],
        "top-1 agreement": [
            interval_text(row.top1_agreement, ".1%") if row.top1_agreement else _NOTHING for row in rows
        ],
        "verdict": [row.verdict or _NOTHING for row in rows],
        "gate": [{True: "passed", False: "FAILED", None: _NOTHING}[row.gate_passed] for row in rows],
        "shape": [shape_text(row.shape) if row.shape else _NOTHING for row in rows],
        "ttft": [f"{row.ttft_s.p50 * 1e3:.4g} ms" if row.ttft_s else _NOTHING for row in rows],
        "tpot": [f"{row.tpot_s.p50 * 1e3:.4g} ms" if row.tpot_s else _NOTHING for row in rows],
        "prefill tokens/s": [rate_text(row.prefill_tokens_per_s) or _NOTHING for row in rows],
        "decode tokens/s": [rate_text(row.decode_tokens_per_s) or _NOTHING for row in rows],
        "peak memory": [size_text(row.peak_rss_bytes) if row.peak_rss_bytes else _NOTHING for row in rows],
    }
    for name, values in lines.items():
        table.add_row(name, *values)
    stdout().print(table)
