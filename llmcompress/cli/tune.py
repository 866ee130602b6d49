"""`llmcompress tune`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcompress.cli.console import (
    facts_table,
    is_quiet,
    print_blocks,
    print_note,
    print_report,
    print_text,
    table,
    tell,
    write_line,
)
from llmcompress.cli.next_steps import after_tune
from llmcompress.cli.options import (
    AllowLinks,
    AllowNonfinite,
    Json,
    MaxContext,
    MergeAdapter,
    Offline,
    Overwrite,
    ReferenceRevision,
    TrustRemoteCode,
    Verbose,
    refuse_ignored,
)
from llmcompress.cli.progress import run_watched
from llmcompress.cli.spec_options import DATASET, DEVICE, Flag, with_fields
from llmcompress.errors import GateError, UsageError
from llmcompress.report.benchmark import rate_text
from llmcompress.report.estimate import interval_text
from llmcompress.report.text import settings_text, size_text
from llmcompress.spec import TuneSpec
from llmcompress.spec.tuning import parse_duration_s, parse_workload

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.report.tuning import TuneReport, TuningVerification
    from llmcompress.spec import RuntimeProfile, Workload

_WITH_MEASURED = {"directory", "measured", "apply", "output_dir", "profile_output", "html", "overwrite"}
_PANELS = {
    "Search": "device workloads scope objective max_kl budget_s properties repetitions warmup_runs confidence",
    "Text and reference": "reference reference_revision dataset subset split text_field chat_template seq_len "
    "num_windows chunk",
    "Outcome": "measured apply output_dir profile_output html overwrite",
}


def _workloads(texts: list[str]) -> list[Workload]:
    return [parse_workload(text) for text in texts]


@with_fields(
    _PANELS,
    dataset=DATASET,
    device=DEVICE,
    workloads=Flag(metavar="NAME:[BATCHx]PROMPT/NEW", read=_workloads),
    budget_s=Flag(metavar="TIME", default="10m", read=parse_duration_s),
    properties=Flag(metavar="KEY=VALUE,..."),
    repetitions=Flag("-r"),
)
def tune(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    spec: TuneSpec,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="SOURCE", help="The original. Default: DIR itself")
    ] = None,
    reference_revision: ReferenceRevision = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="Measure nothing: take what DIR's tune.json holds.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write a new artifact whose IR holds what a model can hold.")
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="NEWDIR", help="Where, with --apply.")
    ] = None,
    profile_output: Annotated[
        Path | None,
        typer.Option(
            "--profile-output",
            metavar="FILE",
            help="Where what a model cannot hold is written, for --profile of eval and bench.",
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with a plot.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_nonfinite: AllowNonfinite = False,
    allow_links: AllowLinks = False,
    merge_adapter: MergeAdapter = False,
    max_context: MaxContext = None,
    offline: Offline = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """DIR is a directory that llmcompress wrote. It gets the report as its tune.json; --apply writes another one.

    Each setting runs in turn with the default and is scored under that very setting.
    The best is verified in fresh processes and on held-out text; a gain inside the noise changes nothing.

    The KL divergence is from exact execution of DIR itself, or of the original with --reference.
    Ends with exit code 7 when not even the defaults keep --max-kl and the artifact's gate.

    [bold]Examples[/bold]
    llmcompress tune model-int4-ov
    llmcompress tune model-int4-ov --workload rag:4096/256 --budget 30m
    llmcompress tune model-int4-ov --property KV_CACHE_PRECISION=u8,f16
    llmcompress tune model-int4-ov --measured --apply -o model-int4-tuned-ov
    """
    from llmcompress.artifact.placement import checked_output
    from llmcompress.summary.page import check_page_path
    from llmcompress.tuning import check_profile_path, read_tuning, write_tuning_page
    from llmcompress.tuning.tune import tune as tune_directory

    if apply != (output_dir is not None):
        raise UsageError("--apply and --output go together", hint="give both, or none of them")
    if overwrite and output_dir is None and profile_output is None:
        raise UsageError("--overwrite has no effect without --apply or --profile-output", hint="leave it out")
    if trust_remote_code and reference is None:
        raise UsageError("--trust-remote-code has no effect without --reference", hint="leave it out")
    if merge_adapter and reference is None:
        raise UsageError("--merge-adapter has no effect without --reference", hint="leave it out")
    if html is not None:
        check_page_path(html)
    if profile_output is not None:
        check_profile_path(profile_output, overwrite=overwrite)
    given, directory = directory, directory.absolute()
    if measured:
        refuse_ignored(context, "--measured", _WITH_MEASURED, "leave them out")
        report = read_tuning(directory)
    else:
        if output_dir is not None:
            # Before the minutes of the search.
            checked_output(output_dir, [directory], overwrite=overwrite)
        options: dict[str, Any] = {
            "directory": directory,
            "spec": spec,
            "reference": reference,
            "reference_revision": reference_revision,
            "trust_remote_code": trust_remote_code,
            "allow_nonfinite": allow_nonfinite,
            "allow_links": allow_links,
            "merge_adapter": merge_adapter,
            "max_context": max_context,
            "offline": offline,
        }
        report = run_watched(tune_directory, options, verbose=verbose)
    print_report(report, print_tuning, as_json=as_json, brief=_choice_text)
    if not (as_json or measured or is_quiet()):
        after_tune(report, given, applied=apply)
    if html is not None:
        write_tuning_page(report, html)
    if not report.permitted:
        raise GateError(
            report.reason, where=directory.name, hint="set another --max-kl, or take a recipe that loses less"
        )
    _put(report, directory, output_dir, profile_output, overwrite=overwrite, verbose=verbose)


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
    from llmcompress.tuning import apply_tuning, runtime_profile, write_profile

    if output is not None and not report.chosen:
        tell(f"nothing to apply: {report.reason}; {output} was not written")
        output = None
    profile: RuntimeProfile | None = runtime_profile(report)
    if profile_output is not None and profile is None:
        reason = "what was chosen needs no runtime profile" if report.chosen else report.reason
        tell(f"no profile to write: {reason}; {profile_output} was not written")
    if output is not None:
        options = {"directory": directory, "output_dir": output.absolute(), "overwrite": overwrite}
        run_watched(apply_tuning, options, verbose=verbose)
        tell(f"wrote {output}")
    if profile is not None and profile_output is not None:
        write_profile(profile, profile_output.absolute(), overwrite=overwrite)
        tell(f"wrote {profile_output}")


_OBJECTIVES = {
    "decode": "decode tokens/s against the default",
    "prefill": "prefill tokens/s against the default",
    "memory": "the default's memory against it",
}
_STYLES = {"better": "green", "worse": "red"}


def print_tuning(report: TuneReport) -> None:
    """Print what was measured, the verification, and the choice with its reason."""
    from llmcompress.cli.evaluation_report import gate_table
    from llmcompress.tuning.space import text_of

    left_out = {
        "Not taken": {text_of(each.properties): each.reason for each in report.trials if each.reason},
        "Not tried": report.skipped,
    }
    print_blocks(
        facts_table(_facts(report)),
        _trials_table(report),
        *(facts_table({title: _by_reason(reasons)}) for title, reasons in left_out.items() if reasons),
        facts_table(_verification(report.verification)) if report.verification else None,
        gate_table(report.gate) if report.gate else None,
    )
    write_line("")
    print_note("Choice: ", _choice_text(report))
    for words, properties in (("a model can hold", report.in_model), ("for a runtime profile", report.in_profile)):
        if report.chosen and properties:
            print_text(f"  {words}: {text_of(properties)}")


def _choice_text(report: TuneReport) -> str:
    from llmcompress.tuning.space import text_of

    return f"{text_of(report.chosen) if report.chosen else 'the defaults'}: {report.reason}"


def _facts(report: TuneReport) -> dict[str, str]:
    against = "this very model" if report.reference.itself else report.reference.provenance.id or "the original"
    return {
        "Device": f"{report.spec.device}: {report.device_name}",
        "Workloads": ", ".join(map(str, report.spec.workloads)),
        "Objective": f"{_OBJECTIVES[report.spec.objective]}; KL divergence at most {report.max_kl:.3g}",
        "KL divergence": f"from {against} in exact execution, {report.text.num_scored_tokens:,} tokens of "
        f"{report.text.dataset}, {report.spec.effective_chunk} tokens a call",
        **({"  instead of": report.text.fallback} if report.text.fallback else {}),
    }


def _trials_table(report: TuneReport) -> Table:
    from rich.text import Text

    from llmcompress.tuning.page import gain_text, remark_text

    trials = table(["setting"], ["prefill tokens/s", "decode tokens/s", "gain", "memory", "KL, nats", "top-1"])
    trials.add_column("remark")
    for trial in report.trials:
        lost = trial.divergence
        trials.add_row(
            Text(settings_text(trial.properties, "\n"), style="bold" if trial.properties == report.chosen else ""),
            "\n".join(rate_text(speed.prefill_tokens_per_s) for speed in trial.speeds),
            "\n".join(rate_text(speed.decode_tokens_per_s) for speed in trial.speeds),
            Text(gain_text(trial), style=_STYLES.get(trial.judgement or "", "")),
            "" if trial.steady_rss_bytes is None else size_text(trial.steady_rss_bytes),
            "not measured" if lost is None else f"{lost.kl_divergence.value:.3g}",
            "" if lost is None else f"{lost.top1_agreement.value:.1%}",
            remark_text(trial, reason=False),
        )
    return trials


def _verification(found: TuningVerification) -> dict[str, str]:
    return {
        "Verified": "the best once more, in fresh processes and on held-out text",
        "  gain": f"{interval_text(found.gain, '.3g')}, {found.judgement}",
        "  KL divergence": f"{interval_text(found.divergence.kl_divergence, '.3g')}, by default "
        f"{interval_text(found.default_divergence.kl_divergence, '.3g')}",
        "  top-1 agreement": f"{found.divergence.top1_agreement.value:.2%}, by default "
        f"{found.default_divergence.top1_agreement.value:.2%}",
    }


def _by_reason(reasons: dict[str, str]) -> str:
    """Each reason once, with the settings that it is the reason of."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    # A setting has commas of its own between its properties.
    return "\n".join(f"{'; '.join(names)}: {why}" for why, names in found.items())
