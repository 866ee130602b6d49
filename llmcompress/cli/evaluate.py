"""`llmcompress eval`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmcompress.cli.options import (
    AllowNonfinite,
    Dataset,
    Device,
    Json,
    Offline,
    Precision,
    Profile,
    ReferenceRevision,
    Revision,
    SeqLen,
    Source,
    Split,
    Subset,
    TextField,
    TrustRemoteCode,
    Verbose,
)

_WITH_CHECK_CONVERSION = {
    "source",
    "check_conversion",
    "revision",
    "trust_remote_code",
    "offline",
    "allow_nonfinite",
    "as_json",
    "verbose",
}


def evaluate(
    context: typer.Context,
    source: Source,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="SOURCE", show_default=False, help="What it was made from: to compare."),
    ] = None,
    dataset: Dataset = "wikitext2",
    subset: Subset = None,
    split: Split = None,
    text_field: TextField = None,
    protocol: Annotated[
        str, typer.Option("--protocol", metavar="llama.cpp|sliding|rolling", help="How the text is cut and scored.")
    ] = "llama.cpp",
    seq_len: SeqLen = 512,
    stride: Annotated[
        int | None, typer.Option("--stride", show_default=False, help="For sliding. Default: half a window")
    ] = None,
    num_windows: Annotated[
        int | None, typer.Option("--num-windows", show_default=False, help="The first so many. Default: all")
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option("--chunk", show_default=False, help="Tokens per call. Default: 64 as_used, whole windows pinned"),
    ] = None,
    device: Device = "CPU",
    precision: Precision = "as_used",
    profile: Profile = None,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals.")] = 0.95,
    kl_margin: Annotated[float, typer.Option("--kl-margin", help="Equivalent up to this mean KL, nats.")] = 0.01,
    perplexity_margin: Annotated[
        float, typer.Option("--perplexity-margin", help="Equivalent up to this relative increase.")
    ] = 0.01,
    reference_scores: Annotated[
        str,
        typer.Option(
            "--reference-scores",
            metavar="auto|exact|cached",
            help="Both models at once, or one after the other with the reference's top tokens kept: a lower bound.",
        ),
    ] = "auto",
    noise_floor: Annotated[
        bool, typer.Option("--noise-floor", help="Also the reference against itself in its other precision.")
    ] = False,
    split_damage: Annotated[
        bool, typer.Option("--split-damage", help="Also what weights, cache, activations and precision contribute.")
    ] = False,
    num_generations: Annotated[
        int, typer.Option("--generations", min=0, help="Greedy continuations to compare with the reference's.")
    ] = 0,
    max_kl: Annotated[float | None, typer.Option("--max-kl", show_default=False, help="Gate: mean KL, nats.")] = None,
    min_top1_agreement: Annotated[
        float | None, typer.Option("--min-top1-agreement", show_default=False, help="Gate: share of tokens.")
    ] = None,
    max_perplexity_increase: Annotated[
        float | None, typer.Option("--max-perplexity-increase", show_default=False, help="Gate: 0.05 is 5 %.")
    ] = None,
    probe_context: Annotated[
        int | None,
        typer.Option(
            "--probe-context",
            min=1,
            show_default=False,
            help="Tokens after which logits must be finite. Default: a window",
        ),
    ] = None,
    check_conversion: Annotated[
        bool, typer.Option("--check-conversion", help="Only compare a checkpoint in PyTorch with it in OpenVINO.")
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="NAME,...", show_default=False, help="Tasks of lm-evaluation-harness."),
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option("--task-limit", min=1, show_default=False, help="Samples of each task.")
    ] = None,
    task_path: Annotated[
        Path | None, typer.Option("--task-path", show_default=False, help="Directory with task files of your own.")
    ] = None,
    revision: Revision = None,
    reference_revision: ReferenceRevision = None,
    trust_remote_code: TrustRemoteCode = False,
    offline: Offline = False,
    allow_nonfinite: AllowNonfinite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure what a model lost, on the OpenVINO runtime: perplexity, KL divergence, agreement, and a verdict.

    SOURCE and the reference are Hub ids, checkpoint directories, or OpenVINO IR directories.

    An artifact of ours gets the report as its eval.json. Ends with exit code 7 when the gate is not passed.

    [bold]Examples[/bold]
    llmcompress eval model-int4-ov --reference meta-llama/Llama-3.2-1B-Instruct
    llmcompress eval model-int4-ov --reference ./checkpoint --dataset texts.jsonl --max-kl 0.02
    llmcompress eval ./checkpoint --check-conversion
    """
    access = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "offline": offline,
        "allow_nonfinite": allow_nonfinite,
    }
    if check_conversion:
        _refuse_ignored(context)
        _conversion(source, access, as_json=as_json, verbose=verbose)
        return
    from llmcompress.cli.progress import run_watched
    from llmcompress.errors import GateError, UsageError
    from llmcompress.evaluation.evaluate import evaluate as evaluate_model
    from llmcompress.spec import eval_spec, load_profile

    if reference_scores not in {"auto", "exact", "cached"}:
        raise UsageError(f"got {reference_scores!r}; accepted: auto, exact, cached", where="--reference-scores")
    spec = eval_spec(
        # The worker may not share what the shell calls the working directory.
        dataset=str(Path(dataset).absolute()) if Path(dataset).is_file() else dataset,
        subset=subset,
        split=split,
        text_field=text_field,
        protocol=protocol,
        seq_len=seq_len,
        stride=stride,
        num_windows=num_windows,
        chunk=chunk,
        device=device,
        precision=precision,
        profile=None if profile is None else load_profile(profile),
        confidence=confidence,
        kl_margin=kl_margin,
        perplexity_margin=perplexity_margin,
    )
    task_names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tasks is not None and not task_names:
        raise UsageError(f"got {tasks!r}; names with commas between are accepted", where="--tasks")
    thresholds = {
        "max_kl": max_kl,
        "min_top1_agreement": min_top1_agreement,
        "max_perplexity_increase": max_perplexity_increase,
    }
    given = {name: value for name, value in thresholds.items() if value is not None}
    if given and reference is None:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(
            f"{names} compare with a reference, and none was given",
            hint="add --reference with the model that it was made from",
        )
    report = run_watched(
        evaluate_model,
        {
            "source": source,
            "spec": spec,
            "reference": reference,
            "reference_revision": reference_revision,
            "reference_scores": reference_scores,
            "gate": _gate(given),
            "probe_context": probe_context,
            "num_generations": num_generations,
            "noise_floor": noise_floor,
            "split_damage": split_damage,
            "tasks": task_names,
            "task_limit": task_limit,
            "task_path": None if task_path is None else task_path.absolute(),
            **access,
        },
        verbose=verbose,
    )
    from llmcompress.cli.console import print_json
    from llmcompress.cli.evaluation_view import print_evaluation

    if as_json:
        print_json(report)
    else:
        print_evaluation(report, source=source, stages=verbose)
    undecided = [check for check in report.gate.checks if check.name in given and check.passed is None]
    if undecided:
        raise GateError(
            "; ".join(f"{check.name} could not be decided: {check.detail}" for check in undecided), where=source
        )
    if report.gate.passed is False:
        failed = [check for check in report.gate.checks if check.passed is False]
        raise GateError(
            "the gate is not passed: " + "; ".join(f"{check.name}: {check.value}" for check in failed),
            where=source,
            hint="take a recipe that loses less, or set other thresholds",
        )


def _refuse_ignored(context: typer.Context) -> None:
    from llmcompress.errors import UsageError

    given = [
        "--" + name.replace("_", "-")
        for name in context.params
        if name not in _WITH_CHECK_CONVERSION and context.get_parameter_source(name).name == "COMMANDLINE"  # type: ignore[union-attr]
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)} would have no effect on --check-conversion",
            hint="the check has fixed prompts and always runs in f32 on the CPU; leave them out",
        )


def _gate(thresholds: dict[str, float]) -> Any:
    from pydantic import ValidationError

    from llmcompress.errors import UsageError
    from llmcompress.spec import Gate

    try:
        return Gate(**thresholds)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"got {first['input']}; {first['msg'].lower()}", where=name) from None


def _conversion(source: str, access: dict[str, Any], *, as_json: bool, verbose: bool) -> None:
    from llmcompress.cli.console import print_json
    from llmcompress.cli.evaluation_view import print_conversion
    from llmcompress.cli.progress import run_watched
    from llmcompress.errors import ModelError
    from llmcompress.evaluation.evaluate import check_conversion

    report = run_watched(check_conversion, {"source": source, **access}, verbose=verbose)
    if as_json:
        print_json(report)
    else:
        print_conversion(report)
    if not report.passed:
        raise ModelError(
            "OpenVINO computes something else than PyTorch with the same weights",
            where=source,
            hint="do not compress it: report the architecture to optimum-intel, or try another version of it",
        )
