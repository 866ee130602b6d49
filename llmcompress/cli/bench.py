"""`llmcompress bench`"""

from __future__ import annotations

from typing import Annotated

import typer

from llmcompress.cli.options import Json, Offline, Precision, Profile, Revision, TrustRemoteCode, Verbose

FORMATS = ("table", "json", "jsonl", "csv", "markdown")


def bench(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", show_default=False)],
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", "-p", metavar="N,...", help="Tokens of the prompt.")
    ] = "512",
    new_tokens: Annotated[
        str, typer.Option("--new-tokens", "-n", metavar="N,...", help="Tokens to generate; end-of-text is ignored.")
    ] = "128",
    batch_size: Annotated[str, typer.Option("--batch-size", "-b", metavar="N,...", help="Sequences at once.")] = "1",
    depth: Annotated[
        str, typer.Option("--depth", metavar="N,...", help="Tokens that are in the context already.")
    ] = "0",
    threads: Annotated[
        str | None, typer.Option("--threads", metavar="N,...", show_default=False, help="Default: the device's choice")
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", metavar="NAME,...", help="OpenVINO devices.")] = "CPU",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Runs of each shape.")] = 5,
    warmup_runs: Annotated[int, typer.Option("--warmup-runs", help="Runs before them that are not counted.")] = 1,
    engine: Annotated[
        str, typer.Option("--engine", metavar="openvino|genai", help="The runtime directly, or GenAI's pipeline.")
    ] = "openvino",
    precision: Precision = "as_used",
    profile: Profile = None,
    properties: Annotated[
        list[str] | None,
        typer.Option("--property", metavar="KEY=VALUE", show_default=False, help="Device property; may be repeated."),
    ] = None,
    output_format: Annotated[
        str, typer.Option("--format", metavar="table|json|jsonl|csv|markdown", help="How to print the reports.")
    ] = "table",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure how fast OpenVINO models generate and how much memory they take.

    SOURCE is a Hub id, a checkpoint directory, or an OpenVINO IR directory.
    A checkpoint is converted once, without compression.
    Runs of several are interleaved, and each is compared with the first.

    Lists are combined: -p 128,1024 -b 1,4 measures four shapes.
    An artifact of ours gets the report as its bench.json.

    [bold]Examples[/bold]
    llmcompress bench model-int4-ov
    llmcompress bench model-none-ov model-int8-ov model-int4-ov -p 512 -n 128 -r 10
    llmcompress bench model-int4-ov --depth 0,4096 --property DYNAMIC_QUANTIZATION_GROUP_SIZE=128
    """
    from pathlib import Path

    from llmcompress.cli.bars import watching
    from llmcompress.cli.bench_view import print_reports
    from llmcompress.errors import UsageError
    from llmcompress.progress import Progress
    from llmcompress.recipe import bench_spec, load_profile
    from llmcompress.runtime import check_device
    from llmcompress.supervisor import run_supervised

    if output_format not in FORMATS:
        raise UsageError(f"got {output_format!r}; accepted: {', '.join(FORMATS)}", where="--format")
    if as_json and output_format not in {"table", "json"}:
        raise UsageError(f"--json and --format {output_format} contradict each other", hint="leave one of them out")
    spec = bench_spec(
        engine=engine,
        devices=[name for name in device.split(",") if name],
        threads=None if threads is None else _numbers("--threads", threads),
        batch_sizes=_numbers("--batch-size", batch_size),
        depths=_numbers("--depth", depth),
        prompt_tokens=_numbers("--prompt-tokens", prompt_tokens),
        new_tokens=_numbers("--new-tokens", new_tokens),
        precision=precision,
        profile=None if profile is None else load_profile(profile),
        properties=properties or (),
        warmup_runs=warmup_runs,
        repetitions=repetitions,
    )
    for name in spec.devices:
        check_device(name)
    places = [str(Path(source).absolute()) if Path(source).is_dir() else source for source in sources]
    access = {"trust_remote_code": trust_remote_code, "offline": offline}
    with watching(verbose=verbose) as watch:
        watch.report(Progress("read the configuration", 0, 0))
        # A checkpoint is measured as its uncompressed IR; made in processes of their own, which end before the runs.
        found = [
            run_supervised(
                "llmcompress.reference_ir:reference_ir",
                # A revision is for Hub sources only.
                {"source": place, "revision": None if Path(place).exists() else revision, **access},
                progress=watch.report,
                logs=watch.log,
            )
            for place in places
        ]
        options = {"sources": found, "spec": spec, "revision": revision, "offline": offline}
        reports = run_supervised("llmcompress.benchmarking:benchmark", options, progress=watch.report, logs=watch.log)
    assert isinstance(reports, tuple)
    print_reports(reports, "json" if as_json else output_format)


def _numbers(name: str, text: str) -> list[int]:
    from llmcompress.errors import UsageError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"got {text!r}; whole numbers with commas between are accepted", where=name) from None
