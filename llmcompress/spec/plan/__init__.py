"""Plans: many models by many recipes, and what is measured of each, as data.

records.py   Plan and its parts, as a person writes them
jobs.py      one model by one recipe, with every override applied
files.py     a plan's YAML file
"""

from llmcompress.spec.plan.files import load_plan
from llmcompress.spec.plan.jobs import Job, planned_jobs
from llmcompress.spec.plan.records import Evaluation, Plan, PlanModel, PlanRecipe, PlanSearch, Push, Tracker, Tuning

__all__ = [
    "Evaluation",
    "Job",
    "Plan",
    "PlanModel",
    "PlanRecipe",
    "PlanSearch",
    "Push",
    "Tracker",
    "Tuning",
    "load_plan",
    "planned_jobs",
]
