"""Compress a large language model for OpenVINO, prove on the runtime what it cost, ship it with that evidence.

    import llmcompress

    report = llmcompress.compress("path/to/checkpoint", "int4", "out")
    print(report.bits_per_weight)

The names below are imported when they are first used: `import llmcompress` loads no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmcompress.environment import quiet_libraries

if TYPE_CHECKING:
    from llmcompress.artifact import verify
    from llmcompress.benchmarking import benchmark
    from llmcompress.cards import CardReport, render_card, write_card
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
    from llmcompress.evaluation import check_conversion, evaluate
    from llmcompress.integrations.modeling import OVModelForCausalLM
    from llmcompress.integrations.quantization_config import OVRecipeConfig
    from llmcompress.loaders import load
    from llmcompress.pipeline import compress
    from llmcompress.plan import Evaluation, Plan, PlanModel, PlanRecipe, Push, Tuning, load_plan
    from llmcompress.publishing import push_to_hub
    from llmcompress.recipe import (
        BenchSpec,
        EvalSpec,
        Gate,
        Recipe,
        RuntimeProfile,
        TuneSpec,
        load_profile,
        load_recipe,
    )
    from llmcompress.report import BenchReport, CompressionReport, EvalReport, PushReport, TuneReport
    from llmcompress.runner import RunReport, run_plan
    from llmcompress.summary import compare, write_page
    from llmcompress.tuning import apply_tuning, tune

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
    "render_card",
    "run_plan",
    "tune",
    "verify",
    "write_card",
    "write_page",
]

_HOME = {
    "BenchReport": "llmcompress.report",
    "BenchSpec": "llmcompress.recipe",
    "CardReport": "llmcompress.cards",
    "CompressionReport": "llmcompress.report",
    "EvalReport": "llmcompress.report",
    "EvalSpec": "llmcompress.recipe",
    "Evaluation": "llmcompress.plan",
    "Gate": "llmcompress.recipe",
    "OVModelForCausalLM": "llmcompress.integrations.modeling",
    "OVRecipeConfig": "llmcompress.integrations.quantization_config",
    "PushReport": "llmcompress.report",
    "Plan": "llmcompress.plan",
    "PlanModel": "llmcompress.plan",
    "PlanRecipe": "llmcompress.plan",
    "Push": "llmcompress.plan",
    "Tuning": "llmcompress.plan",
    "Recipe": "llmcompress.recipe",
    "RunReport": "llmcompress.runner",
    "RuntimeProfile": "llmcompress.recipe",
    "TuneReport": "llmcompress.report",
    "TuneSpec": "llmcompress.recipe",
    "apply_tuning": "llmcompress.tuning",
    "benchmark": "llmcompress.benchmarking",
    "check_conversion": "llmcompress.evaluation",
    "compare": "llmcompress.summary",
    "compress": "llmcompress.pipeline",
    "evaluate": "llmcompress.evaluation",
    "load": "llmcompress.loaders",
    "load_plan": "llmcompress.plan",
    "load_recipe": "llmcompress.recipe",
    "render_card": "llmcompress.cards",
    "push_to_hub": "llmcompress.publishing",
    "run_plan": "llmcompress.runner",
    "load_profile": "llmcompress.recipe",
    "tune": "llmcompress.tuning",
    "verify": "llmcompress.artifact",
    "write_card": "llmcompress.cards",
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
