"""What predictions are off by, told by a few plans that are measured on the windows of the sensitivity.

The Fisher information says what a small error costs, and its Kronecker factors leave out what the inputs of a layer
have to do with the gradients of its outputs. How much that is differs by method and by kind of weight, and large
damages are more than the sum of their parts. The best plans of the limit and of sizes next to it are measured, and
single kinds of weights with all others at 8 bits; a ridge regression of logarithms finds a factor for each method, kind
and block, and the growth of the whole.
"""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.report.search import CorrectionRecord
from llmcompress.searching.candidates import BACKUP, Candidate, Growth, Table
from llmcompress.searching.contest import Output, Workshop
from llmcompress.searching.solver import Plan, key_of
from llmcompress.system.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

OF_METHOD, OF_KIND, OF_BLOCK = 0.2, 0.1, 0.05
"""Standard deviations of the logarithms of factors, before anything is measured."""
OF_GROWTH = 0.3
"""The same of the growth's excess."""
NOISE = 0.02
"""Of the logarithm of what is measured, next to what factors cannot tell."""


class MeasuredPlan(NamedTuple):
    """A plan and what it loses, in nats per token."""

    plan: Plan
    kl_divergence: float


def corrected(shop: Workshop, table: Table, plans: Sequence[Plan]) -> tuple[Table, CorrectionRecord]:
    """The table after plans were measured on the windows of the sensitivity.

    Args:
        shop: Where plans are made and scored.
        table: As predicted.
        plans: As ``probes`` takes them.
    """
    chosen = probes(table, plans, shop.spec.num_probes)
    found = []
    for number in range(0, len(chosen), shop.at_once):
        shop.progress(Progress("measure single kinds of weights", number, len(chosen), "plans"))
        found += _measured(shop, table, chosen[number : number + shop.at_once], number)
    shop.progress(Progress("measure single kinds of weights", len(chosen), len(chosen), "plans"))
    factors, growth = fit(found)
    after = table._replace(candidates=[_scaled(each, factors) for each in table.candidates], growth=growth)
    record = CorrectionRecord(
        num_measured=len(found),
        error_before=_median_error(table, found),
        error_after=_median_error(after, found),
        factors={trait: math.exp(factor) for trait, factor in sorted(factors.items())},
        growth=growth.excess / 2,
    )
    return after, record


def probes(table: Table, plans: Sequence[Plan], count: int) -> list[Plan]:
    """Plans to measure: those given, and of the first one each kind of weights alone, with all others at 8 bits.

    Args:
        table: What weights cost.
        plans: The one that matters most first.
        count: Of plans; kinds that are predicted to lose most come first.
    """
    backup = {each.weight: each for each in table.candidates if each.format == BACKUP}
    whole = list({key_of(each): each for each in plans}.values())
    kinds: dict[str, float] = {}
    for each in plans[0].values():
        if each.format != BACKUP:
            kinds[kind_of(each.weight)] = kinds.get(kind_of(each.weight), 0.0) + each.kl_divergence
    alone = (
        {name: each if kind_of(name) == kind else backup.get(name, each) for name, each in plans[0].items()}
        for kind in sorted(kinds, key=lambda each: -kinds[each])
    )
    return list(itertools.islice(itertools.chain(whole, alone), count))


def fit(found: Sequence[MeasuredPlan]) -> tuple[dict[str, float], Growth]:
    """Logarithms of factors, by trait, and the growth of the whole, that explain what was measured.

    The most likely ones, if each is drawn from a normal distribution around no correction, and so is the noise.
    """
    import numpy as np
    from scipy.optimize import least_squares

    every = [each for plan, _ in found for each in plan.values()]
    names = sorted({trait for each in every for trait in traits(each)})
    place = {name: number for number, name in enumerate(names)}
    # A weight of fewer traits has the last number, whose factor is 1, in place of the others.
    width = max(len(traits(each)) for each in every)
    padded = {
        each: [place[trait] for trait in traits(each)] + [len(names)] * (width - len(traits(each))) for each in every
    }
    predicted = [np.array([each.kl_divergence for each in plan.values()]) for plan, _ in found]
    numbers = [np.array([padded[each] for each in plan.values()]) for plan, _ in found]
    measured = np.log([max(each.kl_divergence, 1e-30) for each in found])
    scale = max(float(each.sum()) for each in predicted)

    def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
        factors, growth = np.append(values[:-1], 0.0), Growth(float(values[-1]), scale)
        sums = [
            growth.of_sum(float(alone @ np.exp(factors[of_each].sum(1))))
            for alone, of_each in zip(predicted, numbers, strict=True)
        ]
        return np.concatenate([(np.log(np.maximum(sums, 1e-30)) - measured) / NOISE, values / spreads])

    lower = np.append(np.full(len(names), -np.inf), -0.5)
    spreads = np.array([*map(_spread, names), OF_GROWTH])
    values = least_squares(residuals, np.zeros(len(names) + 1), bounds=(lower, np.inf)).x
    return dict(zip(names, map(float, values), strict=False)), Growth(float(values[-1]), scale)


def kind_of(weight: str) -> str:
    """A name without its numbers: the weights that do the same in each block."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", weight)


def traits(candidate: Candidate) -> tuple[str, ...]:
    """What a candidate has in common with others: how it is made, what it does, and where."""
    block = re.search(r"\.(\d+)\.", candidate.weight)
    found = (f"{candidate.format.mode}, {candidate.format.method}", kind_of(candidate.weight))
    return found if block is None else (*found, f"block {block[1]}")


def _spread(trait: str) -> float:
    if "," in trait:
        return OF_METHOD
    return OF_BLOCK if trait.startswith("block ") else OF_KIND


def _scaled(candidate: Candidate, factors: Mapping[str, float]) -> Candidate:
    factor = math.exp(sum(factors.get(trait, 0.0) for trait in traits(candidate)))
    return candidate._replace(kl_divergence=candidate.kl_divergence * factor)


def _measured(shop: Workshop, table: Table, plans: Sequence[Plan], number: int) -> list[MeasuredPlan]:
    made = [
        shop.planned(plan, table, Output(shop.place / f"probe-{place}")).directory
        for place, plan in enumerate(plans, number)
    ]
    scored = shop.score(made, shop.looked_at)
    for directory, each in zip(made, scored, strict=True):
        shutil.rmtree(directory)
        each.cache.forget()
    lost = [float(each.scores.values["kl"].mean()) for each in scored]
    return [MeasuredPlan(plan, kl) for plan, kl in zip(plans, lost, strict=True)]


def _median_error(table: Table, found: Sequence[MeasuredPlan]) -> float:
    import numpy as np

    ratios = [table.predicted(table.same(plan)) / kl for plan, kl in found]
    return float(np.median(np.abs(np.array(ratios) - 1)))
