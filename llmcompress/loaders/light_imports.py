"""Importing what converts a text model without what its conversion never uses."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llmcompress.loaders.source import Source
from llmcompress.system.environment import left_out_meanwhile, will_end
from llmcompress.system.memory import objects_uncollected
from llmcompress.system.patching import replaced

# What is imported looks for these, and does without: pictures, data sets, the command line of an HTTP client.
_UNUSED = ("torchvision", "datasets", "httpx._main")
_COMPILER = "torch._dynamo"
_FLEX = "is_torch_flex_attn_available"


_is_light = False


@contextlib.contextmanager
def light_imports(source: Source) -> Iterator[None]:
    """Import transformers and optimum without torch's compiler, pictures and data sets meanwhile.

    Only in a process that ends with this call, and for a text model whose class is transformers' own: other code may
    look for what transformers then takes as not installed.

    Args:
        source: What will be converted.
    """
    global _is_light
    is_plain = source.layout == "checkpoint" and source.adapter is None and not source.text_only
    # transformers that was imported otherwise expects what is left out here.
    is_late = "transformers" in sys.modules and not _is_light
    if not will_end() or not is_plain or source.runs_code or source.sees or is_late:
        yield
        return
    _is_light = True
    with contextlib.ExitStack() as stack:
        stack.enter_context(objects_uncollected())
        for name in _UNUSED:
            stack.enter_context(left_out_meanwhile(name))
        # What marks functions for the compiler imports it; this process compiles none.
        marks = {"disable": _unmarked, "allow_in_graph": _unmarked}
        stack.enter_context(_stand_in(_COMPILER, marks, _compiler))
        if "transformers.modeling_utils" not in sys.modules:
            # SciPy is for what detectors are trained by; NNCF needs it later.
            with left_out_meanwhile("scipy"), _distributions_on_demand(), _without_flex_attention():
                import transformers.modeling_utils

                with contextlib.suppress(ModuleNotFoundError):  # Versions before 4.53 lack it.
                    import transformers.masking_utils  # noqa: F401
            # Modules stay, and no later look goes through them.
            gc.freeze()
        yield


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    return (lambda each: each) if function is None else function


class _Distributions(Mapping[str, list[str]]):
    """By which distributions a module is installed, looked up by its name; of all modules it takes most of a second."""

    def __init__(self, all_of_them: Callable[[], Mapping[str, list[str]]]) -> None:
        self._whole = functools.cache(all_of_them)

    def __getitem__(self, module: str) -> list[str]:
        try:
            distribution = importlib.metadata.distribution(module.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            return self._whole()[module]
        # Another one may have its name.
        is_its = any(Path(str(distribution.locate_file(name))).exists() for name in (module, f"{module}.py"))
        return [distribution.metadata["Name"]] if is_its else self._whole()[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())


@contextlib.contextmanager
def _distributions_on_demand() -> Iterator[None]:
    found = _Distributions(importlib.metadata.packages_distributions)
    with replaced(importlib.metadata, "packages_distributions", lambda: found):
        yield


@contextlib.contextmanager
def _without_flex_attention() -> Iterator[None]:
    """Have transformers take it as not available; a class that it needs of torch's compiler comes where it is made."""
    import transformers.utils
    from transformers.utils import import_utils

    with contextlib.ExitStack() as stack:
        for owner in (transformers.utils, import_utils):
            if _FLEX in vars(owner):
                stack.enter_context(replaced(owner, _FLEX, lambda: False))
        wrapped = f"{_COMPILER}._trace_wrapped_higher_order_op"
        late = {"TransformGetItemToIndex": lambda: _wrapped().TransformGetItemToIndex()}
        stack.enter_context(_stand_in(wrapped, late, _wrapped))
        yield


def _compiler() -> ModuleType:
    import torch._dynamo

    return torch._dynamo


def _wrapped() -> ModuleType:
    from torch._dynamo import _trace_wrapped_higher_order_op

    return _trace_wrapped_higher_order_op


@contextlib.contextmanager
def _stand_in(name: str, has: Mapping[str, object], real: Callable[[], ModuleType]) -> Iterator[None]:
    """Have a module that is not imported yet look as if it were, with little in it; for more of it, it is imported."""
    if name in sys.modules:
        yield
        return
    module: Any = ModuleType(name)
    vars(module).update(has, __getattr__=functools.partial(_of_real, module, real))
    sys.modules[name] = module
    try:
        yield
    finally:
        _forget(module)


def _forget(stand_in: ModuleType) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]


def _of_real(stand_in: ModuleType, real: Callable[[], ModuleType], name: str) -> Any:
    # Every import asks for some of these; that of a module in a package asks the package for its path.
    if name.startswith("__") and (stand_in.__name__, name) != (_COMPILER, "__path__"):
        raise AttributeError(name)
    _forget(stand_in)
    return getattr(real(), name)
