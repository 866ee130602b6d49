"""What a worker's sudden end means."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.errors import KilledForMemoryError, LlmcompressError
from llmcompress.system.memory import Memory

_NEAR_THE_LIMIT = 0.9
_SIGKILL = 9
_REMEDY = (
    "give it more memory or close other programs; --dry-run predicts the peak; "
    "a recipe without calibration data needs less"
)


class Death(NamedTuple):
    """What is known of a worker that ended without an answer."""

    returncode: int
    """As `subprocess` has it: minus the signal's number where a signal ended it."""
    stage: str
    peak_rss_bytes: int
    memory: Memory
    kills: int | None
    """Kernel kills for memory while the worker ran; None where the system does not count them."""
    last_lines: Sequence[str] | None
    """What it wrote in the end; None: that went where this process writes."""


def explain(death: Death) -> LlmcompressError:
    """Return the error for a worker that ended without an answer.

    SIGKILL is put down to memory when the kernel counted such a kill meanwhile, when the peak came near the limit,
    or when the system keeps no count: nothing else ends a worker that way unasked.
    """
    at = f" in stage '{death.stage}'" if death.stage else ""
    peak = f"peak {death.peak_rss_bytes / 1e9:.2f} GB" if death.peak_rss_bytes else "peak unknown"
    limited = "limit" if death.memory.limit is not None else "machine"
    measures = f"{peak}, {limited} {death.memory.total / 1e9:.2f} GB"
    if any("std::bad_alloc" in line for line in death.last_lines or ()):
        return KilledForMemoryError(f"the worker got no more memory{at}: {measures}", hint=_REMEDY)
    if death.returncode == -_SIGKILL:
        near = death.peak_rss_bytes >= _NEAR_THE_LIMIT * death.memory.total
        if death.kills is None or death.kills > 0 or near:
            return KilledForMemoryError(
                f"the operating system killed the worker for its memory{at}: {measures}", hint=_REMEDY
            )
        return LlmcompressError(
            f"the worker was killed (SIGKILL){at}, possibly for its memory: {measures}, "
            "but the kernel counted no such kill",
            hint=f"look who sends SIGKILL here (a batch system, a memory guard); {_REMEDY}",
        )
    if death.last_lines is None:
        return LlmcompressError(f"the worker ended with code {death.returncode}", hint="run it again with -v")
    ended = (
        f"crashed with {_signal_name(-death.returncode)}" if death.returncode < 0 else f"exited with {death.returncode}"
    )
    lines = "".join(f"\n  | {line}" for line in death.last_lines)
    return LlmcompressError(
        f"the worker {ended}{at} ({measures})" + (f"; its last lines:{lines}" if lines else ", and wrote nothing"),
        hint="-v shows all that it writes; 'llmcompress doctor' looks for broken libraries",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
