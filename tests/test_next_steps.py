"""What a person reads below a report: the verdict's way out, the file that was written, and the next command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from push_fixture import evaluation, make_artifact, tuning
from terminal_fixture import in_terminal
from test_cli import EVALUATION, RATE, REPORT, SPEED

from llmcompress.artifact import add_benchmark, manifest_sha256, read_measurements, write_report
from llmcompress.artifact.manifest import manifest_bytes
from llmcompress.cli.bench import print_reports
from llmcompress.cli.next_steps import after_bench, after_compress, after_eval, after_tune
from llmcompress.evaluation.advice import Advice, advice
from llmcompress.report.benchmark import BenchReport, Roofline, Steadiness
from llmcompress.report.evaluation import BackendRecord, DamagePart, EvalReport
from llmcompress.spec import Access, Recipe, load_recipe, override_recipe, packaged_recipes

Captured = pytest.CaptureFixture[str]


def report_of(kl: float, **parts: float) -> EvalReport:
    """A worse model; what its parts lose."""
    found = EVALUATION.divergence
    assert found is not None
    estimate = found.kl_divergence
    lost = found.model_copy(update={"kl_divergence": estimate.model_copy(update={"value": kl})})
    split = tuple(
        DamagePart(
            part=part,  # type: ignore[arg-type]
            properties={},
            kl_divergence=estimate.model_copy(update={"value": value}),
            top1_agreement=estimate,
            log_perplexity_change=estimate,
        )
        for part, value in parts.items()
    )
    return EVALUATION.model_copy(update={"divergence": lost, "split_damage": split})


def tried(recipe: str | Recipe, kl: float, settings: Sequence[str] = (), **parts: float) -> Advice:
    made_by = override_recipe(load_recipe(recipe), settings) if isinstance(recipe, str) else recipe
    given = advice(report_of(kl, **parts), made_by)
    assert given is not None
    return given


def words(given: Advice) -> list[str]:
    return [remedy.recipe or str(remedy.setting) for remedy in given.remedies]


@pytest.mark.parametrize(
    ("recipe", "settings", "expected"),
    [
        ("int4", [], ["int4-awq-se", "int4-distilled", "weights.group_size=32", "int4-mixed", "int8"]),
        ("int4", ["pruning.method=depth", "pruning.layers=[0]"], ["int4-mixed", "int8"]),
        ("int4-awq-se", [], ["int4-distilled", "weights.group_size=32", "int4-mixed", "int8"]),
        ("int4-gptq", [], ["int4-distilled", "weights.group_size=32", "int4-mixed", "int8"]),
        ("int4-distilled", [], ["weights.group_size=32", "int4-mixed", "int8"]),
        ("int4-mixed", [], ["int4-awq-se", "int4-distilled", "weights.group_size=32", "int8"]),
        ("int4", ["weights.group_size=32"], ["int4-awq-se", "int4-distilled", "int4-mixed", "int8"]),
        ("int4", ["weights.mode=int3_sym"], ["int4", "int4-awq-se", "weights.group_size=32", "int4-mixed", "int8"]),
        ("mxfp4", [], ["int4-awq-se", "int4-mixed", "int8"]),
        ("int4-npu", [], ["int8-sym"]),
        ("fp8", [], ["int8"]),
        ("int8-sym", [], ["int8"]),
        ("int8-ptq", [], ["int8-ptq-accuracy", "int8"]),
        ("int8-ptq-accuracy", [], ["int8"]),
        ("int8", [], []),
        ("none", [], []),
    ],
)
def test_what_to_try_is_a_packaged_recipe_or_this_one_with_a_setting(
    recipe: str, settings: list[str], expected: list[str]
) -> None:
    given = tried(recipe, 0.34, settings)
    assert words(given) == expected
    names = {packaged.name for packaged in packaged_recipes()}
    for remedy in given.remedies:
        assert remedy.recipe in names or override_recipe(load_recipe(recipe), [*settings, str(remedy.setting)])


def test_a_small_loss_begins_with_the_same_size_and_a_large_one_with_more_bits() -> None:
    assert tried("int4", 0.03).first == tried("int4", 0.03).remedies[0]
    large = tried("int4", 0.34)
    assert large.first == large.remedies[-1]
    assert large.lost == "0.34 nats of KL divergence (0.01 allowed), -98.00% perplexity"
    assert tried("int4", float("nan")).first == large.first
    assert tried("int8", 0.34).first is None


def test_the_part_that_lost_it_is_named_and_what_it_needs() -> None:
    weights = tried("int4", 0.34, weights=0.3, kv_cache=0.31, dynamic_quantization=0.32, all=0.34)
    assert weights.lost.endswith("; the weights alone lose 0.3 nats")
    assert words(weights) == words(tried("int4", 0.34))
    cache = tried("int4", 0.34, weights=0.02, kv_cache=0.3, dynamic_quantization=0.04, all=0.34)
    assert cache.lost.endswith("; the weights alone lose 0.02 nats, the cache's precision adds most of the rest")
    assert words(cache) == ["runtime.kv_cache_precision=f16"]
    activations = tried("int4", 0.34, weights=0.02, kv_cache=0.03, dynamic_quantization=0.3, all=0.34)
    assert words(activations) == ["runtime.dynamic_quantization_group_size=0"]
    # No recipe decides the execution's precision.
    assert words(tried("int4", 0.34, weights=0.02, execution_precision=0.3, all=0.34)) == []


def served(report: EvalReport, stateful: float, paged: float) -> EvalReport:
    """The same scored on both graphs."""
    found = report.divergence
    assert found is not None

    def record(backend: Any, kl: float) -> BackendRecord:
        lost = found.model_copy(update={"kl_divergence": found.kl_divergence.model_copy(update={"value": kl})})
        return BackendRecord(
            backend=backend, properties={}, perplexity=report.model.perplexity, divergence=lost, verdict="worse"
        )

    return report.model_copy(update={"backends": (record("stateful", stateful), record("paged", paged))})


@pytest.mark.parametrize(
    ("stateful", "paged", "cache", "expected", "what"),
    [
        (0.03, 0.34, "u8", ["runtime.kv_cache_precision=f16"], "0.02 nats, the paged graph adds most of the rest"),
        (0.03, 0.34, "f16", [], "0.02 nats, the paged graph adds most of the rest"),
        # It loses less, so that what it adds is not asked for.
        (0.4, 0.34, "u8", None, "the weights alone lose 0.02 nats"),
    ],
)
def test_what_the_paged_graph_adds_is_a_part_too(
    stateful: float, paged: float, cache: str, expected: list[str] | None, what: str
) -> None:
    report = served(report_of(stateful, weights=0.02, kv_cache=0.025, all=0.03, paged=paged), stateful, paged)
    *others, last = report.split_damage
    split = (*others, last.model_copy(update={"properties": {"KV_CACHE_PRECISION": cache}}))
    given = advice(report.model_copy(update={"split_damage": split}), load_recipe("int4"))
    assert given is not None
    assert given.lost.endswith(what)
    assert ("on the paged graph" in given.lost) == (paged > stateful)
    assert words(given) == (words(tried("int4", 0.34)) if expected is None else expected)


def test_there_is_no_advice_where_nothing_is_worse() -> None:
    for verdict in ("equivalent", "cannot tell", None):
        assert advice(EVALUATION.model_copy(update={"verdict": verdict}), load_recipe("int4")) is None


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An int4 artifact of a Hub model, `model-int4-ov` in the working directory."""
    monkeypatch.chdir(tmp_path)
    made = make_artifact(tmp_path / "model-int4-ov")
    manifest = read_measurements(made).manifest
    changed = {"recipe": load_recipe("int4"), "provenance": REPORT.provenance}
    (made / "llmcompress.json").write_bytes(manifest_bytes(manifest.model_copy(update=changed)))
    return Path(made.name)


def stored(model: Path, report: EvalReport = EVALUATION) -> EvalReport:
    mine = report.model_copy(update={"model": evaluation(model).model})
    write_report(model, "eval.json", mine)
    return mine


def benched(model: Path, **changes: Any) -> BenchReport:
    return SPEED.model_copy(update={"manifest_sha256": manifest_sha256(model), "source": model.name, **changes})


def test_after_an_evaluation_a_better_recipe(model: Path, capsys: Captured) -> None:
    after_eval(stored(model, report_of(0.03)), str(model), EVALUATION.spec, "some/model")
    revision = REPORT.provenance.revision
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[1:]] == [
        "Lost  0.03 nats of KL divergence (0.01 allowed), -98.00% perplexity",
        "Try   int4-awq-se: AWQ and scale estimation on text, the same size",
        "      int4-distilled: bits learned from the original, the same size",
        "      --set weights.group_size=32: smaller groups, more scales",
        "      int4-mixed: the most sensitive layers in 8 bits",
        "      int8: 8-bit weights",
        "Written to model-int4-ov/eval.json",
        f"Next: llmcompress compress some/model --revision {revision} -r int4-awq-se",
    ]


def test_after_an_evaluation_of_a_good_model_its_speed_and_then_a_talk(model: Path, capsys: Captured) -> None:
    good = stored(model, EVALUATION.model_copy(update={"verdict": "equivalent"}))
    after_eval(good, str(model), good.spec, "some/model")
    assert capsys.readouterr().out.split("\n", 1)[1] == (
        "Written to model-int4-ov/eval.json\nNext: llmcompress bench model-int4-ov\n"
    )
    add_benchmark(model, benched(model))
    after_eval(good, str(model), good.spec, "some/model")
    assert "Next: llmcompress chat model-int4-ov --with some/model\n" in capsys.readouterr().out
    # The file holds another report, so that it is not said to be written.
    after_eval(good.model_copy(update={"chunk": 7}), str(model), good.spec, None)
    shown = capsys.readouterr().out
    assert "Written" not in shown
    assert shown.endswith("Next: llmcompress chat model-int4-ov\n")
    after_eval(good, "some/model", good.spec, None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("longest", "options"),
    [
        (640, ""),
        (512, " --prompt-tokens 256"),
        (100, " --prompt-tokens 50 --new-tokens 50"),
    ],
)
def test_the_speed_of_a_short_model_is_measured_within_its_context(
    longest: int, options: str, model: Path, capsys: Captured
) -> None:
    config = {"model_type": "llama", "max_position_embeddings": longest}
    (model / "config.json").write_text(json.dumps(config))
    good = stored(model, EVALUATION.model_copy(update={"verdict": "equivalent"}))
    after_eval(good, str(model), good.spec, None)
    assert capsys.readouterr().out.endswith(f"Next: llmcompress bench model-int4-ov{options}\n")


def test_code_that_was_trusted_is_trusted_next(model: Path, capsys: Captured) -> None:
    manifest = read_measurements(model).manifest
    origin = manifest.provenance.model_copy(update={"trust_remote_code": True})
    (model / "llmcompress.json").write_bytes(manifest_bytes(manifest.model_copy(update={"provenance": origin})))
    good = stored(model, EVALUATION.model_copy(update={"verdict": "equivalent"}))
    after_eval(good, str(model), good.spec, None)
    assert capsys.readouterr().out.endswith("Next: llmcompress bench model-int4-ov --trust-remote-code\n")
    add_benchmark(model, benched(model))
    after_eval(good, str(model), good.spec, "some/model")
    expected = "Next: llmcompress chat model-int4-ov --trust-remote-code --with some/model\n"
    assert expected in capsys.readouterr().out


def test_a_cache_that_lost_it_is_set_in_the_same_recipe(model: Path, capsys: Captured) -> None:
    report = stored(model, report_of(0.03, weights=0.002, kv_cache=0.02, all=0.03))
    after_eval(report, str(model), report.spec, None)
    assert capsys.readouterr().out.endswith(
        "-r int4 --set runtime.kv_cache_precision=f16 -o model-int4-ov-kv_cache_precision-f16\n"
    )


def test_where_no_recipe_loses_less_the_damage_is_split(model: Path, capsys: Captured) -> None:
    manifest = read_measurements(model).manifest.model_copy(update={"recipe": load_recipe("int8")})
    (model / "llmcompress.json").write_bytes(manifest_bytes(manifest))
    report = stored(model)
    after_eval(report, str(model), report.spec, "some/model")
    assert capsys.readouterr().out.endswith(
        "Next: llmcompress eval model-int4-ov --reference some/model --dataset text.txt --seq-len 256 --split-damage\n"
    )


def test_after_a_compression_the_evaluation_opens_the_original_the_same_way(capsys: Captured) -> None:
    after_compress(REPORT, "some/model", Path("out"), Access(revision="main", trust_remote_code=True, max_context=9))
    assert capsys.readouterr().out == (
        f"Next: llmcompress eval out --reference some/model --reference-revision {REPORT.provenance.revision} "
        "--trust-remote-code --max-context 9\n"
    )


def test_windows_are_no_longer_than_the_models_context(capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 128}')
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_bytes(b"")
    after_compress(REPORT, "some/model", tmp_path, Access())
    assert capsys.readouterr().out.endswith(" --seq-len 128\n")


def test_after_a_benchmark_the_card(model: Path, capsys: Captured) -> None:
    report = benched(model)
    add_benchmark(model, report)
    after_bench([report, report], ["elsewhere", str(model)])
    assert capsys.readouterr().out == "\nWritten to model-int4-ov/bench.json\nNext: llmcompress card model-int4-ov\n"
    after_bench([report], ["some/model"])
    assert capsys.readouterr().out == ""


def test_after_tuning_its_application(model: Path, capsys: Captured) -> None:
    report = tuning(model)
    write_report(model, "tune.json", report)
    after_tune(report, model, applied=False)
    assert capsys.readouterr().out == "\nWritten to model-int4-ov/tune.json\n"
    found = report.model_copy(update={"in_model": {"KV_CACHE_PRECISION": "u8"}})
    write_report(model, "tune.json", found)
    after_tune(found, model, applied=False)
    line = "Next: llmcompress tune model-int4-ov --measured --apply -o model-int4-ov-tuned\n"
    assert capsys.readouterr().out.endswith(line)


def roofed(model: Path, gain: float, rate: float, size_bytes: int, load: float | None = 0.1) -> BenchReport:
    roof = Roofline(
        bandwidth_bytes_per_s=1e10,
        weight_bytes=size_bytes,
        cache_bytes=1,
        limit_tokens_per_s=1000,
        share=0.02,
        gain_of_half_the_bits=gain,
    )
    case = SPEED.cases[0].model_copy(
        update={"roofline": roof, "decode_tokens_per_s": RATE.model_copy(update={"p50": rate})}
    )
    steadiness = Steadiness(load_before=load, load_after=load, frequency_mhz=None, temperature_c=None)
    return SPEED.model_copy(
        update={"source": model.name, "cases": (case,), "size_bytes": size_bytes, "steadiness": steadiness}
    )


def test_fewer_bits_are_called_useless_only_where_that_was_measured(capsys: Captured) -> None:
    def shown(*reports: BenchReport) -> str:
        print_reports(reports, "table")
        return capsys.readouterr().out

    hardly = "the time goes elsewhere, fewer bits can hardly help here"
    none, int4 = roofed(Path("none"), 1.03, 88, 8_000), roofed(Path("int4"), 1.01, 100, 2_000)
    assert hardly in shown(none)
    # A smaller model ran next to it, and was faster; of the smaller one nothing contradicts.
    first, second = (line for line in shown(none, int4).splitlines() if "GB/s allows" in line)
    assert first.endswith("; the time goes elsewhere")
    assert second.endswith(hardly)
    slower = roofed(Path("int4"), 1.01, 90, 2_000)
    assert all(line.endswith(hardly) for line in shown(none, slower).splitlines() if "GB/s allows" in line)
    # On a busy machine the time went to others.
    assert hardly not in shown(roofed(Path("none"), 1.03, 88, 8_000, load=7.0))
    assert "half the bits could make it 1.6 times as fast at most" in shown(roofed(Path("none"), 1.6, 88, 8_000))


def test_the_load_of_the_machine_is_a_warning_above_the_table(capsys: Captured) -> None:
    for form in ("table", "markdown"):
        print_reports([roofed(Path("none"), 1.6, 88, 8_000, load=7.04)], form)
        first = " ".join(capsys.readouterr().out.split())
        assert first.startswith("warning: the machine was busy before the runs: a load of 7.0, measured with 2 thr")
    for load in (None, 0.9):
        print_reports([roofed(Path("none"), 1.6, 88, 8_000, load=load)], "table")
        assert "warning" not in capsys.readouterr().out


PROGRAM = """
import sys
from llmcompress.artifact import read_measurements
from llmcompress.cli.evaluation_report import print_evaluation
from llmcompress.cli.next_steps import after_eval
report = read_measurements(__import__("pathlib").Path(sys.argv[1])).evaluation
print_evaluation(report, source=sys.argv[1], stages=False)
after_eval(report, sys.argv[1], report.spec, None)
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_the_verdict_the_gate_and_the_way_out(columns: int, model: Path) -> None:
    stored(model, report_of(0.03))
    shown = in_terminal([sys.executable, "-c", PROGRAM, model], columns)
    assert shown.exit_code == 0, shown.text
    lines = shown.lines
    assert "Gate  no thresholds set" in lines
    assert any(line.startswith("Verdict: worse") for line in lines)
    place = lines.index("Lost  0.03 nats of KL divergence (0.01 allowed), -98.00% perplexity")
    assert lines[place + 1 : place + 6] == [
        "Try   int4-awq-se: AWQ and scale estimation on text, the same size",
        "      int4-distilled: bits learned from the original, the same size",
        "      --set weights.group_size=32: smaller groups, more scales",
        "      int4-mixed: the most sensitive layers in 8 bits",
        "      int8: 8-bit weights",
    ]
    assert all(len(line) <= columns for line in lines[place : place + 7])
    assert lines[place + 6] == "Written to model-int4-ov/eval.json"
    # A command stays one line, to be pasted.
    assert lines[-1].startswith("Next: llmcompress compress some/model --revision ")
    assert lines[-1].endswith(" -r int4-awq-se")
