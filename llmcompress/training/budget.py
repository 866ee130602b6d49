"""How many steps a training has time for."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llmcompress.errors import UsageError
from llmcompress.report.text import duration_text
from llmcompress.spec.training import Training
from llmcompress.spec.validation import MAX_COUNT
from llmcompress.system.files import replace_file
from llmcompress.system.json_file import noted

MEASURED_SHARE = 0.05
"""Of the time, after which no further step is measured."""


class Durations(NamedTuple):
    """What a training takes, in seconds; layer by layer, of all layers together."""

    fixed_s: float
    """Whatever the number of steps."""
    window_s: float
    """To ask the original about a window."""
    step_s: float
    validation_s: float

    def total_s(self, training: Training, num_windows: int, num_steps: int) -> float:
        """Of a training with so many steps, on at most so many windows.

        Validations are at most those that ``training`` wants, and one at the start.
        """
        num_asked = min(num_windows, num_steps * training.batch_size) + training.num_validation_samples
        num_validations = 1 + min(num_steps, training.num_validations)
        steps_s = num_steps * self.step_s + num_validations * self.validation_s
        return self.fixed_s + num_asked * self.window_s + steps_s


def kept_num_steps(
    place: Path, budget_s: float, training: Training, num_windows: int, measure: Callable[[Path, float], Durations]
) -> int:
    """The steps that a time suffices for; what was found first holds for whoever goes on with the same state.

    Args:
        place: Directory of the state.
        budget_s: Time that is left, from now on.
        training: What is done in it.
        num_windows: There are to train on.
        measure: Given a directory for what is not kept and a deadline by ``time.monotonic``.

    Raises:
        UsageError: There is no time for one step.
    """
    file, started = place / "num_steps.json", time.monotonic()
    known = _noted(file)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(dir=place) as directory:
        found = measure(Path(directory), started + MEASURED_SHARE * budget_s)
    left_s = budget_s - (time.monotonic() - started)
    num_steps = num_steps_within(left_s, training, num_windows, found)
    replace_file(file, json.dumps({"num_steps": num_steps}).encode(), durable=False)
    return num_steps


def _noted(file: Path) -> int | None:
    """The steps that were found first; None: there is no such note, or it is damaged."""
    found = noted(file).get("num_steps")
    return found if type(found) is int and 0 < found <= MAX_COUNT else None


def num_steps_within(budget_s: float, training: Training, num_windows: int, durations: Durations) -> int:
    """The most steps whose training ends in a time.

    Raises:
        UsageError: There is no time for one step.
    """
    shortest_s = durations.total_s(training, num_windows, 1)
    if shortest_s > budget_s:
        raise UsageError(
            f"training with a single step takes about {duration_text(shortest_s)}, "
            f"and {duration_text(max(budget_s, 0.0))} are left for it",
            where="training.budget_s",
            hint="give more time, or take fewer of training.num_samples or training.num_validation_samples",
        )
    least, most = 1, 2
    while most < MAX_COUNT and durations.total_s(training, num_windows, most) <= budget_s:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (
            (middle, most) if durations.total_s(training, num_windows, middle) <= budget_s else (least, middle)
        )
    return least
