"""How close a model is to the original, measured on the runtime that serves it."""

from llmcompress.evaluation.pipeline import EVAL_REPORT, check_conversion, evaluate, judge_again, scored_text

__all__ = ["EVAL_REPORT", "check_conversion", "evaluate", "judge_again", "scored_text"]
