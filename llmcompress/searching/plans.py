"""A plan as a recipe, and the recipes that it is held against: one format for all, and NNCF's own mixed precision."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from llmcompress.searching.candidates import BACKUP, REST, Candidate, Table, uniform
from llmcompress.searching.solver import Plan
from llmcompress.spec import Calibration, Recipe, WeightCompression
from llmcompress.spec.modes import INT8
from llmcompress.spec.search import Format


class Rival(NamedTuple):
    """A recipe to compare with."""

    name: str
    kind: Literal["uniform", "mixed"]
    recipe: Recipe
    predicted_kl: float | None


def plan_recipe(plan: Plan, table: Table, calibration: Calibration | None = None) -> Recipe:
    """The recipe that makes a plan's bytes.

    Args:
        plan: What each weight takes.
        table: Its embeddings and head always have a rule: the format of the others is not for them.
        calibration: What weights by GPTQ are made by.
    """
    uses_gptq = any(each.format.method == "gptq" for each in plan.values())
    counts = Counter({each.format: 0 for each in plan.values() if not uses_gptq or each.format.method == "gptq"})
    for name, each in plan.items():
        if name not in table.special and name != REST and each.format in counts:
            counts[each.format] += each.num_parameters
    base = max(counts, key=lambda each: (counts[each], str(each)))
    fields: dict[str, Any] = _format_fields(base)
    if uses_gptq:
        fields |= {"gptq": True, "statistics": "original", "gptq_order": "activations"}
    if base.mode not in INT8 and base.group_size != -1:
        fields["group_size_fallback"] = "adjust"
    fields["rules"] = [
        {
            "match": name if name == REST else re.escape(name),
            **_format_fields(each.format),
            **_method_fields(each.format, uses_gptq=uses_gptq),
        }
        for name, each in sorted(plan.items(), key=lambda item: (item[0] == REST, _natural(item[0])))
        if REST in plan or each.format != base or (name in table.special and base.mode not in INT8)
    ]
    # Groups of what is only looked up are none that activations meet.
    met = [each.format.group_size for name, each in plan.items() if name not in table.looked_up]
    groups = min((size for size in met if size > 0), default=None)
    return _recipe("searched", fields, calibration if uses_gptq else None, groups)


def rivals(table: Table, max_bytes: int, calibration: Calibration | None = None) -> Iterator[Rival]:
    """The best uniform format by prediction whose weights fit, and NNCF's mixtures of 4 and 8 bits that should.

    Args:
        table: ``BACKUP`` is among its formats, which NNCF gives what is special.
        max_bytes: Of the weights.
        calibration: What those by GPTQ are made by.
    """
    formats: dict[Format, dict[str, Candidate]] = {}
    for each in table.candidates:
        formats.setdefault(each.format, {})[each.weight] = each
    backup, fitting = formats[BACKUP], []
    for wanted, of_format in formats.items():
        others = {name: each for name, each in of_format.items() if name not in table.special}
        plan = {**backup, **others}
        is_whole = others.keys() | table.special >= backup.keys()
        size = sum(each.size_bytes for each in plan.values())
        if is_whole and size <= max_bytes:
            fitting.append((table.predicted(plan), size, wanted))
    if not fitting:
        return
    damage, _, best = min(fitting)
    yield Rival(str(best), "uniform", uniform_recipe("uniform", best, calibration), damage)
    for wanted in dict.fromkeys((best, min(fitting, key=lambda each: each[1])[2])):
        ratio = _ratio(formats[wanted], backup, table.special, max_bytes)
        if wanted.mode.startswith("int4") and 0 < ratio < 1:
            yield Rival(f"{wanted}, ratio {ratio}", "mixed", uniform_recipe("mixed", wanted, calibration, ratio), None)


def uniform_recipe(name: str, wanted: Format, calibration: Calibration | None, ratio: float = 1.0) -> Recipe:
    """One format for a share of all layers; by GPTQ as NNCF has it, later layers after what became of earlier ones."""
    fields = uniform(wanted).model_dump(exclude_defaults=True)
    if ratio < 1:
        fields["ratio"] = ratio
    groups = "weights" if wanted.mode not in INT8 and wanted.group_size > 0 else None
    return _recipe(name, fields, calibration if wanted.method == "gptq" else None, groups)


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
    return {"mode": wanted.mode} if wanted.mode in INT8 else {"mode": wanted.mode, "group_size": wanted.group_size}


def _method_fields(wanted: Format, *, uses_gptq: bool) -> dict[str, Any]:
    # GPTQ leaves 8 bits alone by itself.
    return {"method": wanted.method} if uses_gptq and wanted.mode not in INT8 else {}


def _recipe(
    name: str, weights: dict[str, Any], calibration: Calibration | None, activation_groups: int | str | None
) -> Recipe:
    compression = WeightCompression.model_validate(weights)
    runtime = {"dynamic_quantization_group_size": activation_groups}
    return Recipe.model_validate({"name": name, "weights": compression, "calibration": calibration, "runtime": runtime})


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
