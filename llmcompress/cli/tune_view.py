"""What tuning found, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, stdout
from llmcompress.tuning.space import text_of
from llmcompress.wording import interval_text, rate_text, size_text

if TYPE_CHECKING:
    from rich.table import Table

    from llmcompress.report import Trial, TuneReport, TuningVerification

_OBJECTIVES = {
    "decode": "decode tokens/s against the default",
    "prefill": "prefill tokens/s against the default",
    "memory": "the default's memory against it",
}
_SHORT = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "dynamic quantization",
    "KV_CACHE_PRECISION": "cache",
    "KEY_CACHE_PRECISION": "keys",
    "VALUE_CACHE_PRECISION": "values",
    "KEY_CACHE_GROUP_SIZE": "groups of keys",
    "VALUE_CACHE_GROUP_SIZE": "groups of values",
    "INFERENCE_PRECISION_HINT": "execution",
    "INFERENCE_NUM_THREADS": "threads",
    "SCHEDULING_CORE_TYPE": "cores",
    "ENABLE_HYPER_THREADING": "hyper-threading",
    "ENABLE_CPU_PINNING": "pinning",
    "PERFORMANCE_HINT": "mode",
}
"""For a table, in which the plugin's names would fill the line."""
_STYLES = {"better": "green", "worse": "red"}


def print_tuning(report: TuneReport) -> None:
    """Print what was measured, the verification, and the choice with its reason."""
    from rich.text import Text

    console = stdout()
    console.print(facts_table(_facts(report)))
    console.print()
    console.print(_trials_table(report))
    if report.skipped:
        console.print()
        console.print(facts_table(_skipped(report.skipped)))
    if report.verification is not None:
        console.print()
        console.print(facts_table(_verification(report.verification)))
    if report.gate is not None:
        from llmcompress.cli.evaluation_view import gate_table

        console.print()
        console.print(gate_table(report.gate))
    console.print()
    chosen = _lines(report.chosen) if report.chosen else "the defaults"
    console.print(
        Text.assemble(("Choice: ", "bold"), f"{chosen.replace(chr(10), ', ')}: {report.reason}"), soft_wrap=True
    )
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

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("setting", overflow="fold", min_width=24)
    for title in ("prefill tokens/s", "decode tokens/s", "gain", "memory", "KL, nats", "top-1"):
        table.add_column(title, justify="right", no_wrap=title != "KL, nats")
    table.add_column("", overflow="fold")
    for trial in report.trials:
        lost = trial.divergence
        table.add_row(
            Text(_lines(trial.properties) or "default", style="bold" if trial.properties == report.chosen else ""),
            "\n".join(rate_text(speed.prefill_tokens_per_s) for speed in trial.speeds),
            "\n".join(rate_text(speed.decode_tokens_per_s) for speed in trial.speeds),
            Text(_gain(trial), style=_STYLES.get(trial.judgement or "", "")),
            "" if trial.steady_rss_bytes is None else size_text(trial.steady_rss_bytes),
            "not measured" if lost is None else f"{lost.kl_divergence.value:.3g}",
            "" if lost is None else f"{lost.top1_agreement.value:.1%}",
            Text(_remark(trial)),
        )
    return table


def _gain(trial: Trial) -> str:
    return "" if trial.gain is None or not trial.properties else interval_text(trial.gain, ".3g")


def _remark(trial: Trial) -> str:
    words = ["on the front"] if trial.on_front else []
    if trial.status not in ("default", "measured"):
        words.append(f"{trial.status}: {trial.reason}" if trial.reason else trial.status)
    return ", ".join(words)


def _verification(found: TuningVerification) -> dict[str, str]:
    return {
        "Verified": "the best once more, in fresh processes and on held-out text",
        "  gain": f"{interval_text(found.gain, '.3g')}, {found.judgement}",
        "  KL divergence": f"{interval_text(found.divergence.kl_divergence, '.3g')}, by default "
        f"{interval_text(found.default_divergence.kl_divergence, '.3g')}",
        "  top-1 agreement": f"{found.divergence.top1_agreement.value:.2%}, by default "
        f"{found.default_divergence.top1_agreement.value:.2%}",
    }


def _skipped(skipped: dict[str, str]) -> dict[str, str]:
    """By reason, each with the settings that it is the reason of."""
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    return {"Not tried": "\n".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())}


def _lines(properties: dict[str, str]) -> str:
    return "\n".join(f"{_SHORT.get(name, name)} {value}" for name, value in sorted(properties.items()))
