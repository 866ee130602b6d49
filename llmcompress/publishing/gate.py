"""May a model leave, by what was measured: the gate of a push."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llmcompress.artifact import Measurements
from llmcompress.errors import GateError
from llmcompress.evaluation.gate import worst_checks
from llmcompress.report.evaluation import Check, EvalReport
from llmcompress.report.file_names import EVAL_REPORT
from llmcompress.spec import Gate

WITHOUT_OWN = Gate(max_kl=0.1, max_perplexity_increase=0.1)
"""What a push asks for where neither the recipe nor the evaluation set a threshold."""

_JUDGE = "llmcompress eval DIR --reference ORIGINAL judges it; `force` pushes it all the same"
_KEEP_MORE = "compress with a recipe that keeps more, or `force` pushes it all the same, with the verdict"
# Thresholds below which a value must stay; the others must be reached.
_UPPER = frozenset({"max_kl", "max_perplexity_increase", "max_picture_kl"})


class Objection(NamedTuple):
    """Why a model does not leave by itself."""

    message: str
    hint: str


def require_gate(measured: Measurements, *, where: str, force: bool) -> str | None:
    """Refuse a model whose gate is not passed, or was not judged; with ``force`` return what the gate objects.

    Raises:
        GateError: names the checks.
    """
    found = objection(measured)
    if found is None:
        return None
    if not force:
        raise GateError(found.message, where=where, hint=found.hint)
    return found.message


def objection(measured: Measurements) -> Objection | None:
    """What the gate objects to publishing the model; None: nothing.

    A failed check of any evaluation of these bytes counts. Where no threshold was set, those of ``WITHOUT_OWN`` are.
    """
    own = measured.manifest.recipe.gate.model_dump(exclude_none=True)
    evaluation = measured.evaluation
    if evaluation is None:
        reason = measured.unused.get(EVAL_REPORT)
        why = f"; {EVAL_REPORT} is not used: {reason}" if reason else ""
        what = f"the recipe's gate ({_words(own)}) was not judged" if own else "it was never evaluated"
        return Objection(f"{what}{why}", _JUDGE)
    if failed := [check for check in evaluation.gate.checks if check.passed is False]:
        return Objection(f"the gate is not passed: {_values(failed)}", _KEEP_MORE)
    if evaluation.gate.status == "failed":
        return Objection("the gate is not passed", _KEEP_MORE)
    if not own and evaluation.gate.status == "no_thresholds":
        return _by_default(evaluation)
    checks = {check.name: check for check in evaluation.gate.checks}
    open_ones = {name: value for name, value in own.items() if not _passed(checks.get(name), value)}
    if open_ones or evaluation.gate.status == "not_judged":
        named = _words(open_ones) or ", ".join(check.name for check in checks.values() if check.passed is None)
        return Objection(f"the gate is not judged in full: {named}", _JUDGE)
    return None


def _by_default(evaluation: EvalReport) -> Objection | None:
    checks = worst_checks(WITHOUT_OWN, evaluation.divergences)
    if failed := [check for check in checks if check.passed is False]:
        return Objection(f"no thresholds are set, and it loses more than a push accepts: {_values(failed)}", _KEEP_MORE)
    if undecided := [check for check in checks if check.passed is None]:
        asked = ", ".join(f"{check.name} {check.required:g}" for check in undecided)
        return Objection(f"no thresholds are set, and what a push asks for is not judged: {asked}", _JUDGE)
    return None


def _passed(check: Check | None, threshold: float) -> bool:
    """Whether a check passed that asks for at least as much as the recipe does."""
    if check is None or check.passed is not True or not isinstance(check.required, float | int):
        return False
    return check.required <= threshold if check.name in _UPPER else check.required >= threshold


def _values(failed: Iterable[Check]) -> str:
    return "; ".join(
        f"{check.name}: {check.value:.4g}, required {check.required:.4g}"
        if isinstance(check.value, float) and isinstance(check.required, float)
        else f"{check.name}: {check.value}"
        for check in failed
    )


def _words(thresholds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
