"""The best format for each weight under a limit: a multiple-choice knapsack, solved by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array

from llmcompress.searching.candidates import Candidate
from llmcompress.system.standard_output import without_lines

TIME_LIMIT_S = 30.0
GAP = 1e-3
"""Between the plan and a bound of the best one, relative, at which the solver stops."""

SMALL = 1e-3
"""What all bytes are worth, as a share of all time, where time is what counts."""

Plan = Mapping[str, Candidate]
"""By the weight's name."""
_Cost = Callable[[Candidate], float]


def key_of(plan: Plan) -> frozenset[tuple[str, str]]:
    """What tells plans apart."""
    return frozenset((name, str(each.format)) for name, each in plan.items())


def total_bytes(plan: Plan) -> int:
    """Of the weights."""
    return sum(candidate.size_bytes for candidate in plan.values())


def total_kl(plan: Plan) -> float:
    """Predicted of each weight alone, together."""
    return sum(candidate.kl_divergence for candidate in plan.values())


def total_seconds(plan: Plan) -> float:
    """That a token takes to be multiplied by the weights."""
    return sum(candidate.seconds for candidate in plan.values())


def least_damage(candidates: Sequence[Candidate], max_bytes: int) -> Plan | None:
    """The plan of least predicted KL divergence at no more bytes; None: even the smallest is larger."""
    return _solved(candidates, _kl_divergence, ((_size_bytes, max_bytes),))


def least_bytes(candidates: Sequence[Candidate], max_kl: float) -> Plan | None:
    """The smallest plan of no more predicted KL divergence; None: even the best loses more."""
    return _solved(candidates, _size_bytes, ((_kl_divergence, max_kl),))


def least_damage_in_time(candidates: Sequence[Candidate], max_seconds: float) -> Plan | None:
    """The plan of least predicted KL divergence in no more time a token; None: even the fastest takes longer."""
    return _solved(candidates, _kl_divergence, ((_seconds, max_seconds),)) if max_seconds > 0 else None


def fastest(candidates: Sequence[Candidate], max_kl: float = math.inf, max_bytes: float = math.inf) -> Plan | None:
    """The plan of least time a token at no more predicted KL divergence and bytes, and of equals a small one."""
    limits = [(cost, limit) for cost, limit in ((_kl_divergence, max_kl), (_size_bytes, max_bytes)) if limit < math.inf]
    per_byte = SMALL * sum(map(_seconds, candidates)) / sum(map(_size_bytes, candidates))
    return _solved(candidates, lambda each: each.seconds + per_byte * each.size_bytes, limits)


def smallest(candidates: Sequence[Candidate]) -> Plan:
    """The plan of fewest bytes."""
    return _each(candidates, lambda each: (each.size_bytes, each.kl_divergence))


def front(candidates: Sequence[Candidate], num_points: int) -> list[Plan]:
    """Plans of least damage at sizes from the smallest that is possible to that of the best formats."""
    best = _each(candidates, lambda each: (each.kl_divergence, each.size_bytes))
    sizes = np.geomspace(total_bytes(smallest(candidates)), total_bytes(best), num_points)
    return [plan for size in sizes if (plan := least_damage(candidates, int(np.ceil(size)))) is not None]


def kl_per_further_byte(candidates: Sequence[Candidate], max_bytes: int) -> float:
    """By how much the least predicted KL divergence falls with each further byte, the dual of the limit.

    It is that of the linear program in which a weight may be split among formats, whose losses lie on the lower hull of
    the plans'. 0 where more bytes are of no use.
    """
    losses = np.array([each.kl_divergence for each in candidates])
    sizes = np.array([[each.size_bytes for each in candidates]], float) / max_bytes
    scale = max(losses.mean(), 1e-30)
    found = linprog(
        losses / scale,
        A_ub=sizes,
        b_ub=[1],
        A_eq=(one := _one_each(candidates)),
        b_eq=np.ones(one.shape[0]),
        bounds=(0, 1),
    )
    return float(-found.ineqlin.marginals[0]) * scale / max_bytes if found.success else 0.0


def _kl_divergence(candidate: Candidate) -> float:
    return candidate.kl_divergence


def _size_bytes(candidate: Candidate) -> float:
    return candidate.size_bytes


def _seconds(candidate: Candidate) -> float:
    return candidate.seconds


def _each(candidates: Sequence[Candidate], key: Callable[[Candidate], tuple[float, float]]) -> Plan:
    plan: dict[str, Candidate] = {}
    for candidate in sorted(candidates, key=key):
        plan.setdefault(candidate.weight, candidate)
    return plan


def _solved(candidates: Sequence[Candidate], objective: _Cost, limits: Sequence[tuple[_Cost, float]]) -> Plan | None:
    num = len(candidates)
    costs = np.array([objective(each) for each in candidates], float)
    limited = [np.array([[cost(each) for each in candidates]], float) / limit for cost, limit in limits]
    # HiGHS's tolerances are absolute: everything is brought to the order of one.
    # HiGHS announces a second solve of its own on standard output.
    with without_lines(b"HighsMipSolverData"):
        found = milp(
            costs / max(costs.mean(), 1e-30),
            integrality=np.ones(num),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(_one_each(candidates), 1, 1),
                *(LinearConstraint(each, ub=1) for each in limited),
            ],
            options={"time_limit": TIME_LIMIT_S, "mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    return {each.weight: each for each, taken in zip(candidates, found.x, strict=True) if taken > 0.5}


def _one_each(candidates: Sequence[Candidate]) -> Any:
    """A row for each weight, with ones where its candidates are."""
    rows = {name: row for row, name in enumerate(sorted({each.weight for each in candidates}))}
    num = len(candidates)
    place = ([rows[each.weight] for each in candidates], range(num))
    return coo_array((np.ones(num), place), shape=(len(rows), num))
