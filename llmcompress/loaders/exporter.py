"""Which model types the installed exporter converts, and with which versions of transformers."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

TASK = "text-generation-with-past"


def _exporters() -> dict[str, Any]:
    """The exporter's configuration class of each model type it converts to a decoder with a cache."""
    import optimum.exporters.openvino.model_configs  # noqa: F401 - importing it registers the types
    from optimum.exporters.tasks import TasksManager

    types = TasksManager._SUPPORTED_MODEL_TYPE
    return {name: tasks["openvino"][TASK] for name, tasks in types.items() if TASK in tasks.get("openvino", {})}


class _Window(NamedTuple):
    """The versions of transformers that an export works with; None: no bound."""

    low: str | None
    high: str | None


def _window(model_type: str) -> _Window | None:
    """None where there is no export."""
    found = _exporters().get(model_type)
    if found is None:
        return None
    exporter = getattr(found, "func", found)
    return _Window(*(_version(getattr(exporter, f"{end}_TRANSFORMERS_VERSION", None)) for end in ("MIN", "MAX")))


def not_convertible(model_type: str) -> str:
    """Why the installed exporter cannot convert this type; empty when it can."""
    from packaging.version import Version

    window = _window(model_type)
    if window is None:
        return f"optimum-intel has no export of model type {model_type!r} for text generation"
    low, high = window
    installed = Version(Version(installed_transformers()).base_version)
    if (low is None or installed >= Version(low)) and (high is None or installed <= Version(high)):
        return ""
    if low and high and Version(low) > Version(high):
        return f"optimum-intel's export of {model_type!r} works with no transformers version (from {low} up to {high})"
    wanted = " and ".join(([f"at least {low}"] if low else []) + ([f"at most {high}"] if high else []))
    has = installed_transformers()
    return f"optimum-intel converts {model_type!r} only with transformers {wanted}; {has} is installed"


def remedy(model_type: str) -> str:
    """What to do about a type that is not convertible: the exporter's own versions of transformers, or other types."""
    from packaging.version import Version

    window = _window(model_type)
    if window is None:
        return f"it exports types of a similar name: {', '.join(_neighbours(model_type))}"
    low, high = window
    if low and high and Version(low) > Version(high):
        return "another version of optimum-intel is needed: pip install -U optimum-intel"
    wanted = ",".join(([f">={low}"] if low else []) + ([f"<={high}"] if high else []))
    return f"in an environment of its own: pip install 'transformers{wanted}' optimum-intel, and llmcompress again"


def _version(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "base_version", value))


def installed_transformers() -> str:
    """The version of transformers that is installed."""
    import transformers

    return str(transformers.__version__)


def _neighbours(model_type: str) -> list[str]:
    """Convertible types with a similar name, or well-known ones."""
    usable = [name for name in sorted(_exporters()) if not not_convertible(name)]
    return difflib.get_close_matches(model_type, usable, n=3, cutoff=0.5) or ["llama", "qwen3", "mistral", "phi3"]
