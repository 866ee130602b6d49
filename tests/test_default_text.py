"""What is read where no dataset is named, and what is said of the Hub where one is."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_fixture import windows_of

import llmcompress
from llmcompress.data.documents import read_documents
from llmcompress.data.texts import BUNDLED_TEXT
from llmcompress.loaders.resolving import resolve
from llmcompress.runner.state import as_reported
from llmcompress.spec import EvalSpec, TuneSpec
from llmcompress.spec.plan import Evaluation, Tuning
from llmcompress.spec.tuning import Workload
from llmcompress.tuning.damage import TuneRequest, searched_text
from llmcompress.tuning.tune import tune

SMALL = {"seq_len": 128, "num_windows": 2}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def run(*arguments: object, hub: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmcompress", "eval", *map(str, arguments)]
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_without_the_hub_the_bundled_text_is_scored_and_the_report_says_so(
    demo_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = llmcompress.evaluate(demo_checkpoint, EvalSpec(**SMALL), offline=True)
    assert report.spec.dataset == report.text.dataset == "bundled"
    assert report.text.fallback is not None
    assert "Salesforce/wikitext" in report.text.fallback
    assert "it is not in the local cache" in report.text.fallback
    assert "the bundled text is read, as no dataset was named and wikitext2 cannot be had" in caplog.text
    assert report.text.token_ids_sha256 == windows_of(demo_checkpoint, BUNDLED_TEXT, **SMALL).record.token_ids_sha256
    again = llmcompress.evaluate(demo_checkpoint, report.spec, offline=True)
    assert again.text == report.text.model_copy(update={"fallback": None})


def test_wikitext_is_read_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Builder:
        hash = "as pinned"

        def download_and_prepare(self) -> None: ...

        def as_dataset(self, split: str) -> Any:
            return datasets.Dataset.from_dict({"text": ["one", "two"]})

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder())
    documents = read_documents(EvalSpec())
    assert (documents.content, documents.spec, documents.fallback) == (
        ["one", "two"],
        EvalSpec(dataset="wikitext2"),
        None,
    )


@pytest.mark.slow
def test_a_person_sees_why_the_bundled_text_was_scored(demo_checkpoint: Path, tmp_path: Path) -> None:
    done = run(demo_checkpoint, "--num-windows", 2, "--seq-len", 64, hub="http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Text          bundled: 62 tokens scored in 2 windows" in done.stdout
    assert "instead of  Salesforce/wikitext@" in done.stdout
    assert "no connection to http://127.0.0.1:9" in " ".join(done.stdout.split())
    assert done.stderr.startswith("warning: the bundled text is read")


@pytest.mark.parametrize("name", ["wikitext2", "space/name@" + "0" * 40])
def test_a_dataset_that_cannot_be_reached_is_exit_5_with_the_networks_reason(
    name: str, demo_checkpoint: Path, tmp_path: Path
) -> None:
    split = () if name == "wikitext2" else ("--split", "train")
    done = run(demo_checkpoint, "--dataset", name, *split, hub="http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "the Hub cannot be reached and the cache has no copy: no connection to http://127.0.0.1:9" in done.stderr
    assert "subset" not in done.stderr
    assert "Traceback" not in done.stderr


def test_tuning_reads_it_too_and_plans_take_what_was_read(demo_checkpoint: Path) -> None:
    found = searched_text(resolve(demo_checkpoint), TuneSpec(**SMALL), offline=True)
    assert found.dataset == "bundled"
    assert found.fallback is not None
    assert Evaluation().dataset == Tuning().dataset == "auto"
    for read in ("bundled", "wikitext2"):
        assert as_reported(EvalSpec(), read) == EvalSpec(dataset=read)
    assert as_reported(EvalSpec(), "other.txt") == EvalSpec()
    assert as_reported(EvalSpec(dataset="c4"), "bundled") == EvalSpec(dataset="c4")


@pytest.mark.slow
def test_the_verification_of_tuning_reads_what_the_search_read(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompress.tuning import tune as module

    asked: list[TuneRequest] = []
    verify = module.verify

    def watched(request: TuneRequest, *arguments: Any) -> Any:
        asked.append(request)
        return verify(request, *arguments)

    monkeypatch.setattr(module, "verify", watched)
    tiny = Workload(name="tiny", prompt_tokens=16, new_tokens=4)
    spec = TuneSpec(**SMALL, workloads=(tiny,), properties=("NUM_STREAMS=1",), budget_s=1)
    report = tune(artifact("int8"), spec, offline=True)
    assert asked[0].spec == spec.model_copy(update={"dataset": "bundled"}) == report.spec
    assert report.text.fallback is not None
