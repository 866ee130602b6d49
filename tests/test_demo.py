"""The demo: three artifacts of the bundled checkpoint, smaller each, and an answer from each."""

from __future__ import annotations

from pathlib import Path

import llmcompress
from llmcompress import demo


def test_demo(tmp_path: Path) -> None:
    report = demo.run(tmp_path / "demo")
    assert [variant.report.recipe.name for variant in report.variants] == list(demo.RECIPES)
    sizes = [variant.report.size_bytes for variant in report.variants]
    assert sizes == sorted(sizes, reverse=True)
    for variant in report.variants:
        assert llmcompress.verify(variant.directory).ok
        assert variant.answer
        assert variant.num_generated_tokens <= demo.MAX_NEW_TOKENS
    assert report.variants[0].stopped
