"""Plans that keep their limits as they come out: of bytes in the file, of KL divergence on the windows looked at."""

from __future__ import annotations

import shutil
import time
from decimal import Decimal
from pathlib import Path

from llmcompress.benchmarking.token_times import model_times
from llmcompress.errors import UsageError
from llmcompress.evaluation.statistics import divergence
from llmcompress.report.search import FurtherSize, SpeedRecord
from llmcompress.searching.candidates import Table
from llmcompress.searching.contest import Output, Planned, Workshop
from llmcompress.searching.solver import (
    Plan,
    fastest,
    least_bytes,
    least_damage,
    least_damage_in_time,
    smallest,
    total_bytes,
    total_kl,
    total_seconds,
)

MAX_TRIES = 5
"""Of plans until one keeps the limit as measured."""
CAUTION = 0.98
"""Of the limit of KL divergence, after a plan that missed it."""
MORE_DAMAGE = 0.05
"""That a plan for speed is predicted to lose more than the best of its size, relative."""
NEAR = (0.87, 1.15)
"""Sizes next to a plan's, relative, that tell what predictions near it are off by."""
PRODUCTS = 0.8
"""Share of a token's time that products take, before a model was timed."""


def planned_for(shop: Workshop, table: Table) -> Planned:
    """The best plan that keeps the spec's limit.

    Raises:
        UsageError: No plan does.
    """
    spec, output = shop.spec, Output(shop.place / "searched")
    if spec.max_kl is not None:
        return _of_quality(shop, table, spec.max_kl, output)
    if spec.min_decode is not None:
        return _of_speed(shop, table, spec.min_decode, output)
    where = "`max_bytes`" if spec.max_bytes else "`bits_per_weight`"
    planned = _of_size(shop, table, (_max_bytes(shop), where), 0, output)
    for size in spec.front:
        _require_possible(table, (size, "`front`"), _rest(planned))
    return planned


def first_plans(shop: Workshop, table: Table) -> list[Plan]:
    """The best plans of the spec's limit, of sizes next to it and of its further ones, before a file is written."""
    spec = shop.spec
    if spec.max_kl is not None:
        found = [least_bytes(table.permitted, table.growth.sum_of(spec.max_kl))]
    elif spec.min_decode is not None:
        found = [least_damage_in_time(table.permitted, PRODUCTS / spec.min_decode) or fastest(table.permitted)]
    else:
        found = [least_damage(table.permitted, _max_bytes(shop))]
    sizes = [int(share * total_bytes(found[0])) for share in NEAR] if found[0] else []
    found += [least_damage(table.permitted, size) for size in (*sizes, *spec.front)]
    return [each for each in found if each is not None]


def further_sizes(shop: Workshop, table: Table, planned: Planned, output: Output) -> tuple[FurtherSize, ...]:
    """Write the best plan of each further size next to the output, and score them all on the held-out windows."""
    made = []
    for size in shop.spec.front:
        started, place = time.perf_counter(), output._replace(directory=further_directory(output.directory, size))
        further = _of_size(shop, table, (size, "`front`"), _rest(planned), place)
        made.append((further, time.perf_counter() - started))
    if not made:
        return ()
    scored = shop.score([further.directory for further, _ in made], shop.held_out)
    found = []
    for (further, seconds), each in zip(made, scored, strict=True):
        lost = divergence(each.scores, shop.spec.confidence)
        found.append(
            FurtherSize(
                directory=further.directory.name,
                size_bytes=further.size_bytes,
                predicted_kl=table.predicted(further.plan),
                kl_divergence=lost.kl_divergence,
                top1_agreement=lost.top1_agreement,
                write_s=seconds,
            )
        )
        each.cache.forget()
    return tuple(found)


def further_directory(output: Path, size: int) -> Path:
    """Where the plan of a further size goes."""
    unit, of_unit = ("GB", 10**9) if size >= 10**9 else ("MB", 10**6)
    return output.with_name(f"{output.name}-{(Decimal(size) / of_unit).normalize():f}{unit}")


def _max_bytes(shop: Workshop) -> int:
    return shop.spec.max_bytes or int(shop.loaded.num_parameters * (shop.spec.bits_per_weight or 0) / 8)


def _of_size(shop: Workshop, table: Table, limit: tuple[int, str], rest: int, output: Output) -> Planned:
    max_bytes, _ = limit
    for _ in range(MAX_TRIES):
        _require_possible(table, limit, rest)
        plan = least_damage(table.permitted, max_bytes - rest)
        assert plan is not None
        if shop.spec.optimize_for != "size":
            plan = fastest(table.permitted, total_kl(plan) * (1 + MORE_DAMAGE), max_bytes - rest) or plan
        made = shop.planned(plan, table, output)
        if made.size_bytes <= max_bytes:
            return made._replace(max_bytes=max_bytes)
        # Norms, tables and shapes are no weights of the plan's.
        rest, output = max(_rest(made), rest + 1), output._replace(overwrite=True)
    raise _too_small(table, limit, rest)


def _require_possible(table: Table, limit: tuple[int, str], rest: int) -> None:
    if total_bytes(smallest(table.permitted)) + rest > limit[0]:
        raise _too_small(table, limit, rest)


def _too_small(table: Table, limit: tuple[int, str], rest: int) -> UsageError:
    max_bytes, where = limit
    least = total_bytes(smallest(table.permitted)) + rest
    return UsageError(
        f"no plan of these formats takes at most {max_bytes:,} bytes; the smallest takes about {least:,}",
        where=where,
        hint="give more bytes, or `candidates` of fewer bits",
    )


def _of_quality(shop: Workshop, table: Table, max_kl: float, output: Output) -> Planned:
    limit = table.growth.sum_of(max_kl)
    for _ in range(MAX_TRIES):
        plan = (least_bytes if shop.spec.optimize_for == "size" else fastest)(table.permitted, limit)
        if plan is None:
            break
        made = shop.planned(plan, table, output)
        (scored,) = shop.score([made.directory], shop.looked_at)
        lost = divergence(scored.scores, shop.spec.confidence).kl_divergence.value
        if lost <= max_kl:
            return made
        limit *= CAUTION * max_kl / lost
    raise UsageError(
        f"no plan of these formats keeps the KL divergence at {max_kl:g} nats per token",
        where="`max_kl`",
        hint="permit more, or give `candidates` of more bits",
    )


def _of_speed(shop: Workshop, table: Table, min_decode: float, output: Output) -> Planned:
    most_s, rest_s = 1 / min_decode, 0.0
    first = fastest(table.permitted)
    assert first is not None
    plan = first
    for _ in range(MAX_TRIES):
        made = shop.planned(plan, table, output)
        (seconds,) = model_times([made.directory], "decode")
        if seconds <= most_s and plan is not first:
            return made
        if seconds > most_s and plan is first:
            raise UsageError(
                f"no plan of these formats decodes {min_decode:g} tokens/s here; the fastest does {1 / seconds:.1f}",
                where="`min_decode`",
                hint="ask for fewer, or give `candidates` of fewer bits",
            )
        # What a model takes beyond its products, by the slowest of those that were tried.
        rest_s, output = max(rest_s, seconds - total_seconds(plan)), output._replace(overwrite=True)
        plan = least_damage_in_time(table.permitted, most_s - rest_s) or first
        if plan is first:
            break
    return shop.planned(first, table, output)


def speed_record(shop: Workshop, table: Table, planned: Planned) -> SpeedRecord:
    """The plan's speed next to that of the plan of no more bytes that is predicted to lose least, run in turn."""
    phase = shop.spec.phase
    assert phase is not None
    plan = least_damage(table.permitted, total_bytes(planned.plan))
    assert plan is not None
    other = shop.planned(plan, table, Output(shop.place / "for-size"))
    ours, theirs = model_times([planned.directory, other.directory], phase)
    shutil.rmtree(other.directory)
    saved = total_seconds(plan) - total_seconds(planned.plan)
    return SpeedRecord(
        phase=phase,
        tokens_per_s=1 / ours,
        for_size_tokens_per_s=1 / theirs,
        for_size_predicted_kl=table.predicted(plan),
        predicted_gain=theirs / (theirs - saved) - 1,
    )


def _rest(planned: Planned) -> int:
    """Bytes of the file that are no weights of the plan's."""
    return planned.size_bytes - total_bytes(planned.plan)
