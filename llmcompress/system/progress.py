"""Progress as data: what the verbs report and the terminal, a pipe or a parent process shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

WARNING = "warning: "
"""Begins each warning of ours among the lines that a worker writes."""


class Progress(NamedTuple):
    """One step of one stage; ``done`` of ``total`` in ``unit`` (``total`` 0: not known)."""

    stage: str
    done: int
    total: int
    unit: str = "steps"


Reporter = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Report nothing."""
