"""Speed and memory: the arithmetic on recorded timestamps, the order of runs, and real runs of small models."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from fake_hub import FakeHub, running, use
from tiny_models import build_checkpoint

import llmcompress
from llmcompress.benchmarking import benchmark as benchmark_module
from llmcompress.benchmarking.benchmark import bench_case
from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.machine import EnergyMeter, memory_bandwidth_bytes_per_s
from llmcompress.benchmarking.openvino_runtime import OpenvinoRuntime, random_ids
from llmcompress.benchmarking.ratios import paired_ratio, ratios
from llmcompress.benchmarking.roofline import roofline
from llmcompress.benchmarking.timing import (
    Run,
    decode_tokens_per_s,
    prefill_tokens_per_s,
    stats,
    tpot_s,
    ttft_s,
)
from llmcompress.benchmarking.worker import MemoryUse, Opened, forget_pages
from llmcompress.errors import LlmcompressError, ResourceError, UsageError
from llmcompress.report.benchmark import BenchReport, LoadTime
from llmcompress.spec import BenchSpec
from llmcompress.spec.benchmark import Setting, Shape
from llmcompress.spec.validation import from_options

Artifacts = Callable[[str], Path]
RUN = Run(started=100.0, tokens=(100.5, 100.6, 100.8, 100.9))
OPENED = Opened(LoadTime(read_s=0.1, compile_s=0.2), {"KV_CACHE_PRECISION": "u8"}, 1_000_000, 1_000)


def test_the_arithmetic_on_recorded_timestamps() -> None:
    assert ttft_s(RUN) == pytest.approx(0.5)
    assert tpot_s(RUN) == pytest.approx([0.1, 0.2, 0.1])
    assert prefill_tokens_per_s(RUN, 4, 128) == pytest.approx(4 * 128 / 0.5)
    # Three further tokens in 0.4 s, in each of four sequences; the first token's time is the prompt's.
    assert decode_tokens_per_s(RUN, 4) == pytest.approx(4 * 3 / 0.4)


def test_statistics_are_those_of_numpy() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    found = stats(values)
    assert found.values == tuple(values)
    assert (found.mean, found.p50) == (pytest.approx(2.8), 3.0)
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert (found.p90, found.p99) == pytest.approx((np.percentile(values, 90), np.percentile(values, 99)))
    assert stats([2.0]).std == 0.0


def test_a_case_is_made_of_all_its_runs() -> None:
    slower = Run(0.0, (1.0, 1.2, 1.4, 1.6))
    shape = Shape(batch_size=2, depth=10, prompt_tokens=8, new_tokens=4)
    case = bench_case(Setting("CPU", None), shape, [RUN, slower], [6.0, 10.0], OPENED, 1e9)
    assert case.ttft_s.values == pytest.approx((0.5, 1.0))
    assert case.tpot_s is not None
    assert case.tpot_s.values == pytest.approx((0.1, 0.2, 0.1, 0.2, 0.2, 0.2))
    assert case.decode_tokens_per_s is not None
    assert case.decode_tokens_per_s.values == pytest.approx((15.0, 10.0))
    # 16 J for two runs of two sequences with four new tokens each.
    assert case.energy_j_per_token == 1.0
    assert case.roofline is not None
    one = bench_case(Setting("GPU", None), shape._replace(new_tokens=1), [Run(0, (0.5,))], [], OPENED, None)
    assert (one.tpot_s, one.decode_tokens_per_s, one.roofline, one.energy_j_per_token) == (None,) * 4


def test_the_roofline_counts_weights_once_and_the_cache_of_each_sequence() -> None:
    found = roofline(
        bandwidth_bytes_per_s=1e9,
        weight_bytes=10_000_000,
        cache_elements_per_token=1000,
        properties={"KV_CACHE_PRECISION": "u8"},
        shape=Shape(batch_size=4, depth=100, prompt_tokens=50, new_tokens=20),
        tokens_per_s=200.0,
    )
    assert found.cache_bytes == 1000 * (100 + 50 + 10) * 4
    assert found.limit_tokens_per_s == pytest.approx(4 * 1e9 / (10_000_000 + 640_000))
    assert found.share == pytest.approx(200 / found.limit_tokens_per_s)
    # A step of four tokens takes 20 ms, of which half the weights' bytes are 5 ms.
    assert found.gain_of_half_the_bits == pytest.approx(20 / 15)


def test_ratios_are_paired_and_noise_is_called_noise() -> None:
    generator = np.random.default_rng(0)
    drift = np.exp(np.cumsum(generator.normal(0, 0.2, 12)))
    first = drift * np.exp(generator.normal(0, 0.01, 12))
    second = 1.1 * drift * np.exp(generator.normal(0, 0.01, 12))
    found = paired_ratio(second.tolist(), first.tolist(), 0.95)
    assert found.low is not None
    assert found.high is not None
    # The machine drifts by half; pair by pair the ratio is known to a percent.
    assert 1.09 < found.low < 1.1 < found.high < 1.115
    assert paired_ratio([2.0], [1.0], 0.95).low is None


def test_judgements() -> None:
    def case(factor: float) -> Any:
        runs = [
            Run(0.0, (factor * (1 + 0.001 * n), factor * (2 + 0.002 * n), factor * (3 + 0.001 * n))) for n in range(6)
        ]
        return bench_case(Setting("CPU", None), Shape(1, 0, 8, 3), runs, [], OPENED, None)

    faster = {ratio.figure: ratio.judgement for ratio in ratios([case(0.5)], [case(1.0)], 0.95)}
    assert faster == {"ttft_s": "better", "prefill_tokens_per_s": "better", "decode_tokens_per_s": "better"}
    slower = {ratio.judgement for ratio in ratios([case(2.0)], [case(1.0)], 0.95)}
    assert slower == {"worse"}
    assert {ratio.judgement for ratio in ratios([case(1.0)], [case(1.0)], 0.95)} == {"inside the noise"}


def test_energy_counters(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    core = tmp_path / "intel-rapl:0:0"
    for directory, value in ((package, "900"), (core, "5")):
        directory.mkdir()
        (directory / "energy_uj").write_text(value)
        (directory / "max_energy_range_uj").write_text("1000")
    joules: list[float] = []
    meter = EnergyMeter(tmp_path)
    with meter.measured(joules):
        (package / "energy_uj").write_text("950")
    with meter.measured(joules):
        # It has started again from zero.
        (package / "energy_uj").write_text("20")
    assert joules == pytest.approx([50e-6, 70e-6])
    nothing: list[float] = []
    with EnergyMeter(tmp_path / "absent").measured(nothing):
        pass
    assert nothing == []


def test_bandwidth_is_that_of_memory() -> None:
    assert 1e9 < memory_bandwidth_bytes_per_s(2) < 2e12


class FakeClient:
    """Notes what it is asked."""

    asked: list[tuple[str, str, Any]] = []  # noqa: RUF012

    def __init__(
        self,
        directory: Path,
        engine: str,
        *,
        name: str,
        backend: str | None,
        search_path: list[Path],
        trust_remote_code: bool,
    ) -> None:
        self.name = name
        self.clock = 0.0

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *arguments: object) -> None:
        self.asked.append((self.name, "end", None))

    def open(self, device: str, properties: dict[str, str]) -> Opened:
        self.asked.append((self.name, "open", properties))
        return OPENED

    def reopen(self, device: str, properties: dict[str, str]) -> tuple[LoadTime, None]:
        self.asked.append((self.name, "reopen", properties))
        return LoadTime(read_s=0.0, compile_s=0.1), None

    def run(self, shape: Shape, seed: int) -> Run:
        self.asked.append((self.name, "run", seed))
        return Run(0.0, tuple(float(n + 1) for n in range(shape.new_tokens)))

    def memory(self) -> MemoryUse:
        self.asked.append((self.name, "memory", None))
        return MemoryUse(200, 100)


def test_runs_are_interleaved_and_every_prompt_is_new(artifact: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "Client", FakeClient)
    monkeypatch.setattr(benchmark_module, "add_benchmark", lambda *arguments: None)
    monkeypatch.setattr(FakeClient, "asked", [])
    spec = BenchSpec(repetitions=2, warmup_runs=1, prompt_tokens=(8,), new_tokens=(4,), threads=(1, 2),
                     properties=("NUM_STREAMS=1",))  # fmt: skip
    reports = benchmark_module.benchmark([artifact("int8"), artifact("int4")], spec)
    asked = FakeClient.asked
    first = asked[: asked.index(("int4", "reopen", {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"})) + 1]
    one_thread = {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
    assert first == [
        ("int8", "open", one_thread),
        ("int4", "open", one_thread),
        *((name, "run", seed) for seed in range(3) for name in ("int8", "int4")),
        ("int8", "memory", None),
        ("int4", "memory", None),
        ("int8", "reopen", one_thread),
        ("int4", "reopen", one_thread),
    ]
    assert [(name, what) for name, what, _ in asked[-2:]] == [("int4", "end"), ("int8", "end")]
    for report in reports:
        # The run that warms up is not counted.
        assert [len(case.ttft_s.values) for case in report.cases] == [2, 2]
        assert [setting.threads for setting in report.settings] == [1, 2]
        assert (report.peak_rss_bytes, report.steady_rss_bytes) == (200, 100)
    assert reports[0].compared_with is None
    assert (reports[1].compared_with, len(reports[1].ratios)) == ("int8", 6)


def test_a_real_run(artifact: Artifacts, tmp_path: Path) -> None:
    output = shutil.copytree(artifact("int8"), tmp_path / "int8")
    spec = BenchSpec(repetitions=2, prompt_tokens=(32,), new_tokens=(8,), batch_sizes=(1, 2), depths=(0, 40))
    (report,) = llmcompress.benchmark([output], spec)
    assert BenchReport.model_validate_json((output / "bench.json").read_text()) == report
    assert llmcompress.verify(output).ok
    assert [(case.batch_size, case.depth) for case in report.cases] == [(1, 0), (1, 40), (2, 0), (2, 40)]
    for case in report.cases:
        assert case.tpot_s is not None
        assert len(case.tpot_s.values) == 2 * 7
        assert case.decode_tokens_per_s is not None
        # What all sequences make together, from the same timestamps.
        mean = np.mean(np.reshape(case.tpot_s.values, (2, 7)), axis=1)
        assert case.decode_tokens_per_s.values == pytest.approx(tuple(case.batch_size / mean))
        assert case.prefill_tokens_per_s.values == pytest.approx(
            tuple(case.batch_size * 32 / value for value in case.ttft_s.values)
        )
        assert case.roofline is not None
        read_bytes = case.roofline.weight_bytes + case.roofline.cache_bytes
        limit = case.batch_size * case.roofline.bandwidth_bytes_per_s / read_bytes
        assert case.roofline.limit_tokens_per_s == pytest.approx(limit)
        # Above 1 where so small a model stays in the processor's caches.
        assert case.roofline.share == pytest.approx(case.decode_tokens_per_s.p50 / limit)
    assert report.settings[0].properties["KV_CACHE_PRECISION"] == "u8"
    assert report.settings[0].load.cached is not None
    assert report.steadiness.load_before is not None
    assert str(tmp_path) not in (output / "bench.json").read_text()


def test_weights_are_all_but_the_embedding_table(artifact: Artifacts) -> None:
    config = json.loads((artifact("none") / "config.json").read_text())
    with Client(artifact("none"), "openvino", name="none") as client:
        opened = client.open("CPU", {})
    bin_bytes = (artifact("none") / "openvino_model.bin").stat().st_size
    table = config["vocab_size"] * config["hidden_size"] * 2
    assert opened.weight_bytes == pytest.approx(bin_bytes - table, rel=0.01)
    heads = config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"] * 2
    assert opened.cache_elements_per_token == heads


def test_memory_is_the_workers_alone(artifact: Artifacts) -> None:
    ballast = bytearray(os.urandom(1) * 700_000_000)
    with Client(artifact("int8"), "openvino", name="int8") as client:
        client.open("CPU", {})
        client.run(Shape(1, 0, 8, 2), 0)
        used = client.memory()
    assert len(ballast) > used.peak_rss_bytes
    assert 50_000_000 < used.steady_rss_bytes <= used.peak_rss_bytes < 500_000_000


def test_the_worker_imports_no_torch_and_ends_with_us(artifact: Artifacts) -> None:
    import psutil

    program = (
        "import sys; from llmcompress.benchmarking.worker import open_model, run_model, runtime_of\n"
        "from pathlib import Path; from llmcompress.spec.benchmark import Shape\n"
        f"runtime = runtime_of(Path({str(artifact('int8'))!r}), 'openvino')\n"
        "open_model(runtime, 'CPU', {}); run_model(runtime, Shape(1, 0, 8, 2), 0)\n"
        "print(sorted({'torch', 'optimum', 'transformers', 'nncf', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with Client(artifact("int8"), "openvino", name="int8") as client:
        pid = client.pid
    assert not psutil.pid_exists(pid)


def test_a_worker_that_dies_is_an_error(artifact: Artifacts) -> None:
    import psutil

    with Client(artifact("int8"), "openvino", name="int8") as client:
        psutil.Process(client.pid).terminate()
        with pytest.raises(LlmcompressError, match="the worker ended with code -15"):
            client.memory()


def test_what_a_device_says_is_one_paragraph(artifact: Artifacts) -> None:
    with (
        Client(artifact("int8"), "openvino", name="int8") as client,
        pytest.raises(UsageError, match=r"CPU refuses it: .*NO_SUCH_PROPERTY") as caught,
    ):
        client.open("CPU", {"NO_SUCH_PROPERTY": "1"})
    assert "\n" not in caught.value.message


def test_genai_runs_the_same_shapes(artifact: Artifacts) -> None:
    pytest.importorskip("openvino_genai", reason="needs the extra genai")
    spec = BenchSpec(engine="genai", repetitions=2, prompt_tokens=(32,), new_tokens=(8,), batch_sizes=(1, 2))
    (report,) = llmcompress.benchmark([artifact("int8")], spec)
    for case in report.cases:
        assert case.tpot_s is not None
        assert len(case.tpot_s.values) == 2 * 7
        assert all(value > 0 for value in (*case.tpot_s.values, *case.ttft_s.values))


@pytest.mark.parametrize("runtime", ["openvino", "genai"])
def test_both_runtimes_run_both_backends(runtime: str, artifact: Artifacts) -> None:
    if runtime == "genai":
        pytest.importorskip("openvino_genai", reason="needs the extra genai")
    for backend in ("stateful", "paged"):
        spec = BenchSpec(
            engine=runtime, backend=backend, repetitions=1, prompt_tokens=(32,), new_tokens=(8,), batch_sizes=(1, 2)
        )
        (report,) = llmcompress.benchmark([artifact("int8")], spec)
        assert report.spec.effective_backend == backend
        for case in report.cases:
            assert case.tpot_s is not None
            assert len(case.tpot_s.values) == 7
            assert min(*case.tpot_s.values, *case.ttft_s.values) > 0
    assert (BenchSpec().effective_backend, BenchSpec(engine="genai").effective_backend) == ("stateful", "paged")


def test_the_loops_last_logits_are_those_of_the_whole_graph(artifact: Artifacts) -> None:
    """Of a batch behind a depth, fed token by token: what is timed is the model, on both forms of its graph."""
    from llmcompress.graph.device import PINNED, decoder_inputs, input_names

    shape = Shape(2, 40, 20, 5)
    ids = random_ids(artifact("int8"), (2, 65), 0)
    whole = ov.Core().compile_model(artifact("int8") / "openvino_model.xml", "CPU", PINNED)
    expected = whole(decoder_inputs(ids[:, :64], 0, input_names(whole)))["logits"][:, -1]
    for backend in ("stateful", "paged"):
        runtime = OpenvinoRuntime(artifact("int8"), backend)  # type: ignore[arg-type]
        runtime.open("CPU", PINNED)
        runtime.run(shape, 0)
        assert runtime._decoder is not None
        found = runtime._decoder.request.get_tensor("logits").data.reshape(2, -1)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_graph_without_a_paged_form_is_refused_in_words(tmp_path: Path) -> None:
    from test_hybrids import FAMILIES, _checkpoint

    _checkpoint(tmp_path / "checkpoint", *FAMILIES["granite"])
    llmcompress.compress(tmp_path / "checkpoint", "int8", tmp_path / "int8", tokenizer=False)
    spec = BenchSpec(backend="paged", repetitions=1, prompt_tokens=(8,), new_tokens=(2,))
    with pytest.raises(llmcompress.ModelError, match="the graph has no paged form: it takes conv_state_table"):
        llmcompress.benchmark([tmp_path / "int8"], spec)


@pytest.mark.slow
def test_the_old_name_of_the_runtime_works_and_says_so(artifact: Artifacts) -> None:
    done = cli("bench", artifact("int8"), "--engine", "openvino", "--backend", "paged", *SHORT[:4], "-r", 1)
    assert done.returncode == 0, done.stderr
    assert "warning: --engine is now --runtime" in done.stderr
    assert "paged graph by openvino" in done.stdout
    assert "--engine" not in cli("bench", "--help").stdout


def test_forgetting_pages_asks_for_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("the system cannot be asked")
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: asked.append(arguments[1:]))
    for name in ("openvino_model.bin", "openvino_model.xml", "config.json"):
        (tmp_path / name).write_text("x")
    forget_pages(tmp_path)
    assert asked == [(0, 0, os.POSIX_FADV_DONTNEED)] * 2


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        ({"prompt_tokens": [0]}, "prompt_tokens[0]", "got 0"),
        ({"new_tokens": []}, "new_tokens", "at least 1 item"),
        ({"properties": ["x"]}, "properties", "got 'x'; KEY=VALUE is accepted"),
        ({"engine": "torch"}, "engine", "accepted: openvino, genai"),
        ({"backend": "both"}, "backend", "accepted: stateful, paged"),
        ({"backend": "paged", "devices": ["GPU"]}, "backend", "paged has its cache laid out for the CPU"),
        ({"repetitions": 0}, "repetitions", "got 0"),
    ],
)
def test_specs_that_are_refused(values: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_options(BenchSpec, values)
    assert caught.value.where == where
    assert message in caught.value.message


def test_bad_input(artifact: Artifacts, ref_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(error: type[Exception], message: str, source: Path, **values: Any) -> None:
        with pytest.raises(error, match=message):
            llmcompress.benchmark([source], BenchSpec(**values))

    refused(llmcompress.ModelError, "this is a checkpoint", ref_model, prompt_tokens=(8,), new_tokens=(2,))
    refused(UsageError, "depth, prompt and new tokens are 640 together, the model's context is 512", artifact("int8"))
    refused(UsageError, "there is no device NPU9", artifact("int8"), devices=("NPU9",))
    find_spec = benchmark_module.importlib.util.find_spec
    monkeypatch.setattr(
        benchmark_module.importlib.util, "find_spec", lambda name: None if "genai" in name else find_spec(name)
    )
    refused(ResourceError, "needs openvino-genai, which is not installed", artifact("int8"), engine="genai")


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from llmcompress.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


SHORT = ("-p", 16, "-n", 4, "-r", 2)


@pytest.mark.slow
def test_the_command_and_its_formats(artifact: Artifacts, tmp_path: Path) -> None:
    outputs = [
        shutil.copytree(artifact(name), tmp_path / name, ignore=shutil.ignore_patterns("*eval.json", "bench.json"))
        for name in ("int8", "int4")
    ]
    table = cli("bench", *outputs, *SHORT)
    assert table.returncode == 0, table.stderr
    for text in ("decode", "16+4", "against int8", "GB/s allows", "cold", "The machine meanwhile: load", "Energy"):
        assert text in table.stdout
    lines = [json.loads(line) for line in cli("bench", outputs[0], *SHORT, "--format", "jsonl").stdout.splitlines()]
    assert BenchReport.model_validate(lines[0]).cases[0].prompt_tokens == 16
    documents = json.loads(cli("bench", outputs[0], *SHORT, "--json").stdout)
    assert len(documents) == 1
    (row,) = csv.DictReader(io.StringIO(cli("bench", outputs[0], *SHORT, "--format", "csv").stdout))
    assert (row["source"], row["prompt_tokens"], row["threads"]) == ("int8", "16", "")
    assert math.isfinite(float(row["decode_p50_tokens_per_s"]))
    markdown = cli("bench", outputs[0], *SHORT, "--format", "markdown").stdout
    assert markdown.lstrip().startswith("| model")

    compared = cli("compare", *outputs)
    assert compared.returncode == 0, compared.stderr
    assert "16+4" in compared.stdout
    assert "not measured" in compared.stdout
    rows = json.loads(cli("compare", *outputs, "--json").stdout)["rows"]
    assert rows[0]["benchmark"]["cases"][0]["decode_tokens_per_s"]["p50"] > 0
    # A report of other bytes is not shown.
    report = json.loads((outputs[0] / "bench.json").read_text())
    report["manifest_sha256"] = "0" * 64
    (outputs[0] / "bench.json").write_text(json.dumps(report))
    assert json.loads(cli("compare", outputs[0], "--json").stdout)["rows"][0]["benchmark"] is None


@pytest.mark.slow
def test_a_checkpoint_is_benchmarked_as_its_uncompressed_ir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMCOMPRESS_CACHE", str(tmp_path / "cache"))
    checkpoint = build_checkpoint(tmp_path / "tiny", "llama", num_hidden_layers=1)
    done = cli("bench", checkpoint, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["source"] == "tiny-none-ov"
    (made,) = (tmp_path / "cache" / "reference-ir").glob("*/*")
    before = (made / "openvino_model.bin").stat().st_mtime_ns
    assert cli("bench", checkpoint, *SHORT).returncode == 0
    assert (made / "openvino_model.bin").stat().st_mtime_ns == before


@pytest.mark.slow
def test_an_ir_on_the_hub_is_not_written_to(
    artifact: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmcompress.compression.compress import reference_ir

    files = {path.name: path.read_bytes() for path in artifact("int8").iterdir() if path.suffix != ".md"}
    files = {name: data for name, data in files.items() if name not in {"eval.json", "bench.json"}}
    with running(FakeHub(files=files)) as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        assert reference_ir("acme/tiny", revision="main") == "acme/tiny"
        spec = BenchSpec(repetitions=1, prompt_tokens=(8,), new_tokens=(2,))
        hub, local = llmcompress.benchmark(["acme/tiny", artifact("int8")], spec, revision="main")
    assert (hub.source, local.source) == ("acme/tiny", "int8")
    assert hub.manifest_sha256 == local.manifest_sha256
    assert not list((tmp_path / "cache").rglob("bench.json"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-p", "x"], 2, "--prompt-tokens: got 'x'; whole numbers with commas between are accepted"),
        (["--format", "xml"], 2, "--format: got 'xml'; accepted: table, json, jsonl, csv, markdown"),
        (["--json", "--format", "csv"], 2, "--json and --format csv contradict each other"),
        (["-d", "NPU9"], 2, "there is no device NPU9; this machine has CPU"),
        (["-p", 600], 2, "the model's context is 512"),
        (["--engine", "torch"], 2, "--engine: got 'torch'; accepted: openvino, genai"),
        (["--engine", "genai", "--runtime", "genai"], 2, "--runtime: --engine is its old name; got both"),
        (["--backend", "sdpa"], 2, "backend: got 'sdpa'; accepted: stateful, paged"),
    ],
)
def test_what_the_command_refuses(arguments: list[object], code: int, message: str, artifact: Artifacts) -> None:
    done = cli("bench", artifact("int8"), *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
