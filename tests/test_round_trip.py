"""Pushed by one, pulled by another: the same bytes, the same numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_fixture import spec_of
from fake_hub import FakeHub, running, use
from push_fixture import card, held, model_of

import llmcompress
from llmcompress.artifact import verify
from llmcompress.cli import run
from llmcompress.publishing import fetch_artifact


@pytest.mark.parametrize("against", [None, pytest.param("none", marks=pytest.mark.slow)])
def test_a_pushed_artifact_evaluates_to_the_same_numbers(
    wikitext: Path,
    artifact: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    against: str | None,
) -> None:
    model = tmp_path / "ref-llama-8m-int8-ov"
    shutil.copytree(artifact("int8"), model)
    (model / "eval.json").unlink(missing_ok=True)
    spec = spec_of(wikitext, num_windows=2)
    reference = artifact(against) if against else None
    here = llmcompress.evaluate(model, spec, reference=reference)
    monkeypatch.setenv("HF_TOKEN", "hf_roundtrip")
    with running(FakeHub(cdn=True)) as hub:
        use(hub.url, tmp_path / "sender", monkeypatch)
        # Without a reference there is no divergence to judge it by.
        report = llmcompress.push_to_hub(model, render=card, force=reference is None)
        assert report.repo_id == "acme/ref-llama-8m-int8-ov"
        assert held(hub.repos[report.repo_id]) == model_of(model, report.repo_id)
        # Somebody else, with a cache of their own.
        use(hub.url, tmp_path / "receiver", monkeypatch)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
        there = llmcompress.evaluate(report.repo_id, spec, reference=reference)
        assert not list((tmp_path / "receiver").rglob("eval.json"))
        assert run(["verify", report.repo_id]) == 0
        assert "all as the manifest says" in capsys.readouterr().out
        assert verify(fetch_artifact(report.repo_id)).ok
    assert there.model.provenance.revision == report.commit
    assert there.model.manifest_sha256 == here.model.manifest_sha256
    assert there.model.perplexity == here.model.perplexity
    assert (there.divergence, there.gate.passed) == (here.divergence, here.gate.passed)
