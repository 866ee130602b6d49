"""Task scores by lm-evaluation-harness, which runs the artifact through optimum-intel."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmcompress.errors import DataError, ResourceError, UsageError
from llmcompress.evaluation.measurement import ModelOnDevice
from llmcompress.evaluation.request import TaskSelection
from llmcompress.loaders.token_ids import num_embeddings, require_embeddings
from llmcompress.report.evaluation import TaskScore
from llmcompress.system.patching import replaced

_STDERR = "_stderr"


def check_tasks(tasks: TaskSelection) -> None:
    """Refuse tasks before anything slow.

    Raises:
        ResourceError: The extra lm-eval is missing.
        UsageError: No such task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ResourceError(
            "task scores need lm-evaluation-harness, which is not installed",
            where="`tasks`",
            hint='pip install "llmcompress[lm-eval]"',
        )
    manager = _manager(tasks.path)
    unknown = [name for name in tasks.names if not manager.match_tasks([name])]
    if unknown:
        raise UsageError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}",
            where="`tasks`",
            hint="lm_eval ls tasks lists them; `task_path` adds a directory of your own",
        )


def score_tasks(model: ModelOnDevice, tasks: TaskSelection, *, offline: bool) -> tuple[TaskScore, ...]:
    """Run tasks of lm-evaluation-harness on an OpenVINO directory.

    Args:
        offline: Take the tasks' data from the local cache only.

    Raises:
        DataError: A task's data cannot be had, or the harness cannot run the model.
        ModelError: A task's text gives token ids that the model has no embedding for.
    """
    import datasets
    import lm_eval
    from lm_eval.models.optimum_lm import OptimumLM

    try:
        with replaced(datasets.config, "HF_HUB_OFFLINE", offline or datasets.config.HF_HUB_OFFLINE):
            results: dict[str, Any] = lm_eval.simple_evaluate(
                model=_harness_model(OptimumLM, model),
                tasks=list(tasks.names),
                limit=tasks.limit,
                task_manager=_manager(tasks.path),
                bootstrap_iters=1000,
                log_samples=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        # Its data sets come from the Hub while it runs.
        raise DataError(
            f"lm-evaluation-harness stopped: {error}".splitlines()[0],
            where=", ".join(tasks.names),
            hint="run it again online",
        ) from error
    return _scores(results)


def _manager(include_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include_path is None else str(include_path))


def _harness_model(kind: Any, model: ModelOnDevice) -> Any:
    import json
    import tempfile

    with tempfile.TemporaryDirectory(prefix="llmcompress-") as folder:
        config = Path(folder) / "ov_config.json"
        config.write_text(json.dumps(model.properties), encoding="utf-8")
        options = {"ov_config": str(config)} if model.properties else {}
        harness = kind(pretrained=str(model.loaded.source.path), device=model.device.lower(), **options)
    size = num_embeddings(model.loaded.source.config)
    for name, ids_of in (("tok_encode", list), ("tok_batch_encode", lambda encoded: encoded[0].flatten().tolist())):
        setattr(harness, name, _checked(getattr(harness, name), ids_of, size))
    return harness


def _checked(encode: Callable[..., Any], ids_of: Callable[[Any], list[int]], size: int | None) -> Callable[..., Any]:
    """A way of the harness to encode text that refuses token ids without an embedding."""

    def encoded(*args: Any, **kwargs: Any) -> Any:
        found = encode(*args, **kwargs)
        require_embeddings(ids_of(found), size, what="a task's text", where="`tasks`")
        return found

    return encoded


def _scores(results: dict[str, Any]) -> tuple[TaskScore, ...]:
    scores = []
    for task, metrics in sorted(results["results"].items()):
        samples = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in sorted(metrics.items()):
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith(_STDERR) or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}{_STDERR},{name}")
            scores.append(
                TaskScore(
                    task=task,
                    metric=metric if name == "none" else f"{metric} ({name})",
                    value=float(value),
                    standard_error=float(error) if isinstance(error, int | float) else None,
                    num_samples=samples,
                    version=str(results.get("versions", {}).get(task, "")),
                )
            )
    return tuple(scores)
