"""Comparisons as data: what may be compared, trade-offs, tables, layers, commands."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import random
import re
import shlex
from pathlib import Path

import pytest
from summary_fixture import LAYERS, estimate, layer, write_benchmark, write_evaluation, write_family, write_model

from llmcompress.artifact import read_manifest, read_measurements
from llmcompress.artifact.manifest import manifest_bytes
from llmcompress.cli.evaluation_report import evaluation_line
from llmcompress.errors import ArtifactError, UsageError
from llmcompress.report.benchmark import BenchFile, BenchReport
from llmcompress.report.evaluation import BackendRecord, EvalReport
from llmcompress.report.tuning import TuningOrigin
from llmcompress.runner.state import benchmark_reason
from llmcompress.spec import Runtime, load_recipe
from llmcompress.summary import Comparison, FailedRow, compare, csv_text, lines, markdown, page
from llmcompress.summary.commands import commands
from llmcompress.summary.sections import layer_grid
from llmcompress.summary.table import notes
from llmcompress.summary.trade_offs import pareto_front

FIGURES = [(1000, 11.0, 0.02, 40.0), (1500, 10.5, 0.01, 30.0), (1600, 10.8, 0.015, 35.0), (500, 14.0, 0.3, 38.0)]
FAILED = FailedRow(name="tiny | int3", reason="needs 5 GB of memory,\n4 GB are free", exit_code=3)


def texts(comparison: Comparison) -> dict[str, tuple[str, ...]]:
    return {line.title: line.texts for line in lines(comparison)}


def test_rows_hold_the_reports_of_just_these_bytes(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    report = write_evaluation(model, 12.0)
    write_benchmark(model, 20.0)
    (row,) = compare([model]).rows
    assert row.evaluation == report
    assert row.passed_over == {}
    (model / "eval.json").write_text(report.model_copy(update={"model": report.model.model_copy(
        update={"manifest_sha256": "0" * 64})}).model_dump_json())  # fmt: skip
    (model / "bench.json").write_text("{")
    found = compare([model])
    assert (found.rows[0].evaluation, found.rows[0].benchmark) == (None, None)
    assert found.rows[0].passed_over == {
        "eval.json": "it was measured on other bytes, of manifest 000000000000",
        "bench.json": "it is not JSON",
    }
    assert found.bases == found.trade_offs == ()
    for title in ("perplexity", "KL divergence", "verdict", "gate", "shape", "ttft", "decode tokens/s", "peak memory"):
        assert texts(found)[title] == ("not measured",)
    assert "model: bench.json is not shown: it is not JSON." in markdown(found).replace("\\", "")


def test_a_histogram_without_a_count_for_each_bin_is_not_shown(tmp_path: Path) -> None:
    base, model = write_model(tmp_path / "base"), write_model(tmp_path / "model")
    write_evaluation(model, 12.0, kl=0.1, reference=base)
    report = json.loads((model / "eval.json").read_text())
    del report["divergence"]["kl_histogram"]["edges"][0]
    (model / "eval.json").write_text(json.dumps(report))
    (told,) = compare([model]).rows[0].passed_over.values()
    assert told.endswith("2 edges need 3 counts, not 4")
    assert "2 edges need" in page(compare([model]))


def test_runs_that_ask_something_else_stay_and_a_comparison_takes_what_most_have(tmp_path: Path) -> None:
    first, second, third = (write_model(tmp_path / name) for name in ("a", "b", "c"))
    for directory in (first, second, third):
        # As versions wrote it that kept one run.
        write_benchmark(directory, 20.0, created="2026-01-01T00:00:00")
    write_benchmark(first, 21.0, shapes=[(512, 128)], created="2026-01-02T00:00:00", added=True)
    write_benchmark(first, 22.0, engine="genai", created="2026-01-03T00:00:00", added=True)
    write_benchmark(second, 23.0, engine="genai", created="2026-01-03T00:00:00", added=True)
    stored = BenchFile.model_validate_json((first / "bench.json").read_text())
    assert [(run.spec.engine, run.cases[0].prompt_tokens) for run in stored.runs] == [
        ("genai", 16), ("openvino", 512), ("openvino", 16),
    ]  # fmt: skip
    assert read_measurements(first).benchmark == stored.runs[0]
    # The reader of a version that knows one run finds the newest.
    assert BenchReport.model_validate_json((first / "bench.json").read_text()) == stored.runs[0]

    def speeds(*directories: Path) -> list[tuple[str, float]]:
        runs = [row.benchmark for row in compare(directories).rows]
        rates = [(run.spec.engine, run.cases[0].decode_tokens_per_s) for run in runs if run]
        return [(engine, rate.p50) for engine, rate in rates if rate]

    assert speeds(first, second, third) == [("openvino", 20.0)] * 3
    assert speeds(first, second) == [("genai", 22.0), ("genai", 23.0)]
    assert speeds(first) == [("genai", 22.0)]
    assert len(compare([first, second, third]).bases_of("speed")) == 1

    # A plan's benchmark is done where any run answers it.
    assert [benchmark_reason(first, run.spec) for run in stored.runs] == [None] * 3
    assert benchmark_reason(third, stored.spec) == "the benchmark changed"

    # The same question again, more often: it replaces the earlier run alone.
    again = write_benchmark(first, 25.0, shapes=[(512, 128)], warmup_runs=2, added=True)
    runs = read_measurements(first).benchmarks
    assert runs[0] == again
    assert [(run.spec.engine, run.cases[0].prompt_tokens) for run in runs[1:]] == [("genai", 16), ("openvino", 16)]


def test_runs_of_other_bytes_do_not_stay(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    write_benchmark(model, 20.0)
    manifest = read_manifest(model).model_copy(update={"bits_per_weight": 1.0})
    (model / "llmcompress.json").write_bytes(manifest_bytes(manifest))
    write_benchmark(model, 21.0, engine="genai", added=True)
    assert [run.spec.engine for run in read_measurements(model).benchmarks] == ["genai"]


def test_what_tuning_put_into_a_model_stands_beside_it(tmp_path: Path) -> None:
    plain, tuned = write_model(tmp_path / "int4"), write_model(tmp_path / "int4-tuned")
    assert not {"runtime options", "gain by tuning"} & texts(compare([plain, tuned])).keys()
    manifest = read_manifest(tuned)
    hints = Runtime(kv_cache_precision="u4", dynamic_quantization_group_size=128)
    origin = TuningOrigin(
        device="CPU", device_name="A CPU", cpu="A CPU", platform="linux", objective="prefill", workloads=("a:1/2",),
        properties=hints.properties(), gain=estimate(1.5), kl_divergence=estimate(0.1),
        default_kl_divergence=estimate(0.1), reference_is_itself=False, profile={}, tuned_manifest_sha256="0" * 64,
    )  # fmt: skip
    recipe = manifest.recipe.model_copy(update={"runtime": hints})
    changed = manifest.model_copy(update={"recipe": recipe, "tuning": origin})
    (tuned / "llmcompress.json").write_bytes(manifest_bytes(changed))
    # A report of other bytes says nothing of these.
    (plain / "tune.json").write_text("{")
    found = compare([plain, tuned])
    assert texts(found)["runtime options"] == ("default", "dynamic quantization 128, cache u4")
    assert texts(found)["gain by tuning"] == ("not tuned", "1.5 [1.35, 1.65] prefill")
    assert "int4: tune.json is not shown: it is not JSON." in markdown(found).replace("\\", "")
    assert ">1.5 [1.35, 1.65] prefill<" in page(found).replace("<bdi>", "").replace("</bdi>", "")
    first, second = csv.DictReader(io.StringIO(csv_text(found)))
    assert (first["runtime_options"], first["tuning_gain"]) == ("", "")
    assert second["runtime_options"] == "DYNAMIC_QUANTIZATION_GROUP_SIZE=128 KV_CACHE_PRECISION=u4"
    assert [float(second[f"tuning_gain{end}"]) for end in ("", "_low", "_high")] == pytest.approx([1.5, 1.35, 1.65])
    assert second["tuning_objective"] == "prefill"


def test_an_evaluation_of_an_earlier_version_has_no_histogram(tmp_path: Path) -> None:
    directories = write_family(tmp_path, FIGURES[:1])
    text = (directories[1] / "eval.json").read_text()
    old = re.sub(r',"kl_histogram":\{[^}]*\}', "", text)
    assert old != text
    (directories[1] / "eval.json").write_text(old)
    divergence = compare(directories).rows[1].divergence
    assert divergence is not None
    assert divergence.kl_histogram is None


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"is no llmcompress artifact"):
        compare([tmp_path])
    with pytest.raises(UsageError, match=r"model/: is given twice|model: is given twice"):
        compare([model, tmp_path / "model" / ".." / "model"])


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    directories = [write_model(tmp_path / name / "int4") for name in ("llama", "qwen")]
    assert [row.name for row in compare(directories).rows] == ["llama/int4", "qwen/int4"]
    assert [row.name for row in compare(directories[:1]).rows] == ["int4"]
    strange = tmp_path / os.fsdecode(b"caf\xe9")
    write_model(tmp_path / "cafe").rename(strange)
    found = compare([strange])
    assert found.rows[0].name == "caf\N{REPLACEMENT CHARACTER}"
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def brute_front(points: list[tuple[float, float]]) -> list[bool]:
    """By the definition: nobody is as low in both and lower in one."""
    return [
        not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
        for x, y in points
    ]  # fmt: skip


def test_the_front_is_that_of_the_definition() -> None:
    chance = random.Random(0)
    for size in (1, 2, 3, 5, 12, 40):
        for _ in range(50):
            # Few different values make ties.
            points = [(float(chance.randint(0, 6)), float(chance.randint(0, 6))) for _ in range(size)]
            assert pareto_front(points) == brute_front(points)
    assert pareto_front([]) == []


def test_trade_offs_hold_what_the_reports_say(tmp_path: Path) -> None:
    found = compare(write_family(tmp_path, FIGURES))
    assert [(t.x, t.y) for t in found.trade_offs] == [
        ("size_bytes", "perplexity"),
        ("size_bytes", "kl_divergence"),
        ("decode_tokens_per_s", "kl_divergence"),
    ]
    perplexity, size, speed = found.trade_offs
    assert [(p.x, p.y) for p in perplexity.points] == [(4000, 10), *((s, p) for s, p, _, _ in FIGURES)]
    # Of the change against the reference's 10, not of the perplexity itself; the reference has none.
    assert perplexity.points[0].y_low is None
    assert perplexity.points[1].y_low == pytest.approx(11.0 * 0.98)
    assert perplexity.points[1].y_high == pytest.approx(11.0 * 1.02)
    assert [(p.x, p.y) for p in size.points] == [(4000, 0), *((s, k) for s, _, k, _ in FIGURES)]
    assert [p.is_reference for p in size.points] == [True, False, False, False, False]
    assert (size.points[1].y_low, size.points[1].y_high) == (pytest.approx(0.018), pytest.approx(0.022))
    assert [(p.x, p.y) for p in speed.points] == [(10, 0), *((r, k) for *_, k, r in FIGURES)]
    assert (speed.points[1].x_low, speed.points[1].x_high) == (36.0, 48.0)
    for trade_off in found.trade_offs:
        sign = -1 if trade_off.x == "decode_tokens_per_s" else 1
        expected = brute_front([(sign * point.x, point.y) for point in trade_off.points])
        assert [point.on_front for point in trade_off.points] == expected
    # The last is slower than the first and worse.
    assert [point.on_front for point in speed.points] == [True, True, True, True, False]


def test_what_is_not_finite_or_alone_is_not_drawn(tmp_path: Path) -> None:
    directories = write_family(tmp_path, FIGURES[:2])
    report = EvalReport.model_validate_json((directories[1] / "eval.json").read_text())
    broken = report.model.perplexity.perplexity.model_copy(update={"value": float("inf"), "low": None, "high": None})
    perplexity = report.model.perplexity.model_copy(update={"perplexity": broken})
    model = report.model.model_copy(update={"perplexity": perplexity})
    (directories[1] / "eval.json").write_text(report.model_copy(update={"model": model}).model_dump_json())
    found = compare(directories)
    assert [point.row for point in found.trade_offs[0].points] == [0, 2]
    assert texts(found)["perplexity"][1] == "inf [no interval]"
    assert compare(directories[2:]).trade_offs == ()


@pytest.mark.parametrize(
    ("options", "kinds", "difference"),
    [
        ({"text": "other.txt"}, {"perplexity": 2, "kl_divergence": 2}, "text other.txt"),
        ({"cpu": "Another CPU"}, {"perplexity": 2, "kl_divergence": 2}, "machine Another CPU"),
        ({}, {"perplexity": 1, "kl_divergence": 2}, "reference two-none-ov"),
    ],
)
def test_different_texts_machines_and_references_share_no_axis(
    tmp_path: Path, options: dict[str, str], kinds: dict[str, int], difference: str
) -> None:
    one = write_family(tmp_path, FIGURES[:2], name="one")
    two = write_family(tmp_path, FIGURES[2:], name="two", **options)
    found = compare([*one, *two])
    assert {kind: len(found.bases_of(kind)) for kind in kinds} == kinds  # type: ignore[call-overload]
    for trade_off in found.trade_offs:
        shown = {point.row for point in trade_off.points}
        if trade_off.y == "kl_divergence":
            assert shown in ({0, 1, 2}, {3, 4, 5})
    by_title = texts(found)
    assert by_title["KL divergence"][1].endswith(" [K1]")
    assert by_title["KL divergence"][4].endswith(" [K2]")
    assert by_title["KL divergence"][0] == by_title["KL divergence"][3] == "the reference"
    assert ("[P2]" in by_title["perplexity"][4]) == (kinds["perplexity"] == 2)
    told = markdown(found).replace("\\", "")
    assert "KL divergences are of 2 kinds that cannot be compared with each other: [K1] " in told
    assert difference in told


def test_a_lower_bound_is_no_exact_divergence(tmp_path: Path) -> None:
    directories = write_family(tmp_path, FIGURES[:2])
    write_evaluation(directories[2], 10.5, kl=0.01, reference=directories[0], top_k=64)
    found = compare(directories)
    assert [basis.rows for basis in found.bases_of("kl_divergence")] == [(1,), (2,)]
    assert texts(found)["KL divergence"][2].startswith("at least 0.01 [")


def test_pinned_evaluations_of_two_machines_can_be_compared(tmp_path: Path) -> None:
    model = write_model(tmp_path / "a")
    other = write_model(tmp_path / "b")
    for directory, cpu in ((model, "A CPU"), (other, "Another CPU")):
        report = write_evaluation(directory, 11.0, cpu=cpu)
        spec = report.spec.model_copy(update={"precision": "pinned"})
        (directory / "eval.json").write_text(report.model_copy(update={"spec": spec}).model_dump_json())
    assert [basis.rows for basis in compare([model, other]).bases_of("perplexity")] == [(0, 1)]


def test_speeds_of_another_shape_or_machine_share_no_axis(tmp_path: Path) -> None:
    directories = write_family(tmp_path, FIGURES[:3])
    write_benchmark(directories[1], 40.0, shapes=((16, 4), (32, 4)))
    write_benchmark(directories[2], 30.0, shapes=((32, 4),))
    write_benchmark(directories[3], 35.0, cpu="Another CPU")
    found = compare(directories)
    assert [(basis.rows, basis.cases) for basis in found.bases_of("speed")] == [
        ((0, 1), (0, 0)), ((1, 2), (1, 0)), ((3,), (0,)),
    ]  # fmt: skip
    assert [t.bases for t in found.trade_offs if t.x == "decode_tokens_per_s"] == [("K1", "S1"), ("K1", "S2")]
    assert texts(found)["shape"] == ("16+4 [S1]", "16+4 [S1]", "32+4 [S2]", "16+4 [S3]")


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    found = compare(write_family(tmp_path, FIGURES), [FAILED])
    assert Comparison.model_validate_json(found.model_dump_json()) == found


def test_csv_holds_the_raw_numbers(tmp_path: Path) -> None:
    found = compare(write_family(tmp_path, FIGURES), [FAILED])
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [row["name"] for row in rows] == [row.name for row in found.rows] + [FAILED.name]
    for row, (size, perplexity, kl, rate) in zip(rows[1:], FIGURES, strict=False):
        assert (int(row["size_bytes"]), float(row["perplexity"])) == (size, perplexity)
        assert (float(row["kl_divergence"]), float(row["decode_p50_tokens_per_s"])) == (kl, rate)
        assert float(row["kl_p99"]) == kl * 4
        assert (row["kl_divergence_exact"], row["kl_divergence_basis"], row["speed_basis"]) == ("True", "K1", "S1")
    assert (rows[0]["kl_divergence"], rows[0]["failure"]) == ("", "")
    assert (rows[-1]["failure"], rows[-1]["exit_code"]) == (FAILED.reason, "3")
    assert all(value == "" for name, value in rows[-1].items() if name not in {"name", "failure", "exit_code"})


def test_the_graph_that_loses_more_is_quoted_and_named(tmp_path: Path) -> None:
    reference = write_model(tmp_path / "none", size_bytes=4000, recipe="none")
    write_evaluation(reference, 10.0)
    kls = {"kept": (0.02, 0.01), "lost": (0.02, 0.5), "broken": (0.02, math.nan)}
    for name, (stateful, paged) in kls.items():
        made = write_model(tmp_path / name)
        of_stateful = write_evaluation(made, 11.0, kl=stateful, reference=reference)
        of_paged = write_evaluation(made, 12.0, kl=paged, reference=reference)
        backends = tuple(
            BackendRecord(
                backend=backend, properties={}, perplexity=report.model.perplexity, divergence=report.divergence
            )
            for backend, report in (("stateful", of_stateful), ("paged", of_paged))
        )
        write_evaluation(made, 11.0, kl=stateful, reference=reference, backends=backends)
    found = compare([reference, *(tmp_path / name for name in kls)])
    quoted = [row.divergence.kl_divergence.value for row in found.rows if row.divergence]
    assert quoted[:2] == [0.02, 0.5]
    assert math.isnan(quoted[2])
    shown = texts(found)
    assert [text.split()[0] for text in shown["KL divergence"]] == ["the", "0.02", "0.5", "nan"]
    assert [text.split()[0] for text in shown["perplexity"]] == ["10", "11", "12", "12"]
    (note,) = notes(found)
    assert note == (
        "Quality is that of the graph that loses more, where both were measured: stateful of kept; "
        "paged of lost, broken."
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert [row["backend"] for row in rows] == ["stateful", "stateful", "paged", "paged"]
    (size, _) = (trade_off for trade_off in found.trade_offs if trade_off.x == "size_bytes")
    assert [(point.y, point.y_low) for point in size.points[1:3]] == [
        (11.0, pytest.approx(11.0 * 0.98)),
        (12.0, pytest.approx(12.0 * 0.98)),
    ]
    report = found.rows[2].evaluation
    assert report is not None
    assert report.facts()["graph"] == "paged, the worse of stateful and paged"
    assert report.facts()["KL divergence, nats"].startswith("0.5 ")
    assert evaluation_line(report) == "perplexity 12, KL divergence 0.5, worse"


def cells(line: str) -> list[str]:
    """Of one row of a GitHub table, as its reader sees them."""
    parts = re.split(r"(?<!\\)\|", line)[1:-1]
    return [re.sub(r"\\(.)", r"\1", part).strip() for part in parts]


def test_markdown_shows_what_the_table_shows(tmp_path: Path) -> None:
    found = compare(write_family(tmp_path / "<b>x", FIGURES), [FAILED])
    table, failures = markdown(found).split("\n\n")[:2]
    head, rule, *rows = table.splitlines()
    assert cells(head) == ["model", *texts(found)]
    assert len(cells(rule)) == len(cells(head))
    shown = [cells(row) for row in rows]
    assert [row[0] for row in shown] == [row.name for row in found.rows]
    assert [row[1:] for row in shown] == [list(column) for column in zip(*texts(found).values(), strict=True)]
    assert cells(failures.splitlines()[2]) == ["tiny | int3", "3", "needs 5 GB of memory, 4 GB are free"]
    evil = found.rows[0].model_copy(update={"name": "<img src=x>|\n[a](b)"})
    hostile = markdown(found.model_copy(update={"rows": (evil, *found.rows[1:])}))
    assert r"\<img src=x\>\| \[a\](b)" in hostile


def test_only_failures_are_a_comparison(tmp_path: Path) -> None:
    found = compare([], [FAILED])
    assert markdown(found).startswith("| failed | exit code | reason |")
    assert len(list(csv.DictReader(io.StringIO(csv_text(found))))) == 1


def test_layers_are_laid_out_by_block_and_part() -> None:
    grid = layer_grid(LAYERS)
    assert grid.blocks == ("0", "1", "10")
    assert grid.parts == ("mlp.down_proj", "self_attn.q_proj")
    assert grid.cells["0", "mlp.down_proj"].bits == pytest.approx(8 * 530 / 1000)
    assert grid.cells["0", "self_attn.q_proj"].modes == ("bf16",)
    assert ("1", "self_attn.q_proj") not in grid.cells
    assert list(grid.others) == ["lm_head"]
    sizes = [cell.size_bytes for cell in itertools.chain(grid.cells.values(), grid.others.values())]
    assert sum(sizes) == sum(record.size_bytes for record in LAYERS)


def test_experts_of_a_block_are_one_cell_and_stacks_stay_apart() -> None:
    experts = [layer(f"self.model.layers.0.mlp.experts.{n}.up_proj.weight", size_bytes=500 + n) for n in range(4)]
    (cell,) = layer_grid(experts).cells.values()
    assert (cell.num_parameters, cell.size_bytes, cell.modes) == (4000, 2006, ("int4_asym, groups of 128",))
    assert layer_grid(experts).parts == ("mlp.experts.*.up_proj",)
    grid = layer_grid([layer(f"{stack}.layers.{n}.fc") for stack in ("encoder", "decoder") for n in (0, 1)])
    assert grid.blocks == ("decoder.layers.0", "decoder.layers.1", "encoder.layers.0", "encoder.layers.1")
    assert layer_grid([layer("odd")]).others.keys() == {"odd"}
    # As activations leave it.
    (taken_by,) = layer_grid([layer("__module.model.layers.0.mlp.up_proj/ov_ext::linear/MatMul")]).cells
    assert taken_by == ("0", "mlp.up_proj")


def test_commands_can_be_run_again(tmp_path: Path) -> None:
    directories = write_family(tmp_path, FIGURES[:1])
    found = compare(directories)
    compress, _, eval_none, eval_r0, bench = commands(found)
    assert shlex.split(compress) == [
        "llmcompress", "compress", "acme/tiny", "--revision", "a" * 40,
        # The fixture's recipe has the name of a packaged one and is another.
        "--recipe", f"{directories[0]}/recipe.yaml" if load_recipe("none") != found.rows[0].manifest.recipe else "none",
        "--output", str(directories[0]),
    ]  # fmt: skip
    assert shlex.split(eval_none) == [
        "llmcompress", "eval", str(directories[0]), "--dataset", "held-out.txt", "--seq-len", "256",
    ]  # fmt: skip
    assert shlex.split(eval_r0)[2:5] == [str(directories[1]), "--reference", str(directories[0])]
    assert shlex.split(eval_r0)[-2:] == ["--reference-scores", "exact"]
    assert shlex.split(bench) == [
        "llmcompress", "bench", *map(str, directories), "--prompt-tokens", "16", "--new-tokens", "4",
        "--repetitions", "3",
    ]  # fmt: skip
    elsewhere = compare(directories[1:])
    assert "--reference REFERENCE" in commands(elsewhere)[1]
    report = json.loads((directories[0] / "eval.json").read_text())
    report["spec"] |= {"dataset": "chat.jsonl", "chat_template": True}
    (directories[0] / "eval.json").write_text(json.dumps(report))
    assert shlex.split(commands(compare(directories[:1]))[1])[3:] == [
        "--dataset", "chat.jsonl", "--chat-template", "--seq-len", "256",
    ]  # fmt: skip
