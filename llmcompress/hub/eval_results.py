"""Scores for the Hub's leaderboards of benchmark datasets: ``.eval_results/*.yaml`` of a model's repository.

https://huggingface.co/docs/hub/eval-results describes the files. Perplexities and divergences are no benchmark there;
they stay in the card's ``model-index``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from llmcompress.report.evaluation import EvalReport, TaskScore
from llmcompress.report.file_names import BENCHMARK_SCORES
from llmcompress.spec.yaml_text import dump_yaml


class _Benchmark(NamedTuple):
    """A benchmark dataset of the Hub, and the metric of lm-evaluation-harness that is its score."""

    dataset: str
    task: str
    """As the dataset's own eval.yaml names it."""
    metric: str
    num_samples: int
    """Questions of the whole benchmark."""


_BENCHMARKS = {
    "gsm8k": _Benchmark("openai/gsm8k", "gsm8k", "exact_match (strict-match)", 1319),
    "mmlu_pro": _Benchmark("TIGER-Lab/MMLU-Pro", "mmlu_pro", "exact_match (custom-extract)", 12_032),
    "gpqa_diamond_zeroshot": _Benchmark("Idavidrein/gpqa", "diamond", "acc_norm", 198),
}
"""By the task. Tasks that ask otherwise, or only a part of it, measure something else."""


def eval_results(report: EvalReport, *, source_url: str) -> dict[str, bytes]:
    """The files for the scores that benchmarks of the Hub take, by their paths in the repository.

    Values are in percent. Scores of a part of the samples are left out.

    Args:
        source_url: Where the report itself can be read.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found = {}
    for score in report.tasks:
        benchmark = _BENCHMARKS.get(score.task)
        if benchmark is None or score.metric != benchmark.metric or not math.isfinite(score.value):
            continue
        if _num_samples(report, score) != benchmark.num_samples:
            continue
        entry = EvalResultEntry(
            dataset_id=benchmark.dataset,
            task_id=benchmark.task,
            value=round(100 * score.value, 4),
            date=report.measured.created[:10],
            source_url=source_url,
            source_name="llmcompress eval",
            notes=f"lm-evaluation-harness {score.task} {score.version}, {score.metric}, on {report.spec.device}",
        )
        text = dump_yaml(eval_result_entries_to_yaml([entry]), quote='"', flow_lists=False)
        found[BENCHMARK_SCORES[score.task]] = text.encode()
    return found


def _num_samples(report: EvalReport, score: TaskScore) -> int:
    """Of a task; of a group, which has no number of its own, those of its parts."""
    if score.num_samples is not None:
        return score.num_samples
    parts = [part for part in report.tasks if part.task.startswith(f"{score.task}_") and part.metric == score.metric]
    return sum(part.num_samples or 0 for part in parts)
