"""What a card says: the variables of its template, from the manifest and the reports."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup
from pydantic import BaseModel as Model

from llmcompress.artifact import Measurements
from llmcompress.publishing.base_model import BaseModel
from llmcompress.publishing.front_matter import front_matter, metadata
from llmcompress.publishing.gate import objection
from llmcompress.publishing.reproduction import commands, lock
from llmcompress.publishing.results import (
    damage_rows,
    device_rows,
    property_rows,
    reference_name,
    result_rows,
    task_rows,
)
from llmcompress.report.compression import CompressionReport, formats_text, group_size_text, weight_kinds
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.record import CalibrationRecord
from llmcompress.report.text import count_text, size_text
from llmcompress.spec import WeightCompression, dump_recipe
from llmcompress.spec.dataset import Calibration

MAX_LAYERS = 1000
"""Rows of the table of layers; the Hub cuts pages that are too long."""


def variables(found: Measurements, base: BaseModel, *, title: str, repo_id: str | None) -> dict[str, Any]:
    """Everything that a template may use; ``docs/cards.md`` describes each."""
    manifest = found.manifest
    return {
        "title": title,
        "repo_id": repo_id,
        "front_matter": Markup(front_matter(metadata(found, base, title=title, repo_id=repo_id))),
        "manifest": _plain(manifest),
        "manifest_sha256": found.manifest_sha256,
        "evaluation": _plain(found.evaluation),
        "quoted": _quoted(found.evaluation),
        "benchmark": _plain(found.benchmark),
        "unused_reports": found.unused,
        "base": base._asdict(),
        "parameters": _parameters(manifest),
        "recipe_yaml": dump_recipe(manifest.recipe),
        "weights": [
            {
                "format": kind.mode,
                "group_size": group_size_text(kind.group_size),
                "num_layers": kind.num_layers,
                "parameters": count_text(kind.num_parameters),
                "share": f"{kind.share:.1%}",
                "size": size_text(kind.size_bytes),
            }
            for kind in weight_kinds(manifest.layers)
        ],
        "parts": [
            {"name": part.name, "weights": formats_text(part.layers), "size": size_text(part.size_bytes)}
            for part in manifest.parts
        ],
        "layers": [
            {
                "name": layer.name,
                "shape": " × ".join(map(str, layer.shape)),
                "format": layer.mode,
                "group_size": group_size_text(layer.group_size),
                "size": size_text(layer.size_bytes),
            }
            for layer in manifest.layers[:MAX_LAYERS]
        ],
        "num_layers_left_out": max(0, len(manifest.layers) - MAX_LAYERS),
        "reference_name": reference_name(found),
        "results": result_rows(found, base),
        "objection": None if (against := objection(found)) is None else against.message,
        "damage": damage_rows(found.evaluation),
        "tasks": task_rows(found.evaluation),
        "devices": device_rows(found),
        "properties": property_rows(found),
        "commands": commands(found, base, title),
        "lock": lock(manifest),
    }


def _quoted(report: EvalReport | None) -> dict[str, Any] | None:
    """The backend whose figures stand in the tables, and those that lose less."""
    if report is None:
        return None
    worst = report.worst
    others = [record.backend for record in report.backends if record.backend != worst.backend]
    return {"backend": worst.backend, "properties": worst.properties, "others": others}


def _plain(record: Model | None) -> Any:
    """A record as values that a template can read and not call."""
    return None if record is None else json.loads(record.model_dump_json())


def _parameters(manifest: CompressionReport) -> list[dict[str, str]]:
    """The settings of the quantization that are not at rest, in the words of the recipe and of NNCF."""
    recipe = manifest.recipe
    found: dict[str, str] = {"method": recipe.method}
    for number, weights in enumerate(recipe.weight_passes):
        prefix = "weights" if number == 0 else f"further_weights.{number - 1}"
        found |= {f"{prefix}.{name}": value for name, value in _weights(weights).items()}
    if (quantization := manifest.provenance.quantization) is not None:
        found |= {f"source.{name}": json.dumps(value).strip('"') for name, value in quantization.settings.items()}
    if recipe.activations is not None:
        given = recipe.activations.model_dump(exclude={"ignored_scope"}, exclude_none=True)
        found |= {f"activations.{name}": json.dumps(value).strip('"') for name, value in given.items()}
        found |= {
            f"activations.ignored_scope.{name}": ", ".join(values)
            for name, values in recipe.activations.ignored_scope
            if values
        }
    found |= {f"runtime.{name.lower()}": value for name, value in manifest.runtime_options.items()}
    if recipe.calibration is not None and manifest.calibration is not None:
        found["calibration"] = _windows_text(manifest.calibration)
    found |= {f"pruning.{name}": value for name, value in _pruning(manifest).items()}
    found |= {f"training.{name}": value for name, value in _training(manifest).items()}
    return [{"name": name, "value": value} for name, value in found.items()]


def _windows_text(used: CalibrationRecord) -> str:
    return (
        f"{used.dataset}: {used.num_windows} windows of {used.seq_len} tokens, seed {used.seed}, "
        f"tokens sha256 {used.token_ids_sha256}"
    )


def _pruning(manifest: CompressionReport) -> dict[str, str]:
    """What was taken away, and what that cost before anything was compressed."""
    made, asked = manifest.pruning, manifest.recipe.pruning
    if made is None or asked is None:
        return {}
    given = asked.model_dump(exclude_none=True)
    found = {name: _plain_text(value) for name, value in given.items()}
    found["parameters"] = f"{made.num_parameters:,} of {made.num_parameters_before:,}"
    if made.layers:
        found["layers"] = ", ".join(map(str, made.layers))
    if made.density is not None:
        found["density"] = f"{made.density:.2%} of the decoder layers' weights are not zero"
    for name, value in (("kl_divergence", made.kl_divergence), ("kl_divergence_healed", made.kl_divergence_healed)):
        if value is not None:
            found[name] = f"{value:.4g} nats a token on the text that decided, in torch"
    return found


def _training(manifest: CompressionReport) -> dict[str, str]:
    """How bits were learned, from what, and what came of it."""
    made, asked = manifest.training, manifest.recipe.training
    if made is None:
        return {}
    found = {"method": made.method}
    if asked is not None:
        given = asked.model_dump(exclude={"method", "validation", *Calibration.model_fields}, exclude_none=True)
        found |= {name: _plain_text(value) for name, value in given.items()}
    for name, windows in (("windows", made.windows), ("validation", made.validation)):
        if windows is not None:
            found[name] = _windows_text(windows)
    if made.changed_codes is not None:
        found["changed_codes"] = f"{made.changed_codes:.2%} of {made.num_layers} weights"
    if made.curves:
        found["kept"] = f"what was learned, in {made.num_improved} of {len(made.curves)} trainings"
    return found


def _plain_text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else json.dumps(value).strip('"')


def _weights(weights: WeightCompression) -> dict[str, str]:
    found = {
        "mode": weights.mode,
        "group_size": group_size_text(weights.effective_group_size),
        "ratio": f"{weights.ratio:g}",
        "backup_mode": weights.effective_backup_mode,
        "all_layers": str(weights.all_layers).lower(),
        "group_size_fallback": weights.group_size_fallback,
    }
    if weights.sensitivity_metric is not None:
        found["sensitivity_metric"] = weights.sensitivity_metric
    methods = [name for name in ("awq", "scale_estimation", "gptq", "lora_correction") if getattr(weights, name)]
    found["methods"] = ", ".join(methods) or "none"
    if weights.statistics != "compressed":
        found["statistics"] = weights.statistics
    if weights.gptq_order != "columns":
        found["gptq_order"] = weights.gptq_order
    if weights.statistics_precision != "f32":
        found["statistics_precision"] = weights.statistics_precision
    found |= {f"ignored_scope.{name}": ", ".join(values) for name, values in weights.ignored_scope if values}
    for number, rule in enumerate(weights.rules):
        size = "" if rule.mode == "none" else f", {group_size_text(rule.effective_group_size)}"
        method = f", {rule.method}" if rule.method else ""
        found[f"rules.{number}"] = f"{rule.match}: {rule.mode}{size}{method}"
    return found
