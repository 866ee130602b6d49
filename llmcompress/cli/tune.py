"""`llmcompress tune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcompress.cli.options import (
    AllowNonfinite,
    Dataset,
    Device,
    Json,
    Offline,
    Overwrite,
    ReferenceRevision,
    SeqLen,
    Split,
    Subset,
    TextField,
    TrustRemoteCode,
    Verbose,
)

if TYPE_CHECKING:
    from llmcompress.recipe import RuntimeProfile
    from llmcompress.report import TuneReport

_WITH_MEASURED = {
    "directory",
    "measured",
    "apply",
    "output",
    "profile_output",
    "html",
    "overwrite",
    "as_json",
    "verbose",
}


def tune(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    device: Device = "CPU",
    workloads: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            metavar="NAME:[BATCHx]PROMPT/NEW",
            show_default=False,
            help="Tokens; may be repeated. Default: chat:512/128",
        ),
    ] = None,
    scope: Annotated[
        str,
        typer.Option("--scope", metavar="all|model", help="Try all settings, or only those that a model can hold."),
    ] = "all",
    objective: Annotated[
        str, typer.Option("--objective", metavar="decode|prefill|memory", help="What is to be better.")
    ] = "decode",
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", show_default=False, help="Mean KL, nats. Default: 0.001 over the default's"),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Such as 90s, 10m, 1h30m.")] = "10m",
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", help="Runs of each workload and setting; up to 3 times that.")
    ] = 5,
    properties: Annotated[
        list[str] | None,
        typer.Option(
            "--property",
            metavar="KEY=VALUE,...",
            show_default=False,
            help="Try these values, and no others; may be repeated.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="SOURCE", show_default=False, help="The original. Default: DIR itself"),
    ] = None,
    reference_revision: ReferenceRevision = None,
    dataset: Dataset = "wikitext2",
    subset: Subset = None,
    split: Split = None,
    text_field: TextField = None,
    seq_len: SeqLen = 512,
    num_windows: Annotated[
        int, typer.Option("--num-windows", help="For the search; as many more are held out for the verification.")
    ] = 8,
    chunk: Annotated[
        int | None, typer.Option("--chunk", show_default=False, help="Tokens per scored call. Default: 64")
    ] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="Measure nothing: take what DIR's tune.json holds.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write a new artifact whose IR holds what a model can hold.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NEWDIR", show_default=False, help="Where, with --apply.")
    ] = None,
    profile_output: Annotated[
        Path | None,
        typer.Option(
            "--profile-output",
            metavar="FILE",
            show_default=False,
            help="Where what a model cannot hold is written, for --profile of eval and bench.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", show_default=False, help="Also write a page with a plot."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_nonfinite: AllowNonfinite = False,
    offline: Offline = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find the runtime's settings that make an artifact faster on this device, and what each of them costs.

    DIR is a directory that llmcompress wrote. It gets the report as its tune.json; --apply writes another one.

    Each setting runs in turn with the default and is scored under that very setting.
    The best is verified in fresh processes and on held-out text; a gain inside the noise changes nothing.

    The KL divergence is from exact execution of DIR itself, or of the original with --reference.
    Ends with exit code 7 when not even the defaults keep --max-kl and the artifact's gate.

    [bold]Examples[/bold]
    llmcompress tune model-int4-ov
    llmcompress tune model-int4-ov --workload chat:512/128 --workload rag:4096/256 --budget 30m
    llmcompress tune model-int4-ov --property DYNAMIC_QUANTIZATION_GROUP_SIZE=0,64,128 --apply -o model-int4-tuned-ov
    """
    from llmcompress.cli.bars import run_watched
    from llmcompress.cli.console import print_json
    from llmcompress.cli.tune_view import print_tuning
    from llmcompress.errors import GateError, UsageError
    from llmcompress.recipe import tune_spec
    from llmcompress.report import TuneReport
    from llmcompress.summary.page import check_page_path
    from llmcompress.tuning import check_profile_path, read_tuning, write_tuning_page

    if apply != (output is not None):
        raise UsageError("--apply and --output go together", hint="give both, or none of them")
    if overwrite and output is None and profile_output is None:
        raise UsageError("--overwrite has no effect without --apply or --profile-output", hint="leave it out")
    if trust_remote_code and reference is None:
        raise UsageError("--trust-remote-code has no effect without --reference", hint="leave it out")
    if html is not None:
        check_page_path(html)
    if profile_output is not None:
        check_profile_path(profile_output, overwrite=overwrite)
    directory = directory.absolute()
    if measured:
        _refuse_ignored(context)
        report = read_tuning(directory)
    else:
        if output is not None:
            _check_output(output, directory, overwrite=overwrite)
        spec = tune_spec(
            # The worker may not share what the shell calls the working directory.
            dataset=str(Path(dataset).absolute()) if Path(dataset).is_file() else dataset,
            subset=subset,
            split=split,
            text_field=text_field,
            device=device,
            workloads=workloads or (),
            scope=scope,
            objective=objective,
            max_kl=max_kl,
            budget=budget,
            repetitions=repetitions,
            properties=properties or (),
            seq_len=seq_len,
            num_windows=num_windows,
            chunk=chunk,
        )
        options: dict[str, Any] = {
            "directory": directory,
            "spec": spec,
            "reference": reference,
            "reference_revision": reference_revision,
            "trust_remote_code": trust_remote_code,
            "allow_nonfinite": allow_nonfinite,
            "offline": offline,
        }
        made = run_watched("llmcompress.tuning:tune", options, verbose=verbose)
        assert isinstance(made, TuneReport)
        report = made
    if as_json:
        print_json(report)
    else:
        print_tuning(report)
    if html is not None:
        write_tuning_page(report, html)
    if not report.permitted:
        raise GateError(
            report.reason, where=directory.name, hint="set another --max-kl, or take a recipe that loses less"
        )
    _put(report, directory, output, profile_output, overwrite=overwrite, verbose=verbose)


def _put(
    report: TuneReport,
    directory: Path,
    output: Path | None,
    profile_output: Path | None,
    *,
    overwrite: bool,
    verbose: bool,
) -> None:
    """Write the tuned artifact and the machine's profile, as far as they were asked for and there is something."""
    from llmcompress.cli.bars import run_watched
    from llmcompress.cli.console import stderr
    from llmcompress.errors import UsageError
    from llmcompress.tuning import runtime_profile, write_profile

    profile: RuntimeProfile | None = runtime_profile(report)
    if profile_output is not None and profile is None:
        raise UsageError(
            "nothing to write: what was chosen needs no runtime profile" if report.chosen else report.reason,
            where="--profile-output",
        )
    if output is not None:
        options = {"directory": directory, "output_dir": output.absolute(), "overwrite": overwrite}
        run_watched("llmcompress.tuning:apply_tuning", options, verbose=verbose)
        stderr().print(f"wrote {output}", markup=False, soft_wrap=True)
    if profile is not None and profile_output is not None:
        write_profile(profile, profile_output.absolute(), overwrite=overwrite)
        stderr().print(f"wrote {profile_output}", markup=False, soft_wrap=True)


def _check_output(output: Path, directory: Path, *, overwrite: bool) -> None:
    """Before the minutes of the search, what the write would refuse at their end."""
    from llmcompress.artifact.placement import refuse_existing, refuse_overlap, resolve_output

    target = resolve_output(output)
    refuse_overlap(target, [directory])
    refuse_existing(target, overwrite=overwrite)


def _refuse_ignored(context: typer.Context) -> None:
    from llmcompress.errors import UsageError

    given = [
        "--" + {"workloads": "workload", "properties": "property"}.get(name, name).replace("_", "-")
        for name in context.params
        if name not in _WITH_MEASURED and context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]
    ]
    if given:
        raise UsageError(f"{', '.join(given)} would have no effect on --measured", hint="leave them out")
