"""`llmcompress eval`"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcompress.cli.console import is_quiet, print_report, tell
from llmcompress.cli.log_to import LogTo, chosen_tracker, log_reports
from llmcompress.cli.next_steps import after_eval
from llmcompress.cli.options import (
    AllowLinks,
    AllowNonfinite,
    Json,
    MaxContext,
    MergeAdapter,
    ModelFile,
    Offline,
    ReferenceRevision,
    Revision,
    Source,
    TrustRemoteCode,
    Verbose,
    check_choice,
    refuse_ignored,
)
from llmcompress.cli.progress import run_watched
from llmcompress.cli.spec_options import DATASET, DEVICE, with_fields
from llmcompress.errors import GateError, ModelError, UsageError
from llmcompress.spec import Access, EvalSpec, Gate

if TYPE_CHECKING:
    from llmcompress.report.evaluation import GateRecord

_ACCESS = {"revision", "trust_remote_code", "offline", "allow_nonfinite", "allow_links", "merge_adapter"}
_WITH_CHECK_CONVERSION = {"source", "check_conversion", *_ACCESS}
_PANELS = {
    "Text": "dataset subset split text_field chat_template protocol seq_len stride num_windows pictures",
    "Reference": "reference reference_revision reference_scores noise_floor split_damage num_generations",
    "Verdict and gate": "confidence kl_margin perplexity_margin max_kl min_top1_agreement max_perplexity_increase "
    "max_picture_kl",
    "Runtime": "device backend precision profile chunk",
    "Extras": "tasks task_limit task_path probe_context check_conversion log_to",
}


@with_fields(_PANELS, dataset=DATASET, device=DEVICE, pictures=DATASET)
def evaluate(
    context: typer.Context,
    source: Source,
    spec: EvalSpec,
    gate: Gate,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="SOURCE", help="What it was made from: to compare.")
    ] = None,
    reference_revision: ReferenceRevision = None,
    reference_scores: Annotated[
        str,
        typer.Option(
            "--reference-scores",
            metavar="HOW",
            help="exact: both models at once. rounded: one after the other, the reference's logits on disk. cached: so "
            "with its top tokens, a lower bound. auto: what memory and disk permit.",
        ),
    ] = "auto",
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Also the reference against itself in its other precision.")
    ] = False,
    split_damage: Annotated[
        bool,
        typer.Option("--split-damage", help="Also what weights, cache, activations, precision and backend contribute."),
    ] = False,
    num_generations: Annotated[
        int,
        typer.Option("--generations", min=0, metavar="N", help="Greedy continuations to compare with the reference's."),
    ] = 0,
    probe_context: Annotated[
        int | None,
        typer.Option(
            "--probe-context",
            min=1,
            metavar="TOKENS",
            help="Tokens after which logits must be finite. Default: a window",
        ),
    ] = None,
    check_conversion: Annotated[
        bool, typer.Option("--check-conversion", help="Only compare a checkpoint in PyTorch with it in OpenVINO.")
    ] = False,
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="NAME,...", help="Tasks of lm-evaluation-harness.")
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option("--task-limit", min=1, metavar="N", help="Samples of each task.")
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option("--task-path", metavar="DIR", help="Directory with task files of your own.")
    ] = None,
    log_to: LogTo = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    allow_nonfinite: AllowNonfinite = False,
    allow_links: AllowLinks = False,
    merge_adapter: MergeAdapter = False,
    max_context: MaxContext = None,
    file: ModelFile = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """SOURCE and the reference are Hub ids, checkpoint directories, GGUF files, or OpenVINO IR directories.

    An artifact of ours gets the report as its eval.json. Ends with exit code 7 when the gate is not passed.

    [bold]Examples[/bold]
    llmcompress eval model-int4-ov --reference meta-llama/Llama-3.2-1B-Instruct
    llmcompress eval model-int4-ov --reference ./checkpoint --max-kl 0.02
    llmcompress eval ./checkpoint --check-conversion
    """
    access = Access(
        revision, trust_remote_code, offline, allow_nonfinite, allow_links, merge_adapter, max_context, file=file
    )
    if check_conversion:
        hint = "the check has fixed prompts and always runs in f32 on the CPU; leave them out"
        refuse_ignored(context, "--check-conversion", _WITH_CHECK_CONVERSION, hint)
        _conversion(source, access, as_json=as_json, verbose=verbose)
        return
    from llmcompress.evaluation.evaluate import evaluate as evaluate_model

    check_choice("--reference-scores", reference_scores, ("auto", "exact", "rounded", "cached"))
    task_names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tasks is not None and not task_names:
        raise UsageError(f"got {tasks!r}; names with commas between are accepted", where="--tasks")
    thresholds = gate.model_dump(exclude_none=True)
    if thresholds and reference is None:
        raise UsageError(
            f"{' and '.join(f'`{name}`' for name in thresholds)} compare with a reference, and none was given",
            hint="add --reference with the model that it was made from",
        )
    tracker = chosen_tracker(log_to)
    report = run_watched(
        evaluate_model,
        {
            "source": source,
            "spec": spec,
            "reference": reference,
            "reference_revision": reference_revision,
            "reference_scores": reference_scores,
            "gate": gate,
            "probe_context": probe_context,
            "num_generations": num_generations,
            "noise_floor": noise_floor,
            "split_damage": split_damage,
            "tasks": task_names,
            "task_limit": task_limit,
            "task_path": None if task_path is None else task_path.absolute(),
            **_opened_by(access),
        },
        verbose=verbose,
    )
    from llmcompress.cli.evaluation_report import evaluation_line, print_evaluation

    print_report(
        report,
        lambda made: print_evaluation(made, source=source, stages=verbose),
        as_json=as_json,
        brief=evaluation_line,
    )
    tells = not as_json and not is_quiet()
    not_logged = log_reports([report], [source], tracker, tell=tells)
    if tells:
        after_eval(report, source, spec, reference)
    refused = _gate_error(report.gate, thresholds, source)
    if refused is not None and not_logged is not None:
        # What the model is worth goes before where its figures went.
        tell(f"warning: {not_logged.where}: {not_logged.message}")
    if error := refused or not_logged:
        raise error


def _gate_error(gate: GateRecord, asked: Collection[str], source: str) -> GateError | None:
    """What the gate says against the model: thresholds that were asked for and not decided, or checks that failed."""
    undecided = [check for check in gate.checks if check.name in asked and check.passed is None]
    if undecided:
        return GateError(
            "; ".join(f"{check.name} could not be decided: {check.detail}" for check in undecided), where=source
        )
    if gate.passed is not False:
        return None
    failed = [check for check in gate.checks if check.passed is False]
    return GateError(
        "the gate is not passed: " + "; ".join(f"{check.name}: {check.value}" for check in failed),
        where=source,
        hint="take a recipe that loses less, or set other thresholds",
    )


def _opened_by(access: Access) -> dict[str, Any]:
    """How a source is opened, by the parameters' names; what compress alone does is left out."""
    left_out = {"requantize", "text_only"} | (set() if access.file else {"file"})
    return {name: value for name, value in access._asdict().items() if name not in left_out}


def _conversion(source: str, access: Access, *, as_json: bool, verbose: bool) -> None:
    from llmcompress.cli.evaluation_report import conversion_line, print_conversion
    from llmcompress.evaluation.conversion import check_conversion

    options = {name: value for name, value in _opened_by(access).items() if name != "max_context"}
    report = run_watched(check_conversion, {"source": source, **options}, verbose=verbose)
    print_report(report, print_conversion, as_json=as_json, brief=conversion_line)
    if not report.passed:
        raise ModelError(
            "OpenVINO computes something else than PyTorch with the same weights",
            where=source,
            hint="do not compress it: report the architecture to optimum-intel, or try another version of it",
        )
