"""Runs a plan: what is done is left as it is, what fails is a row, the rest goes on.

pipeline.py      the run: which task is next, and what came of it
survey.py        before: every model found, every recipe predicted, what is done left out
state.py         what is done, read from the output directory
compressing.py   all artifacts of a model: a supervised worker, and a fresh one where it died
loading.py       in that worker: one model loaded once
measuring.py     one evaluation or benchmark, in a process of its own
shipping.py      the door to the card and the Hub
durations.py     how long each step took here
records.py       outlook before, rows after, events in between
"""

from llmcompress.runner.pipeline import outlook, run_plan
from llmcompress.runner.records import Event, Failure, Outlook, Row, RunReport

__all__ = ["Event", "Failure", "Outlook", "Row", "RunReport", "outlook", "run_plan"]
