"""A plan as a recipe, and the recipes that it is held against: one format for all, and NNCF's own mixed precision."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from llmcompress.searching.candidates import Candidate, uniform
from llmcompress.searching.solver import Plan
from llmcompress.spec import Recipe, WeightCompression
from llmcompress.spec.modes import INT8
from llmcompress.spec.search import Format

BACKUP = Format("int8_asym", -1)
"""What NNCF gives embeddings and the head beside a format of fewer bits."""


class Rival(NamedTuple):
    """A recipe to compare with."""

    name: str
    kind: Literal["uniform", "mixed"]
    recipe: Recipe
    predicted_kl: float | None


def plan_recipe(plan: Plan, special: frozenset[str]) -> Recipe:
    """The recipe that makes a plan's bytes.

    Args:
        plan: What each weight takes.
        special: Embeddings and the head, which always have a rule: the format of the others is not for them.
    """
    counts = Counter({each.format: 0 for each in plan.values()})
    for name, each in plan.items():
        if name not in special:
            counts[each.format] += each.num_parameters
    base = max(counts, key=lambda each: (counts[each], str(each)))
    fields: dict[str, Any] = _format_fields(base)
    if base.mode not in INT8 and base.group_size != -1:
        fields["group_size_fallback"] = "adjust"
    fields["rules"] = [
        {"match": re.escape(name), **_format_fields(each.format)}
        for name, each in sorted(plan.items(), key=lambda item: _natural(item[0]))
        if each.format != base or (name in special and base.mode not in INT8)
    ]
    return _recipe("searched", fields)


def rivals(candidates: Sequence[Candidate], special: frozenset[str], max_bytes: int) -> Iterator[Rival]:
    """The best uniform format by prediction whose weights fit, and NNCF's mixtures of 4 and 8 bits that should.

    Args:
        candidates: Of all weights, ``BACKUP`` among their formats.
        special: What NNCF gives ``BACKUP``.
        max_bytes: Of the weights.
    """
    table: dict[Format, dict[str, Candidate]] = {}
    for each in candidates:
        table.setdefault(each.format, {})[each.weight] = each
    backup, fitting = table[BACKUP], []
    for wanted, of_format in table.items():
        others = {name: each for name, each in of_format.items() if name not in special}
        plan = {**backup, **others}.values()
        is_whole = others.keys() | special >= backup.keys()
        size, damage = sum(each.size_bytes for each in plan), sum(each.kl_divergence for each in plan)
        if is_whole and size <= max_bytes:
            fitting.append((damage, size, wanted))
    if not fitting:
        return
    damage, _, best = min(fitting)
    yield Rival(str(best), "uniform", _recipe("uniform", uniform(best).model_dump(exclude_defaults=True)), damage)
    for wanted in dict.fromkeys((best, min(fitting, key=lambda each: each[1])[2])):
        ratio = _ratio(table[wanted], backup, special, max_bytes)
        if wanted.mode.startswith("int4") and 0 < ratio < 1:
            fields = uniform(wanted).model_dump(exclude_defaults=True) | {"ratio": ratio}
            yield Rival(f"{wanted}, ratio {ratio}", "mixed", _recipe("mixed", fields), None)


def _ratio(
    of_format: dict[str, Candidate], backup: dict[str, Candidate], special: frozenset[str], max_bytes: int
) -> float:
    """The smallest share of the format that fits, in hundredths."""
    all_backup = sum(each.size_bytes for each in backup.values())
    saved = sum(backup[name].size_bytes - each.size_bytes for name, each in of_format.items() if name not in special)
    # NNCF stops before the layer that would pass the ratio.
    share = (all_backup - max_bytes) / max(saved, 1)
    largest = max((each.num_parameters for name, each in of_format.items() if name not in special), default=0)
    total = sum(each.num_parameters for name, each in of_format.items() if name not in special)
    return round(share + largest / max(total, 1) + 0.005, 2)


def _format_fields(wanted: Format) -> dict[str, Any]:
    return {"mode": wanted.mode} if wanted.mode in INT8 else wanted._asdict()


def _recipe(name: str, weights: dict[str, Any]) -> Recipe:
    compression = WeightCompression.model_validate(weights)
    runtime = {"dynamic_quantization_group_size": "weights"} if compression.integer_group_sizes else {}
    return Recipe.model_validate({"name": name, "weights": compression, "runtime": runtime})


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
