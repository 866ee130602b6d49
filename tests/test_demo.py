"""The demo: three artifacts of the bundled checkpoint, smaller each, what that cost, and an answer from each."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmcompress
from llmcompress.cli import demo


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    report = demo.run(tmp_path / "demo")
    assert [variant.report.recipe.name for variant in report.variants] == list(demo.RECIPES)
    sizes = [variant.report.size_bytes for variant in report.variants]
    assert sizes == sorted(sizes, reverse=True)
    for variant in report.variants:
        assert llmcompress.verify(variant.directory).ok
        assert variant.answer
        assert variant.num_generated_tokens <= demo.MAX_NEW_TOKENS
        assert (Path(variant.directory) / "eval.json").is_file()
        assert (Path(variant.directory) / "bench.json").is_file()
        assert variant.speed.cases[0].decode_tokens_per_s is not None
        assert variant.speed.peak_rss_bytes > 10_000_000
    assert report.variants[0].stopped
    none, int8, int4 = (variant.evaluation for variant in report.variants)
    assert none.divergence is none.verdict is None
    assert int8.verdict == "equivalent"
    assert int8.divergence is not None
    assert int4.divergence is not None
    assert 0 < int8.divergence.kl_divergence.value < int4.divergence.kl_divergence.value
    assert int8.divergence.top1_agreement.value > int4.divergence.top1_agreement.value
