"""Compress every checkpoint directory below a folder by the same recipes: a plan made in Python.

    python scripts/compress_many.py CHECKPOINTS OUTPUT --recipes int8 int4
    python scripts/compress_many.py CHECKPOINTS OUTPUT --recipes int8 int4 --text texts.txt

The same command goes on after an interruption, and does only what failed or is new.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llmcompress import Evaluation, Plan, PlanModel, PlanRecipe, run_plan


def main() -> None:
    """Make the plan, run it, and print one line for each artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, help="folder with one directory for each checkpoint")
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["int8", "int4"])
    parser.add_argument("--text", type=Path, default=None, help="measure on this text what each one lost")
    arguments = parser.parse_args()
    found = sorted(path.parent for path in arguments.checkpoints.glob("*/config.json"))
    plan = Plan(
        models=tuple(PlanModel(source=str(path.absolute())) for path in found),
        recipes=tuple(PlanRecipe(recipe=name) for name in arguments.recipes),
        evaluation=Evaluation(dataset=str(arguments.text.absolute())) if arguments.text else None,
    )
    report = run_plan(plan, output_dir=arguments.output)
    for row in report.rows:
        print(f"{row.name}: {row.failure.message if row.failure else 'done'}")
    raise SystemExit(report.exit_code)


if __name__ == "__main__":
    main()
