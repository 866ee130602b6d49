"""Trials as people read them, the same in the terminal and on the page."""

from __future__ import annotations

from llmcompress.report import Trial
from llmcompress.wording import interval_text


def gain_text(trial: Trial) -> str:
    """The gain with its interval; nothing for the default, whose gain is 1 by definition."""
    return "" if trial.gain is None or not trial.properties else interval_text(trial.gain, ".3g")


def remark_text(trial: Trial, *, reason: bool = True) -> str:
    """Whether it is on the front, and what became of it."""
    words = ["front"] if trial.on_front else []
    if trial.status not in ("default", "measured"):
        words.append(f"{trial.status}: {trial.reason}" if trial.reason and reason else trial.status)
    return (", " if reason else "\n").join(words)
