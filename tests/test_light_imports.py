"""What a text model's conversion does without while it imports, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from llmcompress.loaders import light_imports

PROGRAM = """
import sys
from llmcompress.loaders.light_imports import light_imports
from llmcompress.loaders.resolving import resolve
from llmcompress.system.environment import ends_after_this_call, leave_out_sklearn

leave_out_sklearn()
source = resolve(sys.argv[1])
HEAVY = ("torch._dynamo.config", "torchvision", "datasets", "scipy.optimize")
def imported():
    return [name for name in HEAVY if sys.modules.get(name) is not None]
"""


def run(program: str, checkpoint: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, str(checkpoint)], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_transformers_and_the_exporter_are_imported_without_what_a_text_model_does_not_use(
    demo_checkpoint: Path,
) -> None:
    program = """
ends_after_this_call()
with light_imports(source):
    import optimum.exporters.openvino.model_configs
    from llmcompress.loaders.convertible import require_convertible
    require_convertible(source)
print(imported())
"""
    assert run(program, demo_checkpoint) == ["[]"]


def test_what_was_left_out_can_be_imported_afterwards(demo_checkpoint: Path) -> None:
    program = """
ends_after_this_call()
with light_imports(source):
    from transformers import AutoModelForCausalLM
import datasets, scipy.optimize, torch, torchvision
import torch._dynamo
import transformers.masking_utils
print(imported())
print(type(transformers.masking_utils.TransformGetItemToIndex()).__name__)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    names = "['torch._dynamo.config', 'torchvision', 'datasets', 'scipy.optimize']"
    assert run(program, demo_checkpoint) == [names, "TransformGetItemToIndex", "2.0"]


def test_code_that_wants_more_of_the_compiler_gets_it(demo_checkpoint: Path) -> None:
    program = """
ends_after_this_call()
with light_imports(source):
    import torch
    marked = torch.compiler.disable(len)
    with_options = torch.compiler.disable(recursive=False)(len)
    print(marked is len, with_options is len, imported())
    import torch._dynamo
    print(torch._dynamo.config.__name__)
    import torch._dynamo.testing
    from torch._dynamo import optimize
    print(optimize.__name__, torch.compiler.disable(lambda: 3)())
"""
    assert run(program, demo_checkpoint) == ["True True []", "torch._dynamo.config", "optimize 3"]


def test_nothing_is_left_out_where_other_code_may_look_for_it(demo_checkpoint: Path) -> None:
    program = """
with light_imports(source):
    import transformers.modeling_utils
print(imported())
ends_after_this_call()
for each in (
    source._replace(config={**source.config, "auto_map": {"AutoConfig": "x.X"}}, trust_remote_code=True),
    source._replace(text_only=True),
    source._replace(layout="ir"),
):
    with light_imports(each):
        print("datasets" in sys.modules and sys.modules["datasets"] is None)
"""
    first, *others = run(program, demo_checkpoint)
    assert "torch._dynamo.config" in first
    assert others == ["False"] * 3


def test_what_was_imported_otherwise_gets_all_that_it_expects(demo_checkpoint: Path) -> None:
    program = """
import optimum.exporters.openvino
ends_after_this_call()
with light_imports(source):
    import datasets, torchvision
print("both")
"""
    assert run(program, demo_checkpoint) == ["both"]


def chosen(module: str, distributions: list[str]) -> str:
    """The one whose version transformers asks for."""
    names = {name.replace("_", "-"): name for name in distributions}
    return names.get(module.replace("_", "-"), distributions[0])


def test_the_distribution_of_each_module_is_found_by_its_name() -> None:
    every = importlib.metadata.packages_distributions()
    asked: list[int] = []

    def whole() -> Mapping[str, list[str]]:
        asked.append(1)
        return every

    found = light_imports._Distributions(whole)
    assert found["torch"] == ["torch"]
    assert not asked
    for module, distributions in every.items():
        assert chosen(module, found[module]) == chosen(module, distributions), module
    assert found["PIL"] == ["pillow"]
    assert asked == [1]
    assert set(found) == set(every)
    assert len(found) == len(every)
    assert found.get("no_such_module") is None
