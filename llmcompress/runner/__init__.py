"""Runs a plan: what is done is left as it is, what fails is a row, the rest goes on.

run.py           the run, from the survey to the rows
survey.py        before: every recipe predicted, what is done left out
model.py         a model that is found and pinned, and what its jobs share
schedule.py      which task is next
ledger.py        what came of each, and what is told of it; cards, and what goes to the Hub
state.py         what is done, read from the output directory
compressing.py   all artifacts of a model: a supervised worker loads it once, and a fresh one goes on where it died
measuring.py     one evaluation or benchmark, in a process of its own
tuning.py        one artifact's tuned twin: its state, and the task that makes it
durations.py     how long each step took here
records.py       outlook before, rows after, events in between
"""

from llmcompress.runner.records import Event, Failure, JobResult, Outlook, RunReport
from llmcompress.runner.run import outlook, run_plan

__all__ = ["Event", "Failure", "JobResult", "Outlook", "RunReport", "outlook", "run_plan"]
