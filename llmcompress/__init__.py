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
    from llmcompress.artifact import verify
    from llmcompress.benchmarking.benchmark import benchmark
    from llmcompress.compression.compress import compress
    from llmcompress.errors import (
        ArtifactError,
        DataError,
        GateError,
        HubError,
        InterruptedRunError,
        KilledForMemoryError,
        LlmcompressError,
        LockedError,
        ModelError,
        RecipeError,
        ResourceError,
        SecurityError,
        UsageError,
        WriteError,
    )
    from llmcompress.evaluation.evaluate import check_conversion, evaluate
    from llmcompress.integrations.from_ir import recipe_from_artifact
    from llmcompress.integrations.modeling import OVModelForCausalLM
    from llmcompress.integrations.quantization_config import OVRecipeConfig, to_quantization_config
    from llmcompress.loaders import load
    from llmcompress.publishing import push_to_hub
    from llmcompress.publishing.card import CardReport, render_card, write_card
    from llmcompress.report.benchmark import BenchReport
    from llmcompress.report.compression import CompressionReport
    from llmcompress.report.evaluation import EvalReport
    from llmcompress.report.push import PushReport
    from llmcompress.report.tuning import TuneReport
    from llmcompress.runner import RunReport, run_plan
    from llmcompress.spec import (
        BenchSpec,
        EvalSpec,
        Gate,
        Recipe,
        RuntimeProfile,
        TuneSpec,
        load_profile,
        load_recipe,
    )
    from llmcompress.spec.optimum import recipe_from_quantization_config
    from llmcompress.spec.plan import Evaluation, Plan, PlanModel, PlanRecipe, Push, Tuning, load_plan
    from llmcompress.summary import compare, write_page
    from llmcompress.tuning import apply_tuning
    from llmcompress.tuning.tune import tune

    __version__: str

__all__ = [
    "ArtifactError",
    "BenchReport",
    "BenchSpec",
    "CardReport",
    "CompressionReport",
    "DataError",
    "EvalReport",
    "EvalSpec",
    "Evaluation",
    "Gate",
    "GateError",
    "HubError",
    "InterruptedRunError",
    "KilledForMemoryError",
    "LlmcompressError",
    "LockedError",
    "ModelError",
    "OVModelForCausalLM",
    "OVRecipeConfig",
    "Plan",
    "PlanModel",
    "PlanRecipe",
    "Push",
    "PushReport",
    "Recipe",
    "RecipeError",
    "ResourceError",
    "RunReport",
    "RuntimeProfile",
    "SecurityError",
    "TuneReport",
    "TuneSpec",
    "Tuning",
    "UsageError",
    "WriteError",
    "__version__",
    "apply_tuning",
    "benchmark",
    "check_conversion",
    "compare",
    "compress",
    "evaluate",
    "load",
    "load_plan",
    "load_profile",
    "load_recipe",
    "push_to_hub",
    "recipe_from_artifact",
    "recipe_from_quantization_config",
    "render_card",
    "run_plan",
    "to_quantization_config",
    "tune",
    "verify",
    "write_card",
    "write_page",
]

_HOME = {
    "BenchReport": "llmcompress.report.benchmark",
    "BenchSpec": "llmcompress.spec",
    "CardReport": "llmcompress.publishing.card",
    "CompressionReport": "llmcompress.report.compression",
    "EvalReport": "llmcompress.report.evaluation",
    "EvalSpec": "llmcompress.spec",
    "Evaluation": "llmcompress.spec.plan",
    "Gate": "llmcompress.spec",
    "OVModelForCausalLM": "llmcompress.integrations.modeling",
    "OVRecipeConfig": "llmcompress.integrations.quantization_config",
    "PushReport": "llmcompress.report.push",
    "Plan": "llmcompress.spec.plan",
    "PlanModel": "llmcompress.spec.plan",
    "PlanRecipe": "llmcompress.spec.plan",
    "Push": "llmcompress.spec.plan",
    "Tuning": "llmcompress.spec.plan",
    "Recipe": "llmcompress.spec",
    "RunReport": "llmcompress.runner",
    "RuntimeProfile": "llmcompress.spec",
    "TuneReport": "llmcompress.report.tuning",
    "TuneSpec": "llmcompress.spec",
    "apply_tuning": "llmcompress.tuning",
    "benchmark": "llmcompress.benchmarking.benchmark",
    "check_conversion": "llmcompress.evaluation.evaluate",
    "compare": "llmcompress.summary",
    "compress": "llmcompress.compression.compress",
    "evaluate": "llmcompress.evaluation.evaluate",
    "load": "llmcompress.loaders",
    "load_plan": "llmcompress.spec.plan",
    "load_recipe": "llmcompress.spec",
    "recipe_from_artifact": "llmcompress.integrations.from_ir",
    "recipe_from_quantization_config": "llmcompress.spec.optimum",
    "render_card": "llmcompress.publishing.card",
    "push_to_hub": "llmcompress.publishing",
    "run_plan": "llmcompress.runner",
    "load_profile": "llmcompress.spec",
    "to_quantization_config": "llmcompress.integrations.quantization_config",
    "tune": "llmcompress.tuning.tune",
    "verify": "llmcompress.artifact",
    "write_card": "llmcompress.publishing.card",
    "write_page": "llmcompress.summary",
}

# OpenVINO reports usage while it is imported, so this cannot wait until one of the verbs is called.
quiet_libraries()


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("llmcompress")
    elif name in __all__:
        value = getattr(import_module(_HOME.get(name, "llmcompress.errors")), name)
    else:
        raise AttributeError(f"module 'llmcompress' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
