"""An evaluation report for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcompress.cli.console import facts_table, print_blocks, print_text, table, write_line
from llmcompress.report.estimate import interval_text
from llmcompress.report.evaluation import DAMAGE_PARTS, GATE_STATUSES, PICTURE_DAMAGE_PARTS
from llmcompress.report.text import duration_text, property_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from llmcompress.report.evaluation import (
        ConversionRecord,
        DivergenceRecord,
        EvalReport,
        GateRecord,
        GenerationRecord,
        PictureRecord,
    )

_STYLES = {"equivalent": "bold green", "worse": "bold red", "cannot tell": "bold yellow"}


def print_evaluation(report: EvalReport, *, source: str, stages: bool) -> None:
    """Print what was measured, how sure it is, the verdict and the gate."""
    from rich.text import Text

    print_blocks(
        facts_table(_facts(report, source)),
        _perplexity_table(report),
        _divergence_table(report) if report.divergence else None,
        _backend_words(report),
        _damage_table(report) if report.split_damage else None,
        _tasks_table(report) if report.tasks else None,
        _generations_text(report.generations) if report.generations else None,
        _pictures_table(report.pictures) if report.pictures and report.pictures.divergence else None,
        f"It was shown no pictures: {report.pictures_refusal}" if report.pictures_refusal else None,
        gate_table(report.gate),
    )
    if report.verdict is not None:
        write_line("")
        spec = report.spec
        print_text(
            Text.assemble(
                ("Verdict: ", "bold"),
                (report.verdict + _reason(report), _STYLES[report.verdict]),
                f"  (margins: KL {spec.kl_margin:g} nats, perplexity {spec.perplexity_margin:.3g} relative, "
                f"{spec.confidence:.0%} intervals)",
            )
        )
    if stages:
        write_line("")
        for stage in report.measured.stages:
            write_line(f"{stage.stage}: {duration_text(stage.duration_s)}")


def _generations_text(found: GenerationRecord) -> str:
    return (
        f"Greedy continuations: {found.identical_share:.0%} of {found.num_prompts} are the same, "
        f"{found.equal_prefix_share:.0%} of {found.max_new_tokens} tokens before the first difference"
    )


def _pictures_table(found: PictureRecord) -> Table:
    """What was lost of answers about pictures, and of the pictures themselves."""
    shown = table([f"{found.num_questions} questions about pictures"], ["against the reference"])
    if found.divergence is not None:
        tokens = f"{found.num_scored_tokens} tokens of its answers"
        shown.add_row(f"KL divergence, nats ({tokens})", interval_text(found.divergence.kl_divergence))
        for part in found.damage:
            shown.add_row(f"  {PICTURE_DAMAGE_PARTS[part.part]}", interval_text(part.kl_divergence))
        shown.add_row("top-1 agreement", interval_text(found.divergence.top1_agreement, ".2%"))
    if found.vision is not None:
        shown.add_row("embeddings of pictures: cosine", interval_text(found.vision.cosine, ".5f"))
        shown.add_row("  relative L2 error", interval_text(found.vision.relative_l2))
    return shown


def _reason(report: EvalReport) -> str:
    found = report.worst.divergence
    if report.verdict != "cannot tell" or found is None:
        return ""
    if not found.exact:
        return ": only a lower bound was measured; take --reference-scores exact or rounded"
    if found.kl_divergence.high is None:
        return ": one window has no interval; take more text"
    return ": more text would narrow the intervals"


def evaluation_line(report: EvalReport) -> str:
    """Return the result alone, of the backend that loses most: perplexity, KL divergence and verdict."""
    worst = report.worst
    found = [f"perplexity {worst.perplexity.perplexity.value:.5g}"]
    if worst.divergence is not None:
        found += [f"KL divergence {worst.divergence.kl_divergence.value:.4g}", str(report.verdict)]
    return ", ".join(found)


def conversion_line(report: ConversionRecord) -> str:
    """Return the result alone."""
    return f"mean KL divergence {report.mean_kl:.3g}, conversion {'right' if report.passed else 'wrong'}"


def print_conversion(report: ConversionRecord) -> None:
    """Print how OpenVINO compares with PyTorch."""
    near = f", {report.num_near_ties} of them near-ties" if report.num_greedy_disagreements else ""
    facts = {
        "Compared": f"{report.num_tokens} tokens of {report.num_prompts} prompts, both in f32",
        "Mean KL": f"{report.mean_kl:.3g} nats (at most 0.0001)",
        "Largest KL": f"{report.max_kl:.3g} nats",
        "Greedy choices": f"{report.num_greedy_disagreements} differ{near}",
        "Conversion": "right" if report.passed else "wrong",
    }
    print_blocks(facts_table(facts))


def gate_table(gate: GateRecord) -> Table:
    """Return the gate's checks, one a row."""
    from rich.table import Table
    from rich.text import Text

    marks = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("not measured", "yellow")}
    styles = {"passed": "green", "failed": "bold red", "not_judged": "yellow", "no_thresholds": ""}
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("Gate", Text(GATE_STATUSES[gate.status], styles[gate.status]), "")
    for check in gate.checks:
        value = f"{check.value:.4g}" if isinstance(check.value, float) else check.value
        required = f"{check.required:.4g}" if isinstance(check.required, float) else check.required
        detail = f"; {check.detail}" if check.detail else ""
        got = "" if value is None else f"{value}, "
        table.add_row(f"  {check.name}", Text(*marks[check.passed]), Text(f"{got}required: {required}{detail}"))
    return table


def _facts(report: EvalReport, source: str) -> dict[str, str]:
    spec, text = report.spec, report.text
    names = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")
    used = [property_text(name, report.model.properties[name]) for name in names if name in report.model.properties]
    conversations = f" of {text.num_documents:,} conversations" if spec.chat_template else ""
    scored = f"{text.num_scored_tokens:,} tokens scored in {text.num_windows} windows{conversations}"
    if text.num_windows_in_text not in (None, text.num_windows):
        scored += f", the first of {text.num_windows_in_text:,} by default; --num-windows all scores them all"
    facts = {
        "Model": source,
        "Text": f"{text.dataset}: {scored}",
        **({"  instead of": text.fallback} if text.fallback else {}),
        "Protocol": f"{spec.protocol}, {spec.seq_len} tokens, {report.chunk} tokens a call",
        "Runtime": f"{spec.device}, {spec.precision}: {', '.join(used)}",
    }
    if report.property_differences:
        facts["Reference differs"] = ", ".join(
            f"{name} {theirs} (model: {mine})" for name, (mine, theirs) in report.property_differences.items()
        )
    if report.num_windows_resumed:
        facts["Resumed"] = f"{report.num_windows_resumed} windows were scored by an interrupted evaluation"
    if report.scored_tokens_per_s is not None:
        facts["Speed"] = f"{report.scored_tokens_per_s:,.0f} scored tokens/s"
    return facts


def _perplexity_table(report: EvalReport) -> Table:
    names = ["perplexity"]
    if report.model.perplexity.word_perplexity is not None:
        names += ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    models = [(f"model, {record.backend}", record.perplexity) for record in report.backends]
    if len(models) < 2:
        models = [("model", report.model.perplexity)]
    if report.reference is not None:
        models.append(("reference", report.reference.perplexity))
    shown = table([""], [name for name, _ in models])
    for name in names:
        shown.add_row(name, *(interval_text(getattr(perplexity, name), ".5g") for _, perplexity in models))
    return shown


def _divergence_table(report: EvalReport) -> Table:
    """The figures of each backend in a column of its own."""
    assert report.divergence is not None
    found = {record.backend: record.divergence for record in report.backends if record.divergence is not None}
    backends = [str(backend) for backend in found] if len(found) > 1 else [""]
    records = list(found.values()) if len(found) > 1 else [report.divergence]
    shown = table(["against the reference"], backends)

    def row(name: str, of: Callable[[DivergenceRecord], str]) -> None:
        shown.add_row(name, *(of(record) for record in records))

    first = records[0]
    name = "KL divergence, nats" if first.exact else f"KL divergence, nats: a lower bound from the top {first.top_k}"
    row(name, lambda record: interval_text(record.kl_divergence))
    row("  median, p90, p99, p99.9, max", _percentiles)
    if first.captured_mass is not None:
        row("  mass in the top tokens", lambda record: f"{record.captured_mass:.2%}")
    if first.logits_error:
        row("  error of the reference's logits", lambda record: f"at most {record.logits_error:.2g}")
    if report.noise_floor is not None:
        floor = report.noise_floor
        text = interval_text(floor.kl_divergence)
        shown.add_row(f"  noise floor ({' against '.join(floor.precisions)})", text, *("" for _ in records[1:]))
    row("top-1 agreement", lambda record: interval_text(record.top1_agreement, ".2%"))
    row("perplexity ratio", lambda record: interval_text(record.perplexity_ratio, ".5g"))
    row("RMS change of probability", lambda record: f"{record.rms_probability_change:.2%}")
    return shown


def _percentiles(found: DivergenceRecord) -> str:
    values = (found.kl_median, found.kl_p90, found.kl_p99, found.kl_p999, found.kl_max)
    return ", ".join(f"{value:.3g}" for value in values)


def _backend_words(report: EvalReport) -> str | None:
    """What the paged graph adds, or why it was not scored."""
    if report.paged_refusal is not None:
        return f"Scored on the stateful graph only: {report.paged_refusal}"
    share = report.backend_share
    if share is None:
        return None
    kl = "" if share.kl_divergence is None else f"KL divergence {interval_text(share.kl_divergence, '+.2g')} nats, "
    return f"The paged graph's share: {kl}negative log-likelihood {interval_text(share.nll, '+.2g')} nats a token"


def _damage_table(report: EvalReport) -> Table:
    shown = table(["damage against the exact reference"], ["KL divergence, nats", "top-1 agreement"])
    for part in report.split_damage:
        agreement = interval_text(part.top1_agreement, ".2%")
        shown.add_row(DAMAGE_PARTS[part.part], interval_text(part.kl_divergence), agreement)
    return shown


def _tasks_table(report: EvalReport) -> Table:
    shown = table(["task"], ["metric", "score", "samples"])
    for score in report.tasks:
        error = "" if score.standard_error is None else f" ± {score.standard_error:.3g}"
        shown.add_row(score.task, score.metric, f"{score.value:.4g}{error}", str(score.num_samples or ""))
    return shown
