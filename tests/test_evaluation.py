"""Evaluation of a trained model against independent computations in torch and numpy, its verdicts, and its refusals."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixture import NUM_WINDOWS, SEQ_LEN, all_logits, encoder_of, log_softmax, spec_of, windows_of
from fake_hub import FakeHub, running, use
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.errors import DataError, ModelError, UsageError
from llmcompress.graph.device import PINNED, properties_of
from llmcompress.report.evaluation import EvalReport
from llmcompress.spec import Gate
from llmcompress.system.progress import Progress

Artifacts = Callable[[str], Path]


@pytest.fixture(scope="module")
def torch_model(ref_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(ref_model, dtype=torch.float32).eval()


def torch_nll(model: Any, token_ids: list[int], num_scored: int) -> float:
    """Sum of the negative log-likelihoods of the last ``num_scored`` tokens."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, :-1].double().log_softmax(-1)
    targets = torch.tensor(token_ids[1:])
    return float(-logits[torch.arange(len(targets)), targets][-num_scored:].sum())


def test_llama_cpp_perplexity_equals_torch(
    ref_model: Path, wikitext: Path, artifact: Artifacts, torch_model: Any
) -> None:
    ids = encoder_of(ref_model).ids(wikitext.read_text(encoding="utf-8"), special=True)
    total, count = 0.0, 0
    for number in range(NUM_WINDOWS):
        window = [ids[0], *ids[number * SEQ_LEN + 1 : (number + 1) * SEQ_LEN]]
        total += torch_nll(torch_model, window, SEQ_LEN // 2 - 1)
        count += SEQ_LEN // 2 - 1
    report = llmcompress.evaluate(artifact("none"), spec_of(wikitext))
    assert report.text.num_scored_tokens == count
    assert report.model.perplexity.perplexity.value == pytest.approx(math.exp(total / count), rel=1e-3)


def test_sliding_perplexity_equals_the_guide_in_torch(
    ref_model: Path, wikitext: Path, artifact: Artifacts, torch_model: Any, tmp_path: Path
) -> None:
    import torch

    text = tmp_path / "short.txt"
    text.write_text(wikitext.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    ids = torch.tensor([encoder_of(ref_model).ids(text.read_text(encoding="utf-8"), special=True)])
    stride, previous_end, sum_nll, num_tokens = 48, 0, 0.0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + SEQ_LEN, ids.shape[1])
        inputs = ids[:, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            loss = torch_model(inputs, labels=targets).loss
        scored = int((targets[:, 1:] != -100).sum())
        sum_nll += float(loss) * scored
        num_tokens += scored
        previous_end = end
        if end == ids.shape[1]:
            break
    spec = spec_of(text, protocol="sliding", stride=stride, num_windows=None)
    report = llmcompress.evaluate(artifact("none"), spec)
    assert report.text.num_scored_tokens == num_tokens
    assert report.model.perplexity.perplexity.value == pytest.approx(math.exp(sum_nll / num_tokens), rel=1e-3)


def test_rolling_perplexities_equal_torch(
    ref_model: Path, wikitext: Path, artifact: Artifacts, torch_model: Any, tmp_path: Path
) -> None:
    # White space at an end would count as a word.
    documents = [text.strip() for text in wikitext.read_text(encoding="utf-8").split("\n") if len(text) > 300][:5]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents), encoding="utf-8")
    encoder = encoder_of(ref_model)
    total = words = num_bytes = tokens = 0.0
    for text in documents:
        ids = encoder.ids(text, special=False)
        stream = [encoder.frame.before[0], *ids]
        for start in range(0, len(ids), SEQ_LEN):
            end = min(start + SEQ_LEN, len(ids))
            begin = max(0, end - SEQ_LEN) if start else 0
            total += torch_nll(torch_model, stream[begin : end + 1], end - start)
        words += len(text.split())
        num_bytes += len(text.encode())
        tokens += len(ids)
    report = llmcompress.evaluate(
        artifact("none"), spec_of(path, protocol="rolling", num_windows=None, text_field="body")
    )
    found = report.model.perplexity
    assert found.word_perplexity is not None
    assert found.byte_perplexity is not None
    assert found.bits_per_byte is not None
    assert found.perplexity.value == pytest.approx(math.exp(total / tokens), rel=1e-3)
    assert found.word_perplexity.value == pytest.approx(math.exp(total / words), rel=1e-3)
    assert found.byte_perplexity.value == pytest.approx(math.exp(total / num_bytes), rel=1e-3)
    assert found.bits_per_byte.value == pytest.approx(total / num_bytes / math.log(2), rel=1e-3)


def test_divergence_equals_the_full_vocabulary_in_numpy(ref_model: Path, wikitext: Path, artifact: Artifacts) -> None:
    report = llmcompress.evaluate(artifact("int4"), spec_of(wikitext, num_windows=4), reference=artifact("none"))
    properties = properties_of("CPU", "pinned")
    kl, agrees, change, probability = [], [], [], []
    for window in windows_of(ref_model, wikitext, num_windows=4).windows:
        scored = slice(window.first_scored - 1, -1)
        first = log_softmax(all_logits(artifact("none"), window.token_ids, properties))[scored]
        second = log_softmax(all_logits(artifact("int4"), window.token_ids, properties))[scored]
        kl.append((np.exp(first) * (first - second)).sum(axis=1))
        agrees.append(first.argmax(axis=1) == second.argmax(axis=1))
        targets = window.token_ids[window.first_scored :]
        rows = np.arange(len(targets))
        change.append(first[rows, targets] - second[rows, targets])
        probability.append(np.exp(second[rows, targets]) - np.exp(first[rows, targets]))
    tokens = np.concatenate(kl)
    found = report.divergence
    assert found is not None
    assert found.exact
    assert found.kl_divergence.value == pytest.approx(float(tokens.mean()), abs=1e-6)
    assert found.kl_max == pytest.approx(float(tokens.max()), rel=1e-3)
    assert found.kl_median == pytest.approx(float(np.median(tokens)), abs=1e-6)
    assert found.kl_p99 == pytest.approx(float(np.quantile(tokens, 0.99)), rel=1e-3)
    histogram = found.kl_histogram
    assert histogram is not None
    assert sum(histogram.counts) == len(tokens)
    expected, _ = np.histogram(tokens, (-np.inf, *histogram.edges, np.inf))
    # A value beside an edge may fall to either side.
    assert np.abs(expected - np.asarray(histogram.counts)).sum() <= 0.02 * len(tokens)
    assert found.top1_agreement.value == pytest.approx(float(np.concatenate(agrees).mean()), abs=1.1 / len(tokens))
    assert found.log_perplexity_change.value == pytest.approx(float(np.concatenate(change).mean()), abs=1e-5)
    assert found.rms_probability_change == pytest.approx(
        float(np.sqrt((np.concatenate(probability) ** 2).mean())), rel=1e-3
    )
    # The interval is that of how far each window lies from the mean of the others.
    means = np.array([part.mean() for part in kl])
    num_windows = len(means)
    deviation = means.std(ddof=1) * num_windows / (num_windows - 1)
    third = ((means - means.mean()) ** 3).mean() / means.std(ddof=1) ** 3
    skewness = third * num_windows**2 / ((num_windows - 1) * (num_windows - 2))
    assert found.kl_divergence.high is not None
    off = (means.mean() - found.kl_divergence.high) / deviation
    # Hall's transformation of how far the truth is off, whose quantiles are Student's.
    transformed = off + skewness * off**2 / 3 + skewness**2 * off**3 / 27 + skewness / (6 * num_windows)
    assert transformed == pytest.approx(-3.182 / math.sqrt(num_windows), rel=1e-2)


@pytest.mark.slow
def test_a_cached_reference_gives_a_lower_bound_and_is_used_again(wikitext: Path, artifact: Artifacts) -> None:
    spec = spec_of(wikitext, num_windows=4)
    exact = llmcompress.evaluate(artifact("int4"), spec, reference=artifact("none")).divergence
    stages: list[str] = []

    def note(step: Progress) -> None:
        if step.stage == "score the reference" and step.done > 0:
            stages.append(f"{step.done}")

    options: dict[str, Any] = {"reference": artifact("none"), "reference_scores": "cached"}
    report = llmcompress.evaluate(artifact("int4"), spec, progress=note, **options)
    bound = report.divergence
    assert exact is not None
    assert bound is not None
    assert not bound.exact
    assert bound.top_k is not None
    assert bound.captured_mass is not None
    assert bound.captured_mass >= 0.99
    assert bound.top_k < 4096
    assert 0.8 * exact.kl_divergence.value < bound.kl_divergence.value < exact.kl_divergence.value
    assert bound.top1_agreement.value == exact.top1_agreement.value
    assert bound.log_perplexity_change.value == pytest.approx(exact.log_perplexity_change.value, abs=1e-6)
    # A bound below the margin shows no equivalence, whatever it is.
    close = llmcompress.evaluate(artifact("int8"), spec, **options)
    assert close.divergence is not None
    assert close.divergence.kl_divergence.high is not None
    assert close.divergence.kl_divergence.high < spec.kl_margin
    assert close.verdict == "cannot tell"


def test_all_of_the_vocabulary_is_no_bound(ref_model: Path, wikitext: Path, artifact: Artifacts) -> None:
    from llmcompress.evaluation import top_k
    from llmcompress.evaluation.measurement import ModelOnDevice, score_side_by_side
    from llmcompress.evaluation.scoring import Feed

    feed = Feed(windows_of(ref_model, wikitext, num_windows=2), SEQ_LEN)
    exact = properties_of("CPU", "pinned")
    candidate, reference = (ModelOnDevice(llmcompress.load(artifact(name)), "CPU", exact) for name in ("int4", "none"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top_k, "MASS", 1.1)
        scored = top_k.score_against_top_k(candidate, reference, feed, lambda step: None)
    pair = score_side_by_side(candidate, reference, feed, lambda step: None)
    assert scored.top_k == 4096
    np.testing.assert_allclose(scored.scores.values["kl"], pair.scores.values["kl"], atol=2e-6)


def test_a_reference_whose_logits_are_kept_is_scored_once(
    ref_model: Path, wikitext: Path, artifact: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks and several batches; a file that is lost, or a full disk, only costs scoring it again."""
    from llmcompress.evaluation import logits_cache, measurement, scoring

    monkeypatch.setattr(scoring, "MAX_CALL_TOKENS", 2 * 16)
    feed = scoring.Feed(windows_of(ref_model, wikitext, num_windows=3), 16)
    candidate, reference = (
        measurement.ModelOnDevice(llmcompress.load(artifact(name)), "CPU", {}) for name in ("int4", "none")
    )
    compiled: list[str] = []
    add_scores = measurement.add_scores

    def watched(model: Any, kind: Any, **options: Any) -> None:
        compiled.append(kind)
        add_scores(model, kind, **options)

    monkeypatch.setattr(measurement, "add_scores", watched)

    def measured(logits_dir: Path | None) -> Any:
        compiled.clear()
        scored = measurement.score_side_by_side(candidate, reference, feed, lambda step: None, logits_dir=logits_dir)
        scored.cache.forget()
        return scored

    alone = measured(None)
    assert alone.reference_properties
    for expected in (["divergence", "logits"], ["divergence"]):
        kept = measured(tmp_path / "kept")
        assert compiled == expected
        assert kept.reference_properties == alone.reference_properties
        for name, values in alone.scores.values.items():
            np.testing.assert_array_equal(kept.scores.values[name], values)
    files = sorted((tmp_path / "kept").rglob("*.npy"))
    assert len(files) > 4
    files[1].write_bytes(b"half")
    again = measured(tmp_path / "kept")
    assert compiled == ["divergence", "logits"]
    np.testing.assert_array_equal(again.scores.values["kl"], alone.scores.values["kl"])
    monkeypatch.setattr(logits_cache, "_SHARE_OF_DISK", 0.0)
    np.testing.assert_array_equal(measured(tmp_path / "full").scores.values["kl"], alone.scores.values["kl"])
    assert not list((tmp_path / "full").rglob("*.npy"))


@pytest.mark.slow
def test_verdicts_on_real_models(wikitext: Path, artifact: Artifacts) -> None:
    spec = spec_of(wikitext, num_windows=40)
    verdicts = {
        name: llmcompress.evaluate(artifact(name), spec, reference=artifact("none")).verdict
        for name in ("int8", "int2")
    }
    assert verdicts == {"int8": "equivalent", "int2": "worse"}


@pytest.mark.slow
def test_the_caches_precision_is_seen_in_chunks_only(wikitext: Path, artifact: Artifacts) -> None:
    def kl(**options: Any) -> float:
        spec = spec_of(wikitext, precision="as_used", num_windows=4, **options)
        report = llmcompress.evaluate(artifact("u4-cache"), spec, reference=artifact("none"))
        assert report.model.properties["KV_CACHE_PRECISION"] == "u4"
        assert report.property_differences["KV_CACHE_PRECISION"][0] == "u4"
        assert report.divergence is not None
        return report.divergence.kl_divergence.value

    whole, chunks, tokens = kl(chunk=SEQ_LEN), kl(chunk=16), kl(chunk=1)
    assert whole < 1e-4
    assert chunks > 5 * whole
    assert tokens > 5 * whole
    assert spec_of(wikitext, precision="as_used").effective_chunk == 64


@pytest.mark.slow
def test_pinned_is_what_the_device_does_and_is_reported(wikitext: Path, artifact: Artifacts) -> None:
    report = llmcompress.evaluate(artifact("u4-cache"), spec_of(wikitext, num_windows=1), reference=artifact("int4"))
    for properties in (report.model.properties, report.reference.properties if report.reference else {}):
        assert {name: properties[name] for name in PINNED} == PINNED
    assert report.property_differences == {}
    as_used = llmcompress.evaluate(artifact("int4"), spec_of(wikitext, num_windows=1, precision="as_used"))
    assert as_used.model.properties["KV_CACHE_PRECISION"] == "u8"
    # What the recipe put into the model: the groups of its weights.
    assert as_used.model.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "64"


@pytest.mark.slow
def test_damage_is_split_and_the_noise_floor_measured(wikitext: Path, artifact: Artifacts) -> None:
    import openvino as ov

    report = llmcompress.evaluate(
        artifact("u4-cache"),
        spec_of(wikitext, precision="as_used", num_windows=4),
        reference=artifact("none"),
        split_damage=True,
        noise_floor=True,
    )
    kl = {part.part: part.kl_divergence.value for part in report.split_damage}
    # The weights are the reference's own: all damage is the cache's.
    assert kl["weights"] < 1e-7
    assert kl["kv_cache"] > 1e-4
    assert kl["all"] > 1e-4
    assert kl["kv_cache"] > 10 * kl["execution_precision"]
    properties = {part.part: part.properties for part in report.split_damage}
    assert properties["kv_cache"]["KV_CACHE_PRECISION"] == "u4"
    assert properties["dynamic_quantization"]["KV_CACHE_PRECISION"] == "f32"
    assert report.noise_floor is not None
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert report.noise_floor.precisions == ("f32", "bf16")
        assert 0 < report.noise_floor.kl_divergence.value < 2e-4
    else:
        assert report.noise_floor.precisions[0] == "f32"


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(
    wikitext: Path, artifact: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompress.evaluation import scoring

    monkeypatch.setattr(scoring, "MAX_CALL_TOKENS", 2 * SEQ_LEN)
    spec = spec_of(wikitext)
    expected = llmcompress.evaluate(artifact("int4"), spec, reference=artifact("none"))

    def interrupt(step: Progress) -> None:
        if step.stage == "score" and step.done >= step.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llmcompress.evaluate(artifact("int4"), spec, reference=artifact("none"), progress=interrupt)
    report = llmcompress.evaluate(artifact("int4"), spec, reference=artifact("none"))
    # Two windows a batch; the last one was scored to its end and not kept yet.
    assert NUM_WINDOWS // 2 - 2 <= report.num_windows_resumed < NUM_WINDOWS
    assert report.divergence == expected.divergence
    # What is finished is not kept: the next one measures again.
    assert llmcompress.evaluate(artifact("int4"), spec, reference=artifact("none")).num_windows_resumed == 0


def test_half_written_scores_are_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmcompress.evaluation.score_cache import ScoreCache

    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path))
    store = ScoreCache("evaluations", "key")
    assert store.get((3, 4)) is None
    assert store.add((3, 4), [{"nll": np.arange(3.0)}, {"nll": np.arange(2.0)}])
    found = store.get((3, 4))
    assert found is not None
    assert [scores["nll"].tolist() for scores in found] == [[0, 1, 2], [0, 1]]
    assert store.get((3, 5)) is None
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-40])
    assert store.get((3, 4)) is None
    (tmp_path / "evaluations" / "key").chmod(0o755)
    store.forget()
    (tmp_path / "evaluations" / "key").write_text("in the way")
    assert not store.add((3, 4), [{"nll": np.arange(3.0)}, {"nll": np.arange(2.0)}])


def scrambled(source: Path, target: Path) -> Path:
    """The artifact with the scales of one layer scrambled, and without its manifest, which would notice."""
    import openvino as ov

    shutil.copytree(source, target)
    model = ov.Core().read_model(source / "openvino_model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    scale = next(op for op in constants if re.search(r"layers\.3\.mlp\.down_proj.*scale", op.get_friendly_name()))
    values = scale.data.copy()
    tensor = ov.Tensor(scale.get_element_type(), scale.get_output_shape(0))
    tensor.data[:] = values * np.random.default_rng(0).lognormal(sigma=1.0, size=values.shape)
    replacement = ov.op.Constant(tensor)
    for port in list(scale.output(0).get_target_inputs()):
        port.replace_source_output(replacement.output(0))
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    (target / "llmcompress.json").unlink()
    return target


def test_a_damaged_model_fails_the_gate(wikitext: Path, artifact: Artifacts, tmp_path: Path) -> None:
    damaged = scrambled(artifact("int4"), tmp_path / "damaged")
    gate = Gate(max_kl=0.02, min_top1_agreement=0.85, max_perplexity_increase=0.05)
    spec = spec_of(wikitext)
    report = llmcompress.evaluate(damaged, spec, reference=artifact("none"), gate=gate)
    assert report.gate.passed is False
    failed = {check.name for check in report.gate.checks if check.passed is False}
    # Perplexity does not see it.
    assert failed == {"max_kl"}
    assert report.verdict == "worse"
    healthy = llmcompress.evaluate(artifact("int4"), spec, reference=artifact("none"), gate=gate)
    assert healthy.gate.passed is True, healthy.gate
    assert {check.name for check in healthy.gate.checks if check.passed} >= {"max_kl", "finite_scores", "finite_logits"}


@pytest.mark.slow
def test_the_recipes_gate_is_applied(ref_model: Path, wikitext: Path, artifact: Artifacts, tmp_path: Path) -> None:
    recipe = llmcompress.load_recipe("int4", ["gate.max_kl=0.0001", "gate.min_top1_agreement=0.5"])
    llmcompress.compress(ref_model, recipe, tmp_path / "gated")
    spec = spec_of(wikitext, num_windows=2)
    report = llmcompress.evaluate(tmp_path / "gated", spec, reference=artifact("none"))
    assert {check.name: check.passed for check in report.gate.checks[:2]} == {
        "max_kl": False,
        "min_top1_agreement": True,
    }
    assert report.gate.passed is False
    loose = llmcompress.evaluate(tmp_path / "gated", spec, reference=artifact("none"), gate=Gate(max_kl=1.0))
    assert loose.gate.passed is True
    # The recipe's own threshold cannot be decided without a reference.
    assert llmcompress.evaluate(tmp_path / "gated", spec).gate.passed is None


def test_the_report_goes_into_the_artifact_and_is_no_part_of_its_manifest(
    wikitext: Path, artifact: Artifacts, tmp_path: Path
) -> None:
    import hashlib

    output = tmp_path / "int4"
    shutil.copytree(artifact("int4"), output)
    report = llmcompress.evaluate(
        output, spec_of(wikitext, num_windows=2), reference=artifact("none"), num_generations=2
    )
    assert EvalReport.model_validate_json((output / "eval.json").read_text(encoding="utf-8")) == report
    assert llmcompress.verify(output).ok
    manifest = hashlib.sha256((output / "llmcompress.json").read_bytes()).hexdigest()
    assert report.model.manifest_sha256 == manifest
    assert str(tmp_path) not in (output / "eval.json").read_text(encoding="utf-8")
    assert report.generations is not None
    assert report.generations.num_prompts == 2
    assert [path.name for path in tmp_path.iterdir()] == ["int4"]


@pytest.mark.slow
def test_an_earlier_report_with_a_reference_is_kept(wikitext: Path, artifact: Artifacts, tmp_path: Path) -> None:
    output = shutil.copytree(artifact("int4"), tmp_path / "int4", ignore=shutil.ignore_patterns("eval.json"))
    spec = spec_of(wikitext, num_windows=2)
    first = llmcompress.evaluate(output, spec, reference=artifact("none"), gate=Gate(max_kl=0.0001))
    assert first.gate.passed is False
    alone = llmcompress.evaluate(output, spec)
    assert alone.gate.passed is False
    assert EvalReport.model_validate_json((output / "eval.json").read_text()) == first
    again = llmcompress.evaluate(output, spec, reference=artifact("none"))
    assert again.gate.passed is False
    passed = llmcompress.evaluate(output, spec, reference=artifact("none"), gate=Gate(max_kl=1.0))
    assert passed.gate.passed is True
    assert EvalReport.model_validate_json((output / "eval.json").read_text()) == passed


def test_positions_by_another_name(wikitext: Path, tmp_path: Path) -> None:
    model = build_checkpoint(tmp_path / "gpt2", "gpt2", n_positions=64)
    refused(UsageError, "128 tokens were asked for, the model's context is 64", model, spec_of(wikitext))


def test_a_checkpoint_is_a_source_and_a_reference(ref_model: Path, wikitext: Path, artifact: Artifacts) -> None:
    spec = spec_of(wikitext, num_windows=2)
    report = llmcompress.evaluate(ref_model, spec, reference=artifact("none"))
    assert report.divergence is not None
    assert report.divergence.kl_divergence.value < 1e-9
    assert report.verdict == "equivalent"
    assert report.model.manifest_sha256 is None


def test_neither_torch_nor_optimum_is_imported_for_an_ir(wikitext: Path, artifact: Artifacts) -> None:
    program = f"""
import sys, llmcompress
spec = llmcompress.EvalSpec(dataset={str(wikitext)!r}, seq_len=64, num_windows=2)
llmcompress.evaluate({str(artifact("int8"))!r}, spec, reference={str(artifact("none"))!r}, num_generations=1)
print(sorted({{"torch", "optimum", "transformers", "nncf", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def refused(error: type[Exception], message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(error, match=message):
        llmcompress.evaluate(*arguments, **options)


def test_bad_input_is_refused_before_scoring(
    wikitext: Path, artifact: Artifacts, tmp_path: Path, demo_checkpoint: Path
) -> None:
    model = artifact("int8")

    def text(content: bytes, name: str = "text.txt") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    refused(DataError, "the text has .* tokens, one window needs 128", model, spec_of(text(b"short")))
    refused(DataError, "the file is empty", model, spec_of(text(b"")))
    refused(DataError, "not UTF-8", model, spec_of(text("é".encode("latin-1") * 9)))
    lines = text(b'{"body": "x"}\n', "lines.jsonl")
    refused(DataError, "no field 'text', there are: 'body'", model, spec_of(lines))
    refused(DataError, "cannot be read", model, spec_of(tmp_path / "absent.txt"))
    refused(
        UsageError, "1024 tokens were asked for, the model's context is 512", model, spec_of(wikitext, seq_len=1024)
    )
    refused(UsageError, "1000 tokens were asked for", model, spec_of(wikitext), probe_context=1000)
    refused(ModelError, "its tokenizer reads the text otherwise", model, spec_of(wikitext), reference=demo_checkpoint)
    refused(UsageError, "there is no device NPU9", model, spec_of(wikitext, device="NPU9"))
    refused(UsageError, "`noise_floor` and `split_damage` compare with a reference", model, spec_of(wikitext),
            noise_floor=True, split_damage=True)  # fmt: skip
    refused(UsageError, '`precision="pinned"` takes that away', model, spec_of(wikitext), reference=model,
            split_damage=True)  # fmt: skip
    refused(UsageError, "`chunk=128` feeds whole windows", model, spec_of(wikitext, precision="as_used", chunk=128),
            reference=model, split_damage=True)  # fmt: skip
    refused(UsageError, 'which `reference_scores="cached"` avoids', model, spec_of(wikitext), reference=model,
            noise_floor=True, reference_scores="cached")  # fmt: skip
    refused(UsageError, "does not take the properties that exact execution needs", model, spec_of(wikitext,
            device="AUTO"))  # fmt: skip
    refused(UsageError, "cannot be asked for its properties", model, spec_of(wikitext, device="HETERO:NOPE"))
    refused(UsageError, "have no effect without `tasks`", model, spec_of(wikitext), task_limit=3)
    refused(UsageError, "does not exist", tmp_path / "absent", spec_of(wikitext))


def test_offline_datasets_that_are_not_cached_are_refused(artifact: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(llmcompress.HubError, match="it is not in the local cache"):
        llmcompress.evaluate(artifact("int8"), llmcompress.EvalSpec(dataset="wikitext2"), offline=True)


def test_other_vocabularies_are_refused(ref_model: Path, wikitext: Path, artifact: Artifacts, tmp_path: Path) -> None:
    # Larger than the tokenizer's: a smaller table is refused as having no embedding for its tokens.
    other = build_checkpoint(tmp_path / "other", "llama", num_hidden_layers=1, vocab_size=4104)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ref_model / name, other / name)
    spec = spec_of(wikitext, seq_len=64, num_windows=1)
    refused(ModelError, "the candidate's vocabulary has 4096 tokens, the reference's 4104", artifact("int8"), spec,
            reference=other)  # fmt: skip


def test_a_graph_with_nan_fails_its_gate(wikitext: Path, artifact: Artifacts, tmp_path: Path) -> None:
    import openvino as ov

    broken = tmp_path / "nan"
    shutil.copytree(artifact("none"), broken)
    (broken / "llmcompress.json").unlink()
    model = ov.Core().read_model(artifact("none") / "openvino_model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant" and len(op.shape) == 2]
    # An MLP's: NaN in the embedding would wait for its token.
    constant = next(op for op in constants if list(op.shape) == [256, 768])
    tensor = ov.Tensor(constant.get_element_type(), constant.get_output_shape(0))
    bits = constant.data.copy().view("u2")
    bits[0, 0] = 0x7FC0
    tensor.data[:] = bits.view("f2")
    replacement = ov.op.Constant(tensor)
    for port in list(constant.output(0).get_target_inputs()):
        port.replace_source_output(replacement.output(0))
    ov.save_model(model, broken / "openvino_model.xml", compress_to_fp16=False)
    spec = spec_of(wikitext, num_windows=2)
    refused(ModelError, "hold NaN or infinite weights", broken, spec)
    report = llmcompress.evaluate(broken, spec, reference=artifact("none"), allow_nonfinite=True)
    assert report.gate.passed is False
    assert {check.name for check in report.gate.checks if check.passed is False} >= {"finite_scores", "finite_logits"}
    assert report.verdict == "worse"
    assert EvalReport.model_validate_json(report.model_dump_json()).verdict == "worse"


def test_an_artifact_on_the_hub_is_a_source(
    wikitext: Path, artifact: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in artifact("int8").iterdir() if path.name != "eval.json"}
    with running(FakeHub(files={**files, "README.md": b"# card", ".gitattributes": b""})) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        report = llmcompress.evaluate("acme/tiny", spec_of(wikitext, num_windows=2), reference=artifact("none"))
    assert (report.model.provenance.kind, report.model.provenance.id) == ("hub", "acme/tiny")
    assert report.model.manifest_sha256 is not None
    assert report.verdict == "equivalent"
    assert not list((tmp_path / "cache").rglob("eval.json"))


def test_the_bar_moves_with_each_call(artifact: Callable[[str], Path], wikitext: Path) -> None:
    seen: list[Progress] = []
    # Four windows of 128 tokens are one batch, in eight calls of 16; the last four score.
    spec = spec_of(wikitext, num_windows=4, chunk=16, backend="both")
    llmcompress.evaluate(artifact("int8"), spec, reference=artifact("none"), progress=seen.append)
    moves = [each.done for each in seen if each.stage == "score"]
    assert sorted(moves) == moves
    assert set(moves) == {0, 64, 128, 192, 252}
    # Each of the two graphs has a stage of its own for the long context.
    for stage in ("long context", "long context, paged"):
        moves = [each.done for each in seen if each.stage == stage]
        assert sorted(set(moves)) == moves, (stage, moves)
        assert len(moves) > 1
