"""The gate: what a model must keep of its reference before it may be shipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmcompress.evaluation.intervals import judge
from llmcompress.report.evaluation import Check, DivergenceRecord, GateRecord, PictureRecord, Verdict
from llmcompress.spec import EvalSpec, Gate
from llmcompress.spec.evaluation import Backend

PICTURES = "max_picture_kl"
EARLIER = "from an earlier evaluation of the same bytes"


def combined(recipe: Gate | None, given: Gate) -> Gate:
    """The recipe's thresholds, each replaced by the one given for this run."""
    return Gate(**{**(recipe or Gate()).model_dump(exclude_none=True), **given.model_dump(exclude_none=True)})


def threshold_checks(gate: Gate, divergence: DivergenceRecord | None) -> tuple[Check, ...]:
    """Compare measured means with the thresholds that are set; a KL divergence that is a bound can only fail."""
    measured = {}
    if divergence is not None:
        measured = {
            "max_kl": divergence.kl_divergence.value,
            "min_top1_agreement": divergence.top1_agreement.value,
            "max_perplexity_increase": divergence.perplexity_ratio.value - 1,
        }
    checks = []
    for name, required in gate.model_dump(exclude_none=True, exclude={PICTURES}).items():
        value, passed, detail = measured.get(name), None, "" if divergence else "no --reference was given"
        if value is not None:
            # What is not a number is beyond every limit.
            passed = value >= required if name == "min_top1_agreement" else value <= required
        if name == "max_kl" and passed and divergence and not divergence.exact:
            passed, detail = None, "only a lower bound was measured; take --reference-scores exact or rounded"
        checks.append(Check(name=name, passed=passed, value=value, required=required, detail=detail))
    return tuple(checks)


def picture_checks(gate: Gate, found: PictureRecord | None) -> tuple[Check, ...]:
    """Compare what answers about pictures lost with the threshold for it, where one is set."""
    if gate.max_picture_kl is None:
        return ()
    lost = None if found is None or found.divergence is None else found.divergence.kl_divergence.value
    detail = (
        "" if lost is not None else "it was not asked about pictures" if found is None else "no --reference was given"
    )
    # What is not a number is beyond every limit.
    passed = None if lost is None else lost <= gate.max_picture_kl
    return (Check(name=PICTURES, passed=passed, value=lost, required=gate.max_picture_kl, detail=detail),)


def worst_checks(gate: Gate, by_backend: Mapping[Backend, DivergenceRecord]) -> tuple[Check, ...]:
    """Each threshold by the backend that keeps it worst; none at all: nothing was compared."""
    if not by_backend:
        return threshold_checks(gate, None)
    checks = {backend: threshold_checks(gate, found) for backend, found in by_backend.items()}
    return tuple(_worst(dict(zip(checks, each, strict=True))) for each in zip(*checks.values(), strict=True))


def _worst(checks: dict[Backend, Check]) -> Check:
    """The check that failed, or was not decided, or is nearest to its limit, and what the others have."""

    def badness(backend: Backend) -> tuple[int, float]:
        check = checks[backend]
        value = check.value if isinstance(check.value, float) else 0.0
        return (True, None, False).index(check.passed), -value if check.name == "min_top1_agreement" else value

    worst = max(checks, key=badness)
    others = [f"{backend} {check.value:.4g}" for backend, check in checks.items() if backend != worst]
    found = checks[worst]
    if not others or found.detail:
        return found
    return found.model_copy(update={"detail": f"the {worst} graph; {', '.join(others)}"})


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The least favourable; None of none."""
    order: tuple[Verdict, ...] = ("equivalent", "cannot tell", "worse")
    return max(verdicts, key=order.index, default=None)


def verdict(divergence: DivergenceRecord, spec: EvalSpec) -> Verdict:
    """Whether the candidate is equivalent to its reference by the spec's margins, worse, or the text cannot tell."""
    found = judge(
        divergence.kl_divergence,
        divergence.log_perplexity_change,
        kl_margin=spec.kl_margin,
        perplexity_margin=spec.perplexity_margin,
    )
    # A lower bound below the margin shows nothing.
    return "cannot tell" if found == "equivalent" and not divergence.exact else found


def finite_check(num_nonfinite: int, num_tokens: int) -> Check:
    """Every token's probability is a number."""
    return Check(
        name="finite_scores",
        passed=num_nonfinite == 0,
        value=f"{num_nonfinite} of {num_tokens} tokens NaN or infinite",
        required="none",
    )


def carried(earlier: GateRecord, now: GateRecord) -> GateRecord:
    """The gate with each check that failed earlier and was not decided this time."""
    decided = {check.name for check in now.checks if check.passed is not None}
    kept = [
        check.model_copy(update={"detail": EARLIER})
        for check in earlier.checks
        if check.passed is False and check.name not in decided
    ]
    names = {check.name for check in kept}
    return gate_record([*kept, *(check for check in now.checks if check.name not in names)])


def gate_record(checks: Iterable[Check]) -> GateRecord:
    """Failed where any check failed; else by the thresholds alone, as a probe that passes promises nothing."""
    made = tuple(checks)
    thresholds = [check for check in made if check.name in Gate.model_fields]
    if any(check.passed is False for check in made):
        return GateRecord(status="failed", passed=False, checks=made)
    if not thresholds:
        return GateRecord(status="no_thresholds", passed=None, checks=made)
    if any(check.passed is None for check in thresholds):
        return GateRecord(status="not_judged", passed=None, checks=made)
    return GateRecord(status="passed", passed=True, checks=made)
