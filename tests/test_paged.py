"""The paged form of a graph: scored as GenAI scores it, next to the stateful one, and refused where it has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixture import SEQ_LEN, log_softmax, spec_of, windows_of
from test_hybrids import FAMILIES, _checkpoint

import llmcompress
from llmcompress.artifact import manifest_sha256
from llmcompress.errors import ModelError, UsageError
from llmcompress.evaluation.artifact_report import judge_again, store_report
from llmcompress.evaluation.gate import threshold_checks, worst_checks, worst_verdict
from llmcompress.evaluation.measurement import ModelOnDevice, score_alone
from llmcompress.evaluation.scoring import Feed
from llmcompress.graph.decoding import generate
from llmcompress.graph.device import PINNED
from llmcompress.graph.paged import to_paged
from llmcompress.report.evaluation import EvalReport
from llmcompress.runner.state import answers
from llmcompress.spec import EvalSpec, Gate
from llmcompress.spec.plan import Evaluation
from llmcompress.system.progress import silent

Artifacts = Callable[[str], Path]
MAX_NLL_ERROR = 1e-3
"""In nats."""


@pytest.fixture(scope="module")
def demo_artifact(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("demo") / "none"
    llmcompress.compress(demo_checkpoint, "none", output)
    return output


def torch_nll(checkpoint: Path, windows: list[Any]) -> float:
    """Mean negative log-likelihood of the scored tokens, in f32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    for window in windows:
        with torch.no_grad():
            logits = model(torch.tensor(window.token_ids[None])).logits[0, :-1].double().numpy()
        targets = window.token_ids[1:]
        found.append(-log_softmax(logits)[np.arange(len(targets)), targets][window.first_scored - 1 :])
    return float(np.concatenate(found).mean())


def genai_nll(directory: Path, windows: list[Any], properties: dict[str, str]) -> float:
    """The same from the log-probabilities of the prompt's tokens that GenAI's continuous batching gives back."""
    import openvino as ov
    import openvino_genai

    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(directory), openvino_genai.SchedulerConfig(), "CPU", properties
    )
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.echo, config.logprobs, config.ignore_eos = 1, True, 1, True
    found = []
    for number, window in enumerate(windows):
        handle = pipeline.add_request(number, ov.Tensor(window.token_ids[None]), config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        # The first is of the first token, which nothing predicts; the last is of the token that was made.
        values = np.array(handle.read_all()[0].generated_log_probs)[1:-1]
        found.append(-values[window.first_scored - 1 :])
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize("name", ["ref_model", "demo_checkpoint"])
def test_pinned_the_stateful_graph_is_torchs_and_the_paged_one_genais(
    name: str, request: pytest.FixtureRequest, wikitext: Path
) -> None:
    pytest.importorskip("openvino_genai", reason="needs the extra genai")
    checkpoint = request.getfixturevalue(name)
    directory = (
        request.getfixturevalue("artifact")("none") if name == "ref_model" else request.getfixturevalue("demo_artifact")
    )
    spec = spec_of(wikitext, backend="both", num_windows=4)
    windows = windows_of(checkpoint, wikitext, num_windows=4).windows
    report = llmcompress.evaluate(directory, spec)
    stateful, paged = report.backends
    assert (stateful.backend, paged.backend) == ("stateful", "paged")
    for record in (stateful, paged):
        assert {name: record.properties[name] for name in PINNED} == PINNED
    assert stateful.perplexity.nll.value == pytest.approx(torch_nll(checkpoint, windows), abs=MAX_NLL_ERROR)
    assert paged.perplexity.nll.value == pytest.approx(genai_nll(directory, windows, PINNED), abs=MAX_NLL_ERROR)
    # What older readers of the report look at is the stateful graph.
    assert report.model.perplexity == stateful.perplexity
    share = report.backend_share
    assert share is not None
    assert share.kl_divergence is None
    assert share.nll.value == pytest.approx(paged.perplexity.nll.value - stateful.perplexity.nll.value, abs=1e-9)
    assert abs(share.nll.value) < 1e-4


def test_as_used_the_paged_graph_is_scored_as_genai_runs_it(
    ref_model: Path, wikitext: Path, artifact: Artifacts
) -> None:
    """A u4 cache moves the mean by 1e-3 to 1e-2 from the exact one; GenAI's cut of the prompt moves nothing."""
    pytest.importorskip("openvino_genai", reason="needs the extra genai")
    windows = windows_of(ref_model, wikitext, num_windows=8)
    model = ModelOnDevice(llmcompress.load(artifact("u4-cache")), "CPU", {}, "paged")
    scored = score_alone(model, Feed(windows, 64), silent)
    assert scored.properties["KV_CACHE_PRECISION"] == "u4"
    expected = genai_nll(artifact("u4-cache"), list(windows.windows), {})
    assert float(scored.scores.values["nll"].mean()) == pytest.approx(expected, abs=MAX_NLL_ERROR)


def test_whole_blocks_cut_anywhere_give_the_same_scores(ref_model: Path, wikitext: Path, artifact: Artifacts) -> None:
    """Tokens of one call see each other through the cache, unlike those of the stateful graph."""
    windows = windows_of(ref_model, wikitext, num_windows=4)
    loaded = llmcompress.load(artifact("u4-cache"))

    def nll(chunk: int, backend: Any) -> Any:
        scored = score_alone(ModelOnDevice(loaded, "CPU", {}, backend), Feed(windows, chunk), silent)
        scored.cache.forget()
        return scored.scores.values["nll"]

    # bf16 rounds 1 in 256; the cut changes the sizes of matrices and so the order of sums.
    assert np.abs(nll(32, "paged") - nll(SEQ_LEN, "paged")).mean() < 2e-3
    assert np.abs(nll(32, "stateful") - nll(SEQ_LEN, "stateful")).mean() > 1e-2


def test_sequences_side_by_side_do_not_see_each_other(
    ref_model: Path, wikitext: Path, artifact: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of four, of one after the other in the same blocks, and of calls that end inside a block."""
    from llmcompress.evaluation import scoring

    windows = windows_of(ref_model, wikitext, num_windows=8)
    model = ModelOnDevice(llmcompress.load(artifact("int4")), "CPU", PINNED, "paged")
    found = []
    for tokens, chunk in ((4 * 48, 48), (SEQ_LEN, SEQ_LEN)):
        monkeypatch.setattr(scoring, "MAX_CALL_TOKENS", tokens)
        scored = score_alone(model, Feed(windows, chunk), silent)
        scored.cache.forget()
        found.append(scored.scores.values["nll"])
    np.testing.assert_allclose(*found, atol=1e-4)


def test_decoding_on_both_forms_is_the_same(artifact: Artifacts) -> None:
    loaded = llmcompress.load(artifact("int8"))
    prompt, options = list(range(40, 75)), {"eos": frozenset[int](), "max_new_tokens": 40}
    made = [
        generate(ModelOnDevice(loaded, "CPU", PINNED, backend).compiled(), prompt, **options)  # type: ignore[arg-type]
        for backend in ("stateful", "paged")
    ]
    assert made[0] == made[1]
    assert len(made[0].token_ids) == 40


def hybrid(directory: Path) -> Path:
    _checkpoint(directory / "checkpoint", *FAMILIES["granite"])
    llmcompress.compress(directory / "checkpoint", "int8", directory / "int8")
    return directory / "int8"


def test_a_hybrid_is_scored_stateful_only_and_the_report_says_so(
    wikitext: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = hybrid(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text(wikitext.read_text(encoding="utf-8")[:3000], encoding="utf-8")
    spec = EvalSpec(dataset=str(text), seq_len=64, num_windows=1)
    report = llmcompress.evaluate(output, spec)
    assert [record.backend for record in report.backends] == ["stateful"]
    assert report.backend_share is None
    assert report.paged_refusal is not None
    assert "it takes conv_state_table.0, la.block_indices" in report.paged_refusal
    assert "only the stateful graph is scored" in caplog.text
    # What has no paged form is measured as far as it can be.
    assert answers(report, Evaluation(**{**spec.model_dump(), "dataset": "text.txt"}))
    with pytest.raises(ModelError, match="the graph has no paged form: it takes conv_state_table"):
        llmcompress.evaluate(output, spec.model_copy(update={"backend": "paged"}))


def test_what_is_no_decoder_has_no_paged_form() -> None:
    import openvino as ov
    from openvino import opset15 as ops

    given = ops.parameter([1, 4], ov.Type.f32, name="x")
    with pytest.raises(ModelError, match="the graph has no paged form: "):
        to_paged(ov.Model([ops.result(ops.relu(given))], [given], "none"))


def test_a_device_that_refuses_the_paged_graph_is_no_end(
    wikitext: Path, artifact: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompress.evaluation import preparation

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("own call stack\nno kernel for it")

    monkeypatch.setattr(preparation, "generate", refuse)
    report = llmcompress.evaluate(artifact("int8"), spec_of(wikitext, backend="both", num_windows=1))
    assert report.paged_refusal == "the graph has no paged form: the device refuses it: no kernel for it"


def test_other_devices_are_scored_stateful() -> None:
    assert EvalSpec(dataset="text.txt").backends(is_ir=True) == ("stateful", "paged")
    assert EvalSpec(dataset="text.txt").backends(is_ir=False) == ("stateful",)
    assert EvalSpec(dataset="text.txt", backend="both").backends(is_ir=False) == ("stateful", "paged")
    assert EvalSpec(dataset="text.txt", device="GPU").backends(is_ir=True) == ("stateful",)
    assert EvalSpec(dataset="text.txt", backend="paged").backends(is_ir=True) == ("paged",)
    with pytest.raises(ValueError, match="paged runs the paged graph, whose cache is laid out here for the CPU"):
        EvalSpec(dataset="text.txt", device="GPU", backend="paged")


def report_of(artifact: Path, wikitext: Path, reference: Path) -> EvalReport:
    return llmcompress.evaluate(artifact, spec_of(wikitext, backend="both", num_windows=2), reference=reference)


def test_the_gate_judges_the_worse_backend(wikitext: Path, artifact: Artifacts, tmp_path: Path) -> None:
    output = tmp_path / "int4"
    shutil.copytree(artifact("int4"), output, ignore=shutil.ignore_patterns("eval.json"))
    report = report_of(output, wikitext, artifact("none"))
    stateful, paged = report.backends
    assert stateful.divergence is not None
    assert paged.divergence is not None
    kl = stateful.divergence.kl_divergence.value
    assert report.divergence == stateful.divergence
    assert paged.divergence.kl_divergence.value == pytest.approx(kl, abs=1e-6)
    worse = paged.divergence.model_copy(
        update={"kl_divergence": paged.divergence.kl_divergence.model_copy(update={"value": kl + 1})}
    )
    gate = Gate(max_kl=kl + 0.5, min_top1_agreement=0.1)
    for found in ({"stateful": stateful.divergence, "paged": worse}, {"paged": worse, "stateful": stateful.divergence}):
        checks = {check.name: check for check in worst_checks(gate, found)}  # type: ignore[arg-type]
        assert checks["max_kl"].passed is False
        assert checks["max_kl"].value == kl + 1
        assert checks["max_kl"].detail == f"the paged graph; stateful {kl:.4g}"
        assert checks["min_top1_agreement"].passed is True
    assert worst_checks(gate, {}) == threshold_checks(gate, None)
    assert worst_checks(gate, {"stateful": stateful.divergence}) == threshold_checks(gate, stateful.divergence)
    assert worst_verdict(("equivalent", "worse", "cannot tell")) == "worse"
    assert worst_verdict(()) is None
    # Thresholds that come later are held against the worse one too.
    assert report.model.manifest_sha256 == manifest_sha256(output)
    kept = report.model_copy(update={"backends": (stateful, paged.model_copy(update={"divergence": worse}))})
    store_report(output, kept)
    assert judge_again(output, gate).gate.passed is False
    store_report(output, report)
    assert judge_again(output, gate).gate.passed is True


@pytest.mark.slow
def test_a_report_of_the_stateful_graph_alone_does_not_answer_for_both(wikitext: Path, artifact: Artifacts) -> None:
    spec = spec_of(wikitext, backend="both", num_windows=1)
    report = llmcompress.evaluate(artifact("int8"), spec)
    asked = Evaluation(**{**spec.model_dump(), "dataset": wikitext.name})
    assert answers(report, asked)
    assert not answers(report.model_copy(update={"backends": report.backends[:1]}), asked)
    assert not answers(report.model_copy(update={"backends": ()}), asked)
    alone = llmcompress.evaluate(artifact("int8"), spec.model_copy(update={"backend": "stateful"}))
    assert [record.backend for record in alone.backends] == ["stateful"]
    assert alone.paged_refusal is None
    assert not answers(alone, asked)


def test_an_unknown_backend_is_refused() -> None:
    from llmcompress.spec.validation import from_options

    with pytest.raises(UsageError, match="accepted: stateful, paged, both"):
        from_options(EvalSpec, {"dataset": "text.txt", "backend": "sdpa"})


@pytest.mark.slow
def test_the_backend_has_its_share_of_the_damage(wikitext: Path, artifact: Artifacts) -> None:
    report = llmcompress.evaluate(
        artifact("u4-cache"),
        spec_of(wikitext, backend="both", precision="as_used", num_windows=4),
        reference=artifact("none"),
        split_damage=True,
    )
    kl = {part.part: part.kl_divergence.value for part in report.split_damage}
    assert list(kl) == ["weights", "kv_cache", "dynamic_quantization", "execution_precision", "all", "paged"]
    stateful, paged = (record.divergence for record in report.backends)
    assert stateful is not None
    assert paged is not None
    share = report.backend_share
    assert share is not None
    assert share.kl_divergence is not None
    added = paged.kl_divergence.value - stateful.kl_divergence.value
    assert share.kl_divergence.value == pytest.approx(added, abs=1e-9)
    # The reference is the exact one there and as it is used here, which changes both forms alike.
    assert kl["paged"] - kl["all"] == pytest.approx(added, abs=0.3 * kl["all"])
