"""`llmcompress search`"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcompress.cli.console import facts_table, is_quiet, print_blocks, print_note, print_report, table, write_line
from llmcompress.cli.next_steps import after_search
from llmcompress.cli.options import (
    Address,
    AllowLinks,
    AllowNonfinite,
    Json,
    Offline,
    Overwrite,
    Revision,
    TrustRemoteCode,
    Verbose,
    check_executor_options,
    place_of,
)
from llmcompress.cli.progress import run_watched
from llmcompress.cli.spec_options import DATASET, Flag, with_fields
from llmcompress.report.estimate import interval_text
from llmcompress.report.text import duration_text, size_text
from llmcompress.spec.search import SearchSpec, parse_size
from llmcompress.spec.tuning import parse_duration_s

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.report.search import CorrectionRecord, ExpertsRecord, RepairRecord, SearchReport, SpeedRecord

_PANELS = {
    "Limit, exactly one": "max_bytes bits_per_weight max_kl min_decode",
    "Search": "optimize_for candidates calibration budget_s seed num_samples num_probes",
    "Text and verdict": "dataset subset split text_field chat_template seq_len num_windows confidence",
    "Outcome": "output_dir overwrite front html",
    "Where it runs": "executor address",
}

MAX_NAMES = 3


def _sizes(texts: list[str]) -> tuple[int, ...]:
    return tuple(parse_size(text, "`front`") for text in texts)


@with_fields(
    _PANELS,
    dataset=DATASET,
    max_bytes=Flag(metavar="SIZE", read=parse_size),
    front=Flag(metavar="SIZE", read=_sizes),
    bits_per_weight=Flag(metavar="BITS"),
    min_decode=Flag(metavar="TOK/S"),
    budget_s=Flag(metavar="TIME", read=parse_duration_s),
    candidates=Flag(metavar="MODE:GROUP_SIZE[+gptq]"),
)
def search(
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    spec: SearchSpec,
    output_dir: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the artifact goes.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page with plots.")] = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_nonfinite: AllowNonfinite = False,
    allow_links: AllowLinks = False,
    executor: Annotated[
        str, typer.Option("--executor", metavar="local|ray", help="Where weights are made by GPTQ and plans measured.")
    ] = "local",
    address: Address = None,
    offline: Offline = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """SOURCE is a Hub id or a checkpoint directory. DIR gets an artifact, and search.json with what was found.

    Each weight's error in each format, weighed by how sensitive the model is to it, predicts what it costs.
    The best plan is measured against one format for all and against NNCF's mixed precision of no more bytes.
    What loses least beyond noise is written; its recipe.yaml makes the same bytes without a search.

    [bold]Examples[/bold]
    llmcompress search meta-llama/Llama-3.2-1B --size 800MB -o llama-800mb-ov
    llmcompress search ./checkpoint --bits 4.25 --dataset my-text.txt -o model-ov
    llmcompress search ./checkpoint --max-kl 0.02 -o model-ov
    llmcompress search ./checkpoint --max-kl 0.02 --for decode -o model-ov
    llmcompress search ./checkpoint --min-decode 20 -o model-ov
    llmcompress search ./checkpoint --size 4GB --front 3GB --front 5GB --calibration train.txt -o model-ov
    llmcompress search ./checkpoint --size 4GB --calibration train.txt --budget 30m -o model-ov
    llmcompress search ./checkpoint --size 4GB --calibration train.txt --executor ray --address head:6379 -o model-ov
    """
    from llmcompress.searching.page import write_search_page
    from llmcompress.searching.search import search as search_formats
    from llmcompress.summary.page import check_page_path

    check_executor_options(executor, address)
    if html is not None:
        check_page_path(html)
    options: dict[str, Any] = {
        "source": place_of(source),
        "spec": spec,
        "output_dir": output_dir.absolute(),
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "offline": offline,
        "allow_nonfinite": allow_nonfinite,
        "allow_links": allow_links,
        "overwrite": overwrite,
        "executor": executor,
        "address": address,
    }
    report = run_watched(search_formats, options, verbose=verbose)
    if html is not None:
        write_search_page(report, html)
    print_report(report, print_search, as_json=as_json, brief=_choice_text)
    if not (as_json or is_quiet()):
        after_search(output_dir, source)


def print_search(report: SearchReport) -> None:
    """Print what was compared, where the bytes went, and the choice with its reason."""
    print_blocks(facts_table(_facts(report)), _contenders_table(report), _formats_table(report))
    if report.further:
        print_blocks(_further_table(report))
    write_line("")
    print_note("Choice: ", _choice_text(report))


def _choice_text(report: SearchReport) -> str:
    return f"{report.chosen}: {report.reason}"


def _facts(report: SearchReport) -> dict[str, str]:
    spec = report.spec
    if spec.max_bytes is not None:
        limit = f"at most {spec.max_bytes:,} bytes"
    elif spec.bits_per_weight is not None:
        limit = f"at most {spec.bits_per_weight:g} bits for each parameter"
    elif spec.max_kl is not None:
        limit = f"KL divergence at most {spec.max_kl:g}"
    else:
        limit = f"at least {spec.min_decode:g} tokens/s in decoding"
    facts = {
        "Limit": limit,
        "Sensitivity": f"{report.num_sensitivity_tokens:,} tokens of {report.text.dataset}",
        "Verdict": f"{report.text.num_scored_tokens:,} tokens that follow, in exact execution",
    }
    if report.text.fallback:
        facts["  instead of"] = report.text.fallback
    if report.experts is not None:
        facts["Experts"] = _experts_text(report.experts)
    if report.correction is not None:
        facts["Predictions"] = _correction_text(report.correction)
    if report.repair is not None:
        facts["Repair"] = _repair_text(report.repair)
    if report.speed is not None:
        facts["Speed"] = _speed_text(report.speed)
    if report.kl_per_further_mb is not None:
        facts["Next 1 %"] = _next_text(report.contenders[0].size_bytes // 100, report.kl_per_further_mb)
    if report.gain is not None:
        facts["Gain"] = f"{interval_text(report.gain, '.3g')} nats a token over the best of the others"
    return facts


def _experts_text(experts: ExpertsRecord) -> str:
    called = experts.num_experts - len(experts.never_called)
    text = f"the text called {called:,} of {experts.num_experts:,} matrices of experts"
    shown = ", ".join(experts.never_called[:MAX_NAMES]) + (" and others" * (len(experts.never_called) > MAX_NAMES))
    return f"{text}; never {shown}" if experts.never_called else text


def _correction_text(correction: CorrectionRecord) -> str:
    how = f"corrected by {correction.num_measured} measured plans"
    return f"{how}; without that the plan's would be {correction.uncorrected_kl:.3g}"


def _next_text(size_bytes: int, kl_per_mb: float) -> str:
    return f"{size_text(size_bytes)} more would lose {size_bytes / 1e6 * kl_per_mb:.3g} nats less, as predicted"


def _speed_text(speed: SpeedRecord) -> str:
    return (
        f"{speed.tokens_per_s:,.1f} tokens/s in {speed.phase}; of the same bytes chosen for size "
        f"{speed.for_size_tokens_per_s:,.1f}, predicted to lose {speed.for_size_predicted_kl:.3g}"
    )


def _repair_text(repair: RepairRecord) -> str:
    text = f"{repair.num_measured} changes of the plan measured, {repair.num_kept} kept"
    return text if repair.gain is None else f"{text}: {interval_text(repair.gain, '.3g')} nats a token less"


def _contenders_table(report: SearchReport) -> Table:
    from rich.text import Text

    found = table(["contender"], ["size", "KL predicted", "KL measured", "top-1"])
    for each in report.contenders:
        found.add_row(
            Text(each.name, style="bold" if each.name == report.chosen else ""),
            size_text(each.size_bytes),
            "" if each.predicted_kl is None else f"{each.predicted_kl:.3g}",
            interval_text(each.kl_divergence, ".3g"),
            f"{each.top1_agreement.value:.2%}",
        )
    return found


def _further_table(report: SearchReport) -> Table:
    found = table(["next to it"], ["size", "KL predicted", "KL measured", "top-1", "written in"])
    for each in report.further:
        found.add_row(
            each.directory,
            size_text(each.size_bytes),
            f"{each.predicted_kl:.3g}",
            interval_text(each.kl_divergence, ".3g"),
            f"{each.top1_agreement.value:.2%}",
            duration_text(each.write_s),
        )
    return found


def _formats_table(report: SearchReport) -> Table:
    found = table(["format"], ["weights", "parameters", "size", "KL predicted"])
    counts = Counter(each.format for each in report.weights)
    for name in sorted(counts):
        of_format = [each for each in report.weights if each.format == name]
        found.add_row(
            name,
            str(counts[name]),
            f"{sum(each.num_parameters for each in of_format) / report.num_parameters:.1%}",
            size_text(sum(each.size_bytes for each in of_format)),
            f"{sum(each.kl_divergence for each in of_format):.3g}",
        )
    return found
