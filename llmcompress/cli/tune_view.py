"""What tuning found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, stdout
from llmcompress.tuning.space import text_of
from llmcompress.tuning.wording import gain_text, remark_text
from llmcompress.wording import interval_text, rate_text, settings_text, size_text

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.report import TuneReport, TuningVerification

_OBJECTIVES = {
    "decode": "decode tokens/s against the default",
    "prefill": "prefill tokens/s against the default",
    "memory": "the default's memory against it",
}
_STYLES = {"better": "green", "worse": "red"}


def print_tuning(report: TuneReport) -> None:
    """Print what was measured, the verification, and the choice with its reason."""
    from rich.text import Text

    console = stdout()
    console.print(facts_table(_facts(report)))
    console.print()
    console.print(_trials_table(report))
    left_out = {
        "Not taken": {text_of(each.properties): each.reason for each in report.trials if each.reason},
        "Not tried": report.skipped,
    }
    for title, reasons in left_out.items():
        if reasons:
            console.print()
            console.print(facts_table({title: _by_reason(reasons)}))
    if report.verification is not None:
        console.print()
        console.print(facts_table(_verification(report.verification)))
    if report.gate is not None:
        from llmcompress.cli.evaluation_view import gate_table

        console.print()
        console.print(gate_table(report.gate))
    console.print()
    chosen = text_of(report.chosen) if report.chosen else "the defaults"
    console.print(Text.assemble(("Choice: ", "bold"), f"{chosen}: {report.reason}"), soft_wrap=True)
    for words, properties in (("a model can hold", report.in_model), ("for a runtime profile", report.in_profile)):
        if report.chosen and properties:
            console.print(f"  {words}: {text_of(properties)}", markup=False, soft_wrap=True)


def _facts(report: TuneReport) -> dict[str, str]:
    against = "this very model" if report.reference.itself else report.reference.provenance.id or "the original"
    return {
        "Device": f"{report.spec.device}: {report.device_name}",
        "Workloads": ", ".join(map(str, report.spec.workloads)),
        "Objective": f"{_OBJECTIVES[report.spec.objective]}; KL divergence at most {report.max_kl:.3g}",
        "KL divergence": f"from {against} in exact execution, {report.text.num_scored_tokens:,} tokens of "
        f"{report.text.dataset}, {report.spec.effective_chunk} tokens a call",
    }


def _trials_table(report: TuneReport) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("setting", overflow="fold", min_width=24)
    for title in ("prefill\ntokens/s", "decode\ntokens/s", "gain", "memory", "KL,\nnats", "top-1"):
        table.add_column(title, justify="right", no_wrap="KL" not in title)
    remarks = [remark_text(each, reason=False) for each in report.trials]
    table.add_column("", no_wrap=True, min_width=max(len(line) for remark in remarks for line in remark.split("\n")))
    for trial, remark in zip(report.trials, remarks, strict=True):
        lost = trial.divergence
        table.add_row(
            Text(settings_text(trial.properties, "\n"), style="bold" if trial.properties == report.chosen else ""),
            "\n".join(rate_text(speed.prefill_tokens_per_s) for speed in trial.speeds),
            "\n".join(rate_text(speed.decode_tokens_per_s) for speed in trial.speeds),
            Text(gain_text(trial), style=_STYLES.get(trial.judgement or "", "")),
            "" if trial.steady_rss_bytes is None else size_text(trial.steady_rss_bytes),
            "not measured" if lost is None else f"{lost.kl_divergence.value:.3g}",
            "" if lost is None else f"{lost.top1_agreement.value:.1%}",
            remark,
        )
    return table


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
    return "\n".join(f"{', '.join(names)}: {why}" for why, names in found.items())
