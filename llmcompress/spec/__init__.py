"""Recipes: what to do to a model, as data that refuses what it would ignore."""

from llmcompress.spec.access import Access
from llmcompress.spec.activations import AccuracyControl, Quantization
from llmcompress.spec.advanced import (
    AdaptiveCodebookParameters,
    AdvancedCompression,
    AwqParameters,
    GptqParameters,
    LoraCorrectionParameters,
    ScaleEstimationParameters,
)
from llmcompress.spec.benchmark import BenchSpec
from llmcompress.spec.dataset import Calibration, Dataset
from llmcompress.spec.evaluation import EvalSpec
from llmcompress.spec.files import RECOMMENDED, dump_recipe, load_recipe, override_recipe, packaged_recipes
from llmcompress.spec.modes import StatisticsPrecision
from llmcompress.spec.pruning import Pruning
from llmcompress.spec.recipe import Recipe
from llmcompress.spec.runtime import Gate, Runtime, RuntimeProfile, load_profile
from llmcompress.spec.search import SearchSpec
from llmcompress.spec.training import Training
from llmcompress.spec.tuning import TuneSpec, Workload
from llmcompress.spec.weights import IgnoredScope, WeightCompression

__all__ = [
    "RECOMMENDED",
    "Access",
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
    "Pruning",
    "Quantization",
    "Recipe",
    "Runtime",
    "RuntimeProfile",
    "ScaleEstimationParameters",
    "SearchSpec",
    "StatisticsPrecision",
    "Training",
    "TuneSpec",
    "WeightCompression",
    "Workload",
    "dump_recipe",
    "load_profile",
    "load_recipe",
    "override_recipe",
    "packaged_recipes",
]
