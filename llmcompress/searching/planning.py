"""Plans that keep their limits as they come out: of bytes in the file, of KL divergence on the windows looked at."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path

from llmcompress.errors import UsageError
from llmcompress.evaluation.statistics import divergence
from llmcompress.report.search import FurtherSize
from llmcompress.searching.candidates import Table
from llmcompress.searching.contest import Output, Planned, Workshop
from llmcompress.searching.solver import least_bytes, least_damage, smallest, total_bytes, total_kl

MAX_TRIES = 5
"""Of plans until one keeps the limit as measured."""
CAUTION = 0.98
"""Of the limit of KL divergence, after a plan that missed it."""


def planned_for(shop: Workshop, table: Table) -> Planned:
    """The best plan that keeps the spec's limit.

    Raises:
        UsageError: No plan does.
    """
    spec, output = shop.spec, Output(shop.place / "searched")
    if spec.max_kl is not None:
        return _of_quality(shop, table, spec.max_kl, output)
    max_bytes = spec.max_bytes or int(shop.loaded.num_parameters * (spec.bits_per_weight or 0) / 8)
    where = "`max_bytes`" if spec.max_bytes else "`bits_per_weight`"
    planned = _of_size(shop, table, (max_bytes, where), 0, output)
    for size in spec.front:
        _require_possible(table, (size, "`front`"), _rest(planned))
    return planned


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
                predicted_kl=total_kl(further.plan),
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


def _of_size(shop: Workshop, table: Table, limit: tuple[int, str], rest: int, output: Output) -> Planned:
    max_bytes, _ = limit
    for _ in range(MAX_TRIES):
        _require_possible(table, limit, rest)
        plan = least_damage(table.permitted, max_bytes - rest)
        assert plan is not None
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
    limit = max_kl
    for _ in range(MAX_TRIES):
        plan = least_bytes(table.permitted, limit)
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


def _rest(planned: Planned) -> int:
    """Bytes of the file that are no weights of the plan's."""
    return planned.size_bytes - total_bytes(planned.plan)
