"""A setting against the default, run by run in turn, each in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from llmcompress.benchmarking.client import Client
from llmcompress.benchmarking.ratios import judge_ratio, paired_ratio
from llmcompress.benchmarking.timing import Run, decode_tokens_per_s, prefill_tokens_per_s, stats
from llmcompress.benchmarking.worker import MemoryUse
from llmcompress.report.benchmark import Judgement
from llmcompress.report.estimate import Estimate
from llmcompress.report.tuning import WorkloadSpeed
from llmcompress.spec import TuneSpec, Workload

FEWEST = 3
"""Runs of each side before one may be called beaten."""
MORE = 3
"""Times the asked repetitions that an undecided race may take."""
SAME = Estimate(value=1.0, standard_error=0.0, low=1.0, high=1.0)
"""The default against itself, by definition."""


class Race(NamedTuple):
    """What the runs of both sides came to."""

    gain: Estimate
    judgement: Judgement
    speeds: tuple[WorkloadSpeed, ...]
    default_speeds: tuple[WorkloadSpeed, ...]
    memory: MemoryUse
    default_memory: MemoryUse
    finished: bool
    """False: stopped because it was beaten."""


def start(directory: Path, device: str, properties: dict[str, str]) -> tuple[Client, dict[str, str]]:
    """A process with the model compiled in it, and its effective properties.

    Raises:
        UsageError: The device refuses the model or a property.
    """
    client = Client(directory, "openvino", name=directory.name)
    try:
        return client, client.open(device, properties).properties
    except BaseException:
        client.__exit__(None, None, None)
        raise


def race(
    candidate: Client,
    default: Client,
    spec: TuneSpec,
    *,
    beaten: Callable[[Estimate], bool] = lambda gain: False,
    undecided: Callable[[Estimate], bool] = lambda gain: False,
    tick: Callable[[], None] = lambda: None,
) -> Race:
    """Run both on every workload, in turn; stop early where the candidate is beaten, go on where it is undecided.

    Args:
        beaten: Asked after each repetition from the third on.
        undecided: Asked when the repetitions are done, whether as many again are worth it.
        tick: Called before each run.

    Raises:
        UsageError: The model refuses a run.
    """
    sides = {"candidate": candidate, "default": default}
    runs: dict[str, list[list[Run]]] = {side: [[] for _ in spec.workloads] for side in sides}
    finished, by_speed = True, spec.objective != "memory"
    for repetition in range(-spec.warmup_runs, MORE * spec.repetitions):
        for number, workload in enumerate(spec.workloads):
            # Who comes first changes, or the order itself would be measured.
            for side in sorted(sides, reverse=bool(repetition % 2)):
                tick()
                run = sides[side].run(workload.shape(), repetition + spec.warmup_runs)
                if repetition >= 0:
                    runs[side][number].append(run)
        done = repetition + 1
        if by_speed and FEWEST <= done < spec.repetitions and beaten(_speed_gain(runs, spec)):
            finished = False
            break
        # Asked after each run, chance would decide sooner or later.
        whole = done > 0 and done % spec.repetitions == 0
        if whole and not (by_speed and undecided(_speed_gain(runs, spec))):
            break
    memory, default_memory = candidate.memory(), default.memory()
    gain = _speed_gain(runs, spec) if by_speed else memory_gain([memory], [default_memory], spec.confidence)
    return Race(
        gain=gain,
        judgement=judge_ratio(gain),
        speeds=_speeds(runs["candidate"], runs["default"], spec),
        default_speeds=_speeds(runs["default"], None, spec),
        memory=memory,
        default_memory=default_memory,
        finished=finished,
    )


def memory_gain(candidates: Sequence[MemoryUse], defaults: Sequence[MemoryUse], confidence: float) -> Estimate:
    """The default's steady memory over the candidate's, of several processes each."""
    return paired_ratio(
        [used.steady_rss_bytes for used in defaults], [used.steady_rss_bytes for used in candidates], confidence
    )


def _speed_gain(runs: dict[str, list[list[Run]]], spec: TuneSpec) -> Estimate:
    """The objective's rate over the default's; of several workloads the geometric mean, repetition by repetition."""
    rate = _prefill if spec.objective == "prefill" else _decode
    means = {
        side: [
            math.exp(
                sum(math.log(rate(run, workload)) for run, workload in zip(made, spec.workloads, strict=True))
                / len(made)
            )
            for made in zip(*by_workload, strict=True)
        ]
        for side, by_workload in runs.items()
    }
    return paired_ratio(means["candidate"], means["default"], spec.confidence)


def _speeds(mine: list[list[Run]], theirs: list[list[Run]] | None, spec: TuneSpec) -> tuple[WorkloadSpeed, ...]:
    found = []
    for number, workload in enumerate(spec.workloads):
        prefill = [_prefill(run, workload) for run in mine[number]]
        decode = [_decode(run, workload) for run in mine[number]] if workload.new_tokens > 1 else None
        prefill_ratio = decode_ratio = None
        if theirs is not None:
            others = theirs[number]
            prefill_ratio = paired_ratio(prefill, [_prefill(run, workload) for run in others], spec.confidence)
            if decode is not None:
                decode_ratio = paired_ratio(decode, [_decode(run, workload) for run in others], spec.confidence)
        found.append(
            WorkloadSpeed(
                workload=str(workload),
                prefill_tokens_per_s=stats(prefill),
                decode_tokens_per_s=None if decode is None else stats(decode),
                prefill_ratio=prefill_ratio,
                decode_ratio=decode_ratio,
            )
        )
    return tuple(found)


def _prefill(run: Run, workload: Workload) -> float:
    return prefill_tokens_per_s(run, workload.batch_size, workload.prompt_tokens)


def _decode(run: Run, workload: Workload) -> float:
    return decode_tokens_per_s(run, workload.batch_size)
