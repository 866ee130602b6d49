"""The gate of a push: may a model leave, by what was measured."""

from __future__ import annotations

from llmcompress.artifact import Measurements
from llmcompress.errors import GateError
from llmcompress.report.evaluation import Check
from llmcompress.report.file_names import EVAL_REPORT

# Thresholds below which a value must stay; the others must be reached.
_UPPER = frozenset({"max_kl", "max_perplexity_increase"})


def require_gate(measured: Measurements, *, where: str, force: bool) -> str | None:
    """Refuse a model whose gate is not passed, or was not judged; with ``force`` return what the gate objects.

    A failed check of any evaluation of these bytes counts, also where the recipe has no gate.

    Raises:
        GateError: names the checks.
    """
    try:
        _judge(measured, where)
    except GateError as error:
        if not force:
            raise
        return error.message
    return None


def _judge(measured: Measurements, where: str) -> None:
    thresholds = measured.manifest.recipe.gate.model_dump(exclude_none=True)
    evaluation = measured.evaluation
    judge = "llmcompress eval DIR --reference ORIGINAL judges it; `force` pushes it all the same"
    if evaluation is None:
        if thresholds:
            reason = measured.unused.get(EVAL_REPORT)
            why = f"; {EVAL_REPORT} is not used: {reason}" if reason else ""
            raise GateError(f"the recipe's gate ({_words(thresholds)}) was not judged{why}", where=where, hint=judge)
        return
    failed = [check for check in evaluation.gate.checks if check.passed is False]
    if failed or evaluation.gate.passed is False:
        raise GateError(
            f"the gate is not passed: {'; '.join(f'{check.name}: {check.value}' for check in failed)}",
            where=where,
            hint="compress with a recipe that keeps more, or `force` pushes it all the same, with the verdict",
        )
    checks = {check.name: check for check in evaluation.gate.checks}
    open_ones = {name: value for name, value in thresholds.items() if not _passed(checks.get(name), value)}
    if open_ones or evaluation.gate.passed is None:
        named = _words(open_ones) or ", ".join(check.name for check in checks.values() if check.passed is None)
        raise GateError(f"the gate is not judged in full: {named}", where=where, hint=judge)


def _passed(check: Check | None, threshold: float) -> bool:
    """Whether a check passed that asks for at least as much as the recipe does."""
    if check is None or check.passed is not True or not isinstance(check.required, float | int):
        return False
    return check.required <= threshold if check.name in _UPPER else check.required >= threshold


def _words(thresholds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
