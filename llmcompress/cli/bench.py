"""`llmcompress bench`"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from llmcompress.cli.console import (
    is_quiet,
    plain,
    print_blocks,
    print_json,
    print_markdown,
    print_note,
    print_text,
    table,
    tell,
    write_line,
)
from llmcompress.cli.log_to import LogTo, chosen_tracker, log_reports
from llmcompress.cli.next_steps import after_bench
from llmcompress.cli.options import (
    AllowLinks,
    Json,
    MaxContext,
    MergeAdapter,
    ModelFile,
    Offline,
    Revision,
    TrustRemoteCode,
    Verbose,
    check_choice,
    chosen_format,
    place_of,
    places_of_file,
)
from llmcompress.cli.progress import run_watched, watching
from llmcompress.cli.spec_options import Flag, with_fields
from llmcompress.errors import UsageError
from llmcompress.report.benchmark import rate_text, shape_text
from llmcompress.report.file_names import LANGUAGE_MODEL, MODEL, model_files
from llmcompress.report.text import duration_text, property_text, size_text
from llmcompress.spec import BenchSpec
from llmcompress.spec.benchmark import RuntimeName
from llmcompress.spec.validation import from_options

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.report.benchmark import BenchCase, BenchReport

FORMATS = ("table", "json", "jsonl", "csv", "markdown")
_PANELS = {
    "Shapes": "prompt_tokens new_tokens batch_sizes depths picture_sizes",
    "Runtime": "engine backend devices threads precision profile properties",
    "Measurement": "repetitions warmup_runs confidence",
    "Output": "output_format log_to as_json",
}


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


@with_fields(
    _PANELS,
    prompt_tokens=Flag("-p"),
    new_tokens=Flag("-n"),
    batch_sizes=Flag("-b"),
    devices=Flag("-d", "NAME,...", "CPU", _names),
    properties=Flag(metavar="KEY=VALUE"),
    repetitions=Flag("-r"),
)
def bench(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...")],
    spec: BenchSpec,
    output_format: Annotated[
        str, typer.Option("--format", metavar="table|json|jsonl|csv|markdown", help="How to print the reports.")
    ] = "table",
    log_to: LogTo = None,
    old_runtime: Annotated[str | None, typer.Option("--engine", hidden=True)] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    allow_links: AllowLinks = False,
    merge_adapter: MergeAdapter = False,
    max_context: MaxContext = None,
    file: ModelFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """SOURCE is a Hub id, a checkpoint directory, a GGUF or ONNX file, or an OpenVINO IR directory.
    A checkpoint is converted once, without compression; what is quantized already keeps its codes.
    Runs of several are interleaved, and each is compared with the first.

    Lists are combined: -p 128,1024 -b 1,4 measures four shapes.
    An artifact of ours gets the report into its bench.json; runs of other shapes or runtimes stay there.

    [bold]Examples[/bold]
    llmcompress bench model-int4-ov
    llmcompress bench model-none-ov model-int8-ov model-int4-ov -p 512 -n 64
    llmcompress bench model-int4-ov --runtime genai --backend paged
    llmcompress bench vision-model-int4-ov --picture-sizes 448 -p 64
    llmcompress bench model-int4-ov --property KV_CACHE_PRECISION=f16
    """
    from llmcompress.benchmarking.benchmark import benchmark
    from llmcompress.compression.compress import reference_ir
    from llmcompress.graph.device import check_device
    from llmcompress.system.process import run_supervised

    form, tracker = chosen_format(output_format, FORMATS, as_json=as_json), chosen_tracker(log_to)
    if old_runtime is not None:
        spec = _by_its_old_name(spec, old_runtime)
    for name in spec.devices:
        check_device(name)
    places = [place_of(source) for source in sources]
    merged = _merged(places) if merge_adapter else set()
    with_file = places_of_file(file, places)
    access = {"trust_remote_code": trust_remote_code, "offline": offline, "allow_links": allow_links}
    # A checkpoint is measured as its uncompressed IR; made in processes of their own, which end before the runs.
    found = [
        run_watched(
            reference_ir,
            # A revision is for Hub sources only.
            {
                "source": place,
                "revision": None if Path(place).exists() else revision,
                "merge_adapter": place in merged,
                "file": file if place in with_file else None,
                "vision": True,
                **access,
            },
            verbose=verbose,
        )
        for place in places
    ]
    with watching(verbose=verbose) as watch:
        options = {
            "sources": found,
            "spec": spec,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "offline": offline,
            "allow_links": allow_links,
            "max_context": max_context,
        }
        reports = run_supervised(benchmark, options, progress=watch.report, logs=watch.log)
    print_reports(reports, form)
    tell = form == "table" and not is_quiet()
    not_logged = log_reports(reports, sources, tracker, tell=tell)
    if tell:
        after_bench(reports, sources)
    if not_logged is not None:
        raise not_logged


def _merged(places: Sequence[str]) -> set[str]:
    """The sources that an adapter is merged in: an OpenVINO directory is measured as it is."""
    graphs = [model_files(part)[0] for part in (MODEL, LANGUAGE_MODEL)]
    found = {place for place in places if not any((Path(place) / name).is_file() for name in graphs)}
    if not found:
        raise UsageError("`merge_adapter` has no effect on OpenVINO directories", hint="leave it out")
    return found


def _by_its_old_name(spec: BenchSpec, runtime: str) -> BenchSpec:
    tell("warning: --engine is now --runtime, and will go")
    if spec.engine != BenchSpec.model_fields["engine"].default:
        raise UsageError("--engine is its old name; got both", where="--runtime", hint="leave --engine out")
    check_choice("--engine", runtime, get_args(RuntimeName))
    return from_options(
        BenchSpec, {**{name: getattr(spec, name) for name in BenchSpec.model_fields}, "engine": runtime}
    )


_BUSY_SHARE = 0.1
"""Of the threads: from such a load on, and from one running process, figures are not those of a quiet machine."""
_HARDLY = 1.1
"""Below this many times as fast nobody changes a recipe."""


def print_reports(reports: Sequence[BenchReport], form: str) -> None:
    """Print reports as ``table``, ``markdown``, ``json`` (a list), ``jsonl`` (one a line) or ``csv`` (a row a case)."""
    if form == "json":
        print_json([plain(report) for report in reports])
    elif form == "jsonl":
        for report in reports:
            sys.stdout.write(json.dumps(plain(report)) + "\n")
    elif form == "csv":
        sys.stdout.write(_csv(reports))
    elif form == "table" and is_quiet():
        for report in reports:
            for case in report.cases:
                decode = rate_text(case.decode_tokens_per_s or case.prefill_tokens_per_s)
                write_line(f"{report.source}, {shape_text(case)}: {decode} tokens/s")
    else:
        _print_tables(reports, markdown=form == "markdown")


def _print_tables(reports: Sequence[BenchReport], *, markdown: bool) -> None:
    if busy := _busy(reports[0]):
        print_note(busy, "", style="yellow")
        write_line("")
    tables = [
        _cases_table(reports, markdown),
        *([_ratio_table(reports, markdown)] if any(report.ratios for report in reports) else []),
    ]
    if markdown:
        print_markdown(*tables)
    else:
        print_blocks(*tables)
    write_line("")
    for report in reports:
        form = f"{report.spec.effective_backend} graph by {report.spec.engine}"
        for setting in report.settings:
            load = setting.load
            cached = duration_text(load.cached.read_s + load.cached.compile_s) if load.cached else "not measured"
            print_text(
                f"{report.source} on {setting.device}: loads in "
                f"{duration_text(load.cold.read_s + load.cold.compile_s)} cold, "
                f"{duration_text(load.warm.read_s + load.warm.compile_s)} warm, {cached} from the model cache; "
                f"steady memory {size_text(report.steady_rss_bytes)}; {_properties(setting.properties)}; {form}"
            )
        if any(setting.is_recurrent for setting in report.settings):
            print_text(
                f"{report.source}: the prompt went through in one call, as Optimum's generation feeds it; its "
                "recurrent layers are exact token by token alone, and eval feeds them so"
            )
        for case in report.cases:
            if case.roofline is not None:
                print_text(f"{report.source}, {shape_text(case)}: {_bound(case, report, reports)}")
    steady = reports[0].steadiness
    load_words = "unknown" if steady.load_before is None else f"{steady.load_before:.1f} to {steady.load_after:.1f}"
    seen = [f"load {load_words}"]
    if steady.frequency_mhz:
        seen.append(f"{steady.frequency_mhz[0]:.0f} to {steady.frequency_mhz[1]:.0f} MHz")
    if steady.temperature_c is not None:
        seen.append(f"at most {steady.temperature_c:.0f} °C")
    print_text(f"The machine meanwhile: {', '.join(seen)}")
    for report in reports:
        for case in report.cases:
            if case.energy_j_per_token is not None:
                energy = f"{case.energy_j_per_token:.3g} J a new token"
                print_text(f"{report.source}, {shape_text(case)}: {energy}")
    if all(case.energy_j_per_token is None for report in reports for case in report.cases):
        print_text("Energy: not measured, the machine exposes no counter")


def _cases_table(reports: Sequence[BenchReport], markdown: bool) -> Table:
    seen = any(case.picture_size for report in reports for case in report.cases)
    first = ["size", "device", "shape", *(["image encoding"] if seen else [])]
    figures = ["prefill tokens/s", "ttft", "decode tokens/s", "tpot p50 / p99"]
    cases = table(["model"], [*first, *figures, "of the limit", "peak memory"], markdown=markdown)
    for report in reports:
        for case in report.cases:
            tpot = case.tpot_s
            limit = case.roofline
            cases.add_row(
                report.source,
                size_text(report.size_bytes),
                case.device + (f" ({case.threads} threads)" if case.threads else ""),
                shape_text(case),
                *([f"{case.image_encoding_s.p50 * 1e3:.4g} ms" if case.image_encoding_s else ""] if seen else []),
                rate_text(case.prefill_tokens_per_s),
                f"{case.ttft_s.p50 * 1e3:.4g} ms",
                rate_text(case.decode_tokens_per_s),
                f"{tpot.p50 * 1e3:.3g} / {tpot.p99 * 1e3:.3g} ms" if tpot else "",
                f"{limit.share:.0%}" if limit else "",
                size_text(report.peak_rss_bytes),
            )
    return cases


def _busy(report: BenchReport) -> str:
    """A warning where other work ran when the benchmark began; its own is not in that load."""
    load, threads = report.steadiness.load_before, report.environment.num_threads
    if load is None or load < max(1.0, _BUSY_SHARE * threads):
        return ""
    return (
        f"warning: the machine was busy before the runs: a load of {load:.1f}, measured with {threads} threads. "
        "Figures may be lower than on a quiet machine; run it again when other work has ended."
    )


def _bound(case: BenchCase, report: BenchReport, reports: Sequence[BenchReport]) -> str:
    limit = case.roofline
    assert limit is not None
    text = (
        f"{limit.share:.0%} of what reading {size_text(limit.weight_bytes + limit.cache_bytes)} a token at "
        f"{limit.bandwidth_bytes_per_s / 1e9:.3g} GB/s allows; "
    )
    if limit.gain_of_half_the_bits < _HARDLY:
        text += "the time goes elsewhere"
        shown = not _busy(report) and not _is_faster_with_fewer_bits(case, report, reports)
        return text + (", fewer bits can hardly help here" if shown else "")
    return text + f"half the bits could make it {limit.gain_of_half_the_bits:.2g} times as fast at most"


def _is_faster_with_fewer_bits(case: BenchCase, report: BenchReport, reports: Sequence[BenchReport]) -> bool:
    """Whether a smaller model was measured next to this one and decodes faster."""
    mine = case.decode_tokens_per_s
    others = [each.cases[report.cases.index(case)] for each in reports if each.size_bytes < report.size_bytes]
    rates = [other.decode_tokens_per_s for other in others]
    return mine is not None and any(rate is not None and rate.p50 > _HARDLY * mine.p50 for rate in rates)


def _ratio_table(reports: Sequence[BenchReport], markdown: bool) -> Table:
    ratios = table([f"against {reports[0].source}"], ["shape", "figure", "ratio", ""], markdown=markdown)
    for report in reports:
        for ratio in report.ratios:
            found = ratio.ratio
            interval = "" if found.low is None else f" [{found.low:.3g}, {found.high:.3g}]"
            ratios.add_row(
                report.source,
                shape_text(report.cases[ratio.case]),
                ratio.figure,
                f"{found.value:.3g}{interval}",
                ratio.judgement,
            )
    return ratios


def _properties(properties: dict[str, str]) -> str:
    names = (
        "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "NUM_STREAMS",
        "INFERENCE_NUM_THREADS",
    )  # fmt: skip
    found = [property_text(name, properties[name]) for name in names if name in properties]
    return ", ".join(found) or "the engine does not show its properties"


def _csv(reports: Sequence[BenchReport]) -> str:
    stream = io.StringIO()
    records = [_csv_record(report, case) for report in reports for case in report.cases]
    writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue()


def _csv_record(report: BenchReport, case: BenchCase) -> dict[str, object]:
    tpot, decode, limit = case.tpot_s, case.decode_tokens_per_s, case.roofline
    shape = ("device", "threads", "batch_size", "depth", "prompt_tokens", "new_tokens")
    return {
        "source": report.source,
        "size_bytes": report.size_bytes,
        **{name: getattr(case, name) for name in shape},
        "ttft_p50_s": case.ttft_s.p50,
        "prefill_p50_tokens_per_s": case.prefill_tokens_per_s.p50,
        **{f"tpot_{name}_s": getattr(tpot, name, None) for name in ("mean", "p50", "p90", "p99")},
        **{f"decode_{name}_tokens_per_s": getattr(decode, name, None) for name in ("p50", "std")},
        "roofline_share": limit and limit.share,
        "energy_j_per_token": case.energy_j_per_token,
        "peak_rss_bytes": report.peak_rss_bytes,
        "steady_rss_bytes": report.steady_rss_bytes,
        "picture_size": case.picture_size,
        "input_tokens": case.input_tokens,
        "image_encoding_p50_s": case.image_encoding_s and case.image_encoding_s.p50,
    }
