"""Compress a large language model for OpenVINO, prove on the runtime what it cost, ship it with that evidence.

    import llmcompress

    report = llmcompress.compress("path/to/checkpoint", "int4", "out")
    print(report.bits_per_weight)

The names below are imported when they are first used: `import llmcompress` loads no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmcompress.system.environment import quiet_libraries

if TYPE_CHECKING:
    # `as`: so that type checkers take each name as exported.
    from llmcompress.artifact import verify as verify
    from llmcompress.benchmarking.benchmark import benchmark as benchmark
    from llmcompress.compression.compress import compress as compress
    from llmcompress.compression.own_loop import export_trained as export_trained
    from llmcompress.compression.own_loop import prepare_for_training as prepare_for_training
    from llmcompress.errors import ArtifactError as ArtifactError
    from llmcompress.errors import DataError as DataError
    from llmcompress.errors import GateError as GateError
    from llmcompress.errors import HubError as HubError
    from llmcompress.errors import InterruptedRunError as InterruptedRunError
    from llmcompress.errors import KilledForMemoryError as KilledForMemoryError
    from llmcompress.errors import LlmcompressError as LlmcompressError
    from llmcompress.errors import LockedError as LockedError
    from llmcompress.errors import ModelError as ModelError
    from llmcompress.errors import RecipeError as RecipeError
    from llmcompress.errors import ResourceError as ResourceError
    from llmcompress.errors import SecurityError as SecurityError
    from llmcompress.errors import UsageError as UsageError
    from llmcompress.errors import WriteError as WriteError
    from llmcompress.evaluation.conversion import check_conversion as check_conversion
    from llmcompress.evaluation.evaluate import evaluate as evaluate
    from llmcompress.integrations.from_ir import recipe_from_artifact as recipe_from_artifact
    from llmcompress.integrations.modeling import OVModelForCausalLM as OVModelForCausalLM
    from llmcompress.integrations.quantization_config import OVRecipeConfig as OVRecipeConfig
    from llmcompress.integrations.quantization_config import to_quantization_config as to_quantization_config
    from llmcompress.integrations.vision_modeling import OVModelForVisualCausalLM as OVModelForVisualCausalLM
    from llmcompress.loaders import load as load
    from llmcompress.publishing import push_to_hub as push_to_hub
    from llmcompress.publishing.card import CardReport as CardReport
    from llmcompress.publishing.card import render_card as render_card
    from llmcompress.publishing.card import write_card as write_card
    from llmcompress.publishing.trackers import log_figures as log_figures
    from llmcompress.report.benchmark import BenchReport as BenchReport
    from llmcompress.report.compression import CompressionReport as CompressionReport
    from llmcompress.report.evaluation import EvalReport as EvalReport
    from llmcompress.report.push import PushReport as PushReport
    from llmcompress.report.search import SearchReport as SearchReport
    from llmcompress.report.tuning import TuneReport as TuneReport
    from llmcompress.runner import RunReport as RunReport
    from llmcompress.runner import run_plan as run_plan
    from llmcompress.searching.search import search as search
    from llmcompress.spec import BenchSpec as BenchSpec
    from llmcompress.spec import EvalSpec as EvalSpec
    from llmcompress.spec import Gate as Gate
    from llmcompress.spec import Recipe as Recipe
    from llmcompress.spec import RuntimeProfile as RuntimeProfile
    from llmcompress.spec import SearchSpec as SearchSpec
    from llmcompress.spec import TuneSpec as TuneSpec
    from llmcompress.spec import load_profile as load_profile
    from llmcompress.spec import load_recipe as load_recipe
    from llmcompress.spec.optimum import recipe_from_quantization_config as recipe_from_quantization_config
    from llmcompress.spec.plan import Evaluation as Evaluation
    from llmcompress.spec.plan import Plan as Plan
    from llmcompress.spec.plan import PlanModel as PlanModel
    from llmcompress.spec.plan import PlanRecipe as PlanRecipe
    from llmcompress.spec.plan import Push as Push
    from llmcompress.spec.plan import Tuning as Tuning
    from llmcompress.spec.plan import load_plan as load_plan
    from llmcompress.summary import compare as compare
    from llmcompress.summary import write_page as write_page
    from llmcompress.tuning import apply_tuning as apply_tuning
    from llmcompress.tuning.tune import tune as tune

    __version__: str

_HOMES = {
    "llmcompress.artifact": "verify",
    "llmcompress.benchmarking.benchmark": "benchmark",
    "llmcompress.compression.compress": "compress",
    "llmcompress.compression.own_loop": "export_trained prepare_for_training",
    "llmcompress.errors": "ArtifactError DataError GateError HubError InterruptedRunError KilledForMemoryError "
    "LlmcompressError LockedError ModelError RecipeError ResourceError SecurityError UsageError WriteError",
    "llmcompress.evaluation.conversion": "check_conversion",
    "llmcompress.evaluation.evaluate": "evaluate",
    "llmcompress.integrations.from_ir": "recipe_from_artifact",
    "llmcompress.integrations.modeling": "OVModelForCausalLM",
    "llmcompress.integrations.quantization_config": "OVRecipeConfig to_quantization_config",
    "llmcompress.integrations.vision_modeling": "OVModelForVisualCausalLM",
    "llmcompress.loaders": "load",
    "llmcompress.publishing": "push_to_hub",
    "llmcompress.publishing.card": "CardReport render_card write_card",
    "llmcompress.publishing.trackers": "log_figures",
    "llmcompress.report.benchmark": "BenchReport",
    "llmcompress.report.compression": "CompressionReport",
    "llmcompress.report.evaluation": "EvalReport",
    "llmcompress.report.push": "PushReport",
    "llmcompress.report.search": "SearchReport",
    "llmcompress.report.tuning": "TuneReport",
    "llmcompress.runner": "RunReport run_plan",
    "llmcompress.searching.search": "search",
    "llmcompress.spec": "BenchSpec EvalSpec Gate Recipe RuntimeProfile SearchSpec TuneSpec load_profile load_recipe",
    "llmcompress.spec.optimum": "recipe_from_quantization_config",
    "llmcompress.spec.plan": "Evaluation Plan PlanModel PlanRecipe Push Tuning load_plan",
    "llmcompress.summary": "compare write_page",
    "llmcompress.tuning": "apply_tuning",
    "llmcompress.tuning.tune": "tune",
}
"""Modules and the public names that they are imported from when one is first used."""

_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = sorted(["__version__", *_HOME])

# OpenVINO reports usage while it is imported, so this cannot wait until one of the verbs is called.
quiet_libraries()


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("llmcompress")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'llmcompress' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
