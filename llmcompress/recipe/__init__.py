"""Recipes: what to do to a model, as data that refuses what it would ignore."""

from llmcompress.recipe.activations import AccuracyControl, Quantization
from llmcompress.recipe.advanced import (
    AdaptiveCodebookParameters,
    AdvancedCompression,
    AwqParameters,
    GptqParameters,
    LoraCorrectionParameters,
    ScaleEstimationParameters,
)
from llmcompress.recipe.benchmark import BenchSpec, bench_spec
from llmcompress.recipe.calibration import Calibration
from llmcompress.recipe.dataset import Dataset
from llmcompress.recipe.evaluation import EvalSpec, eval_spec
from llmcompress.recipe.files import RECOMMENDED, dump_recipe, load_recipe, override_recipe, packaged_recipes
from llmcompress.recipe.modes import StatisticsPrecision
from llmcompress.recipe.profile import RuntimeProfile, load_profile
from llmcompress.recipe.recipe import Recipe
from llmcompress.recipe.runtime import Gate, Runtime
from llmcompress.recipe.tuning import TuneSpec, Workload, tune_spec
from llmcompress.recipe.weights import IgnoredScope, WeightCompression

__all__ = [
    "RECOMMENDED",
    "AccuracyControl",
    "AdaptiveCodebookParameters",
    "AdvancedCompression",
    "AwqParameters",
    "BenchSpec",
    "Calibration",
    "Dataset",
    "EvalSpec",
    "Gate",
    "GptqParameters",
    "IgnoredScope",
    "LoraCorrectionParameters",
    "Quantization",
    "Recipe",
    "Runtime",
    "RuntimeProfile",
    "ScaleEstimationParameters",
    "StatisticsPrecision",
    "TuneSpec",
    "WeightCompression",
    "Workload",
    "bench_spec",
    "dump_recipe",
    "eval_spec",
    "load_profile",
    "load_recipe",
    "override_recipe",
    "packaged_recipes",
    "tune_spec",
]
