"""The metadata at the head of a model card, by the Hub's conventions.

Keys and meaning: https://huggingface.co/docs/hub/model-cards and, for ``model-index``,
https://github.com/huggingface/hub-docs/blob/main/modelcard.md. What the base states is passed on as it is; what it
does not state is left out.
"""

from __future__ import annotations

import math
import re
from typing import Any

from llmcompress.artifact import Measurements
from llmcompress.publishing.base_model import BaseModel
from llmcompress.report.compression import CompressionReport
from llmcompress.report.estimate import Estimate
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import EVAL_REPORT
from llmcompress.spec.yaml_text import dump_yaml

HUB = "https://huggingface.co"


def metadata(found: Measurements, base: BaseModel, *, title: str, repo_id: str | None) -> dict[str, Any]:
    """The metadata of an artifact's card as plain values."""
    data: dict[str, Any] = {}
    if base.name is not None:
        data["base_model"] = [base.name]
    # The Hub knows no conversion that changes nothing; it files models of other formats under this, too.
    data["base_model_relation"] = "quantized"
    data |= {
        name: value if len(value) > 1 else value[0]
        for name, value in (("license", base.license), ("language", base.language))
        if value
    }
    data |= {
        name: value
        for name, value in (("license_name", base.license_name), ("license_link", base.license_url))
        if value
    }
    data["library_name"] = "openvino"
    data["pipeline_tag"] = "image-text-to-text" if found.manifest.parts else "text-generation"
    data["tags"] = _tags(found.manifest)
    if found.evaluation is not None:
        data["model-index"] = [{"name": title, "results": _results(found.evaluation, repo_id)}]
    return data


def front_matter(data: dict[str, Any]) -> str:
    """The metadata as YAML that every reader takes for the same values."""
    return dump_yaml(data, quote='"', flow_lists=False)


def _tags(manifest: CompressionReport) -> list[str]:
    recipe = manifest.recipe
    modes: list[str] = [weights.mode for weights in recipe.weight_passes]
    if recipe.activations is not None:
        modes.append(recipe.activations.mode)
    formats = [mode.partition("_")[0] for mode in modes]
    bits = [f"{digits[0]}-bit" for name in formats if (digits := re.findall(r"\d+", name))]
    tags = ["openvino", "llmcompress", *(["nncf"] if modes else []), *formats, *bits]
    return list(dict.fromkeys(tags))


def _results(report: EvalReport, repo_id: str | None) -> list[dict[str, Any]]:
    task = {"type": "text-generation", "name": "Text Generation"}
    url = f"{HUB}/{repo_id}/blob/main/{EVAL_REPORT}"
    source = {"source": {"name": "llmcompress eval", "url": url}} if repo_id else {}
    results: list[dict[str, Any]] = [{"task": task, "dataset": _dataset(report), "metrics": _metrics(report)} | source]
    for score in report.tasks:
        metric = {"type": score.metric, "value": score.value, "name": score.metric}
        dataset = {"type": score.task, "name": score.task, "args": {"version": score.version}}
        results.append({"task": task, "dataset": dataset, "metrics": _finite([metric])} | source)
    return [result for result in results if result["metrics"]]


def _dataset(report: EvalReport) -> dict[str, Any]:
    text, spec = report.text, report.spec
    name, _, revision = text.dataset.partition("@")
    pinned = {"config": spec.subset, "split": spec.split, "revision": revision or None}
    return {
        "type": name if revision else "text",
        "name": name,
        **{key: value for key, value in pinned.items() if value is not None},
        "args": {
            "protocol": spec.protocol,
            "seq_len": spec.seq_len,
            "num_scored_tokens": text.num_scored_tokens,
            "token_ids_sha256": text.token_ids_sha256,
        },
    }


def _metrics(report: EvalReport) -> list[dict[str, Any]]:
    perplexity, lost = report.worst.perplexity, report.worst.divergence
    graph = f" on the {report.worst.backend} graph" if len(report.backends) > 1 else ""
    values: dict[str, tuple[Estimate | None, str]] = {
        "perplexity": (perplexity.perplexity, "Perplexity per token"),
        "word_perplexity": (perplexity.word_perplexity, "Perplexity per word"),
        "byte_perplexity": (perplexity.byte_perplexity, "Perplexity per byte"),
        "bits_per_byte": (perplexity.bits_per_byte, "Bits per byte"),
    }
    if lost is not None:
        bound = "" if lost.exact else " (a lower bound)"
        values |= {
            "kl_divergence": (lost.kl_divergence, f"KL divergence from the reference, nats per token{bound}"),
            "top1_agreement": (lost.top1_agreement, "Top-1 agreement with the reference"),
            "perplexity_ratio": (lost.perplexity_ratio, "Perplexity over the reference's"),
        }
    return _finite(
        [
            {"type": kind, "value": estimate.value, "name": name + graph}
            for kind, (estimate, name) in values.items()
            if estimate is not None
        ]
    )


def _finite(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The Hub takes numbers only; the page says what else was measured.
    return [metric for metric in metrics if math.isfinite(metric["value"])]
