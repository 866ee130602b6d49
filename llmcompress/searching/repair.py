"""Changes of a plan that measurements prefer to what was predicted, within a time.

What single weights are predicted to cost is off by a fifth or so, and of two plans that are all but equal by prediction
either may be the better one. Swaps (one weight takes more bytes, another one fewer) and plans that are the best under
other errors of the predictions are scored on the windows of the sensitivity; one that loses less than the plan beyond
noise takes its place.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llmcompress.report.search import RepairRecord
from llmcompress.searching.candidates import Candidate, Table
from llmcompress.searching.contest import Output, Planned, Workshop, gain_over
from llmcompress.searching.solver import Plan, key_of, least_damage, total_bytes
from llmcompress.system.memory import memory, own_bytes
from llmcompress.system.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcompress.evaluation.measurement import Scored

RELATIVE_ERROR = 0.2
"""Of what a weight is predicted to cost, as measured of single weights of a llama of 8 M parameters."""
NUM_SWAPS = 1000
"""Of the most hopeful that are looked at in a round."""
NUM_DRAWS = 8
"""Of other errors of the predictions, in a round."""


def repaired(shop: Workshop, table: Table, planned: Planned, budget_s: float) -> tuple[Planned, RepairRecord]:
    """The plan after the changes that were kept, none of which takes more than its limit of bytes.

    Args:
        shop: Where plans are made and scored.
        table: What weights cost.
        planned: The best plan as predicted.
        budget_s: No round begins that would end later, by the time that the longest one took.

    The runtime keeps some memory of every model that it has compiled: no round begins either where that of another two
    is not there.
    """
    started, longest_s, grown = time.monotonic(), 0.0, 0
    (first,) = shop.score([planned.directory], shop.looked_at)
    best, scored, num_measured, num_kept = planned, first, 0, 0
    seen, caches = {key_of(planned.plan)}, [first.cache]
    while (passed_s := time.monotonic() - started) + longest_s <= budget_s and memory().available > 2 * grown:
        before = own_bytes()
        shop.progress(Progress("measure changes of the plan", int(passed_s), math.ceil(budget_s), "s"))
        new = list(itertools.islice(_unseen(proposals(table, best, seed=num_measured), seen), shop.at_once))
        if not new:
            break
        found = _measured(shop, table, new, best.max_bytes, num_measured)
        num_measured += len(new)
        caches += [each.cache for _, each in found]
        better = min(found, key=lambda each: float(each[1].scores.values["kl"].mean()), default=(best, scored))
        gain = gain_over(better[1], scored, shop.spec.confidence)
        if gain.low is not None and gain.low > 0:
            best, scored, num_kept = better[0]._replace(max_bytes=best.max_bytes), better[1], num_kept + 1
        for other, _ in found:
            if other.directory != best.directory:
                shutil.rmtree(other.directory)
        longest_s = max(longest_s, time.monotonic() - started - passed_s)
        grown = max(grown, own_bytes() - before)
    # Until here a search that was killed finds them again.
    for cache in caches:
        cache.forget()
    gained = gain_over(scored, first, shop.spec.confidence) if num_kept else None
    return best, RepairRecord(num_measured=num_measured, num_kept=num_kept, gain=gained)


def proposals(table: Table, best: Planned, *, seed: int) -> Iterator[Plan]:
    """By turns swaps, most hopeful first, and plans for predictions with other errors.

    Args:
        table: What weights cost.
        best: The plan to change.
        seed: Of the errors.
    """
    max_bytes = best.max_bytes - (best.size_bytes - total_bytes(best.plan))
    drawn = itertools.islice(redrawn(table.permitted, max_bytes, seed), NUM_DRAWS)
    for pair in itertools.zip_longest(swaps(table.permitted, best.plan, max_bytes), drawn):
        yield from (plan for plan in pair if plan is not None)


def swaps(candidates: Sequence[Candidate], plan: Plan, max_bytes: int) -> list[Plan]:
    """Plans in which one weight takes more bytes and loses less, and another one takes fewer, most hopeful first.

    Hope is the expected gain, if what a weight is predicted to cost has a normal error (Mockus 1978).

    Args:
        candidates: All of them.
        plan: The one to change.
        max_bytes: Of the weights of a plan.

    Returns:
        At most ``NUM_SWAPS``.
    """
    import numpy as np
    from scipy.special import ndtr

    steps = [(each, plan[each.weight]) for each in candidates]
    more = [new for new, old in steps if new.size_bytes > old.size_bytes and new.kl_divergence < old.kl_divergence]
    fewer = [new for new, old in steps if new.size_bytes < old.size_bytes]
    if not (more and fewer):
        return []

    def changes(taken: Sequence[Candidate]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        pairs = [(each, plan[each.weight]) for each in taken]
        added = np.array([new.size_bytes - old.size_bytes for new, old in pairs])
        lost = np.array([new.kl_divergence - old.kl_divergence for new, old in pairs])
        return np.array([each.weight for each in taken]), added, lost

    (names, added, lost), (other_names, other_added, other_lost) = changes(more), changes(fewer)
    fits = added[:, None] + other_added <= max_bytes - total_bytes(plan)
    fits &= names[:, None] != other_names
    error = RELATIVE_ERROR * np.hypot(lost[:, None], other_lost) + 1e-30
    share = -(lost[:, None] + other_lost) / error
    hope = error * (share * ndtr(share) + np.exp(-(share**2) / 2) / math.sqrt(2 * math.pi))
    ranked = np.argsort(-np.where(fits, hope, -1), axis=None)[: min(NUM_SWAPS, int(fits.sum()))]
    chosen = [(more[place // len(fewer)], fewer[place % len(fewer)]) for place in ranked]
    return [{**plan, larger.weight: larger, smaller.weight: smaller} for larger, smaller in chosen]


def redrawn(
    candidates: Sequence[Candidate], max_bytes: int, seed: int, error: float = RELATIVE_ERROR
) -> Iterator[Plan]:
    """Plans that are the best if each weight's prediction is off by a factor of its own, without end."""
    import numpy as np

    random = np.random.default_rng(seed)
    predicted = {(each.weight, each.format): each for each in candidates}
    names = sorted({each.weight for each in candidates})
    while True:
        factors = dict(zip(names, np.exp(error * random.standard_normal(len(names))), strict=True))
        drawn = [each._replace(kl_divergence=each.kl_divergence * factors[each.weight]) for each in candidates]
        plan = least_damage(drawn, max_bytes)
        assert plan is not None
        yield {name: predicted[name, each.format] for name, each in plan.items()}


def _measured(
    shop: Workshop, table: Table, plans: Sequence[Plan], max_bytes: int, number: int
) -> list[tuple[Planned, Scored]]:
    """Those whose files fit, made and scored."""
    fitting = []
    for place, plan in enumerate(plans, number):
        found = shop.planned(plan, table, Output(shop.place / f"change-{place}"))
        if found.size_bytes <= max_bytes:
            fitting.append(found)
        else:
            shutil.rmtree(found.directory)
    scored = shop.score([each.directory for each in fitting], shop.looked_at) if fitting else ()
    return list(zip(fitting, scored, strict=True))


def _unseen(plans: Iterator[Plan], seen: set[frozenset[tuple[str, str]]]) -> Iterator[Plan]:
    """Those that are not among those seen, to which each is added."""
    for plan in plans:
        if key_of(plan) not in seen:
            seen.add(key_of(plan))
            yield plan
