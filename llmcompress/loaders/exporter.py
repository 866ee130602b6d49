"""Which model types the installed exporter converts, and with which versions of transformers."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

TASK = "text-generation-with-past"
VISION_TASK = "image-text-to-text"

_TABLES = ("base.py", "config.py", "model_configs.py")
_LINES = re.compile(
    r'^@register_in_tasks_manager\(\s*"(?P<type>[^"]+)",(?P<tasks>[^)]*)\)'
    r"|^class (?P<name>\w+)\((?P<bases>[^)]*)\):"
    r'|^    (?P<end>MIN|MAX)_TRANSFORMERS_VERSION = (?:None|"(?P<version>[^"]*)")'
    r"|^(?P<list>[A-Z_]+) = \[(?P<items>[^\]]*)\]",
    re.MULTILINE,
)


def _exporters(task: str = TASK) -> dict[str, Any]:
    """The exporter's configuration class of each model type that it converts for a task."""
    import optimum.exporters.openvino.model_configs  # noqa: F401 - importing it registers the types
    from optimum.exporters.tasks import TasksManager

    types = TasksManager._SUPPORTED_MODEL_TYPE
    return {name: tasks["openvino"][task] for name, tasks in types.items() if task in tasks.get("openvino", {})}


class VersionWindow(NamedTuple):
    """The versions of transformers that an export works with; None: no bound."""

    low: str | None
    high: str | None

    def takes(self, transformers: str) -> bool:
        """Whether a version lies in it."""
        from packaging.version import Version

        version = Version(Version(transformers).base_version)
        return (self.low is None or version >= Version(self.low)) and (
            self.high is None or version <= Version(self.high)
        )

    @property
    def specifier(self) -> str:
        """As pip reads it."""
        low, high = self
        return ",".join(([f">={low}"] if low else []) + ([f"<={high}"] if high else []))

    def __str__(self) -> str:
        low, high = self
        return " and ".join(([f"at least {low}"] if low else []) + ([f"at most {high}"] if high else []))


@functools.cache
def declared_windows(task: str = TASK) -> Mapping[str, VersionWindow]:
    """The window of each model type of a task, read from the text of the exporter's tables: they take long to import.

    Empty where optimum-intel is not installed or keeps them elsewhere.
    """
    from importlib import metadata

    found: dict[str, str] = {}
    lists: dict[str, str] = {}
    classes: dict[str, tuple[list[str], dict[str, str | None]]] = {}
    waiting: list[str] = []
    name = ""
    try:
        folder = Path(str(metadata.distribution("optimum-intel").locate_file("optimum/exporters/openvino")))
        texts = [(folder / table).read_text(encoding="utf-8") for table in _TABLES]
    except (metadata.PackageNotFoundError, OSError):
        return {}
    for line in _LINES.finditer("\n".join(texts)):
        if line["list"]:
            lists[line["list"]] = line["items"]
        elif line["type"]:
            tasks = re.sub(r"\*([A-Z_]+)", lambda part: lists.get(part[1], ""), line["tasks"])
            waiting += [line["type"]] if f'"{task}"' in tasks else []
        elif line["name"]:
            name = line["name"]
            classes[name] = re.findall(r"\w+", line["bases"]), {}
            found |= dict.fromkeys(waiting, name)
            waiting = []
        elif name:
            classes[name][1][line["end"]] = line["version"]

    def inherited(name: str, end: str) -> str | None:
        bases, own = classes.get(name, ([], {}))
        return own[end] if end in own else next(filter(None, (inherited(base, end) for base in bases)), None)

    return {each: VersionWindow(inherited(of, "MIN"), inherited(of, "MAX")) for each, of in found.items()}


def task_of(config: Mapping[str, Any]) -> str:
    """What a model is exported for, by its ``config.json``: to continue text, or to answer about pictures too."""
    model_type = str(config.get("model_type"))
    sees = config.get("vision_config") is not None or model_type not in declared_windows()
    return VISION_TASK if sees and model_type in declared_windows(VISION_TASK) else TASK


def auto_class(config: Mapping[str, Any]) -> Any:
    """The automatic class of transformers that holds a model, by its ``config.json``.

    What is code of its repository is a causal model to it, pictures or not.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    is_own = config.get("model_type") in CONFIG_MAPPING_NAMES
    return AutoModelForImageTextToText if is_own and task_of(config) == VISION_TASK else AutoModelForCausalLM


def window_of(config: Mapping[str, Any]) -> VersionWindow | None:
    """The versions of transformers that a model is converted with, by its ``config.json``; None: there is no export."""
    return declared_windows(task_of(config)).get(str(config.get("model_type")))


def _window(model_type: str, task: str = TASK) -> VersionWindow | None:
    """None where there is no export."""
    found = _exporters(task).get(model_type)
    if found is None:
        return None
    exporter = getattr(found, "func", found)
    return VersionWindow(*(_version(getattr(exporter, f"{end}_TRANSFORMERS_VERSION", None)) for end in ("MIN", "MAX")))


def not_convertible(model_type: str, transformers: str | None = None, task: str = TASK) -> str:
    """Why the installed exporter cannot convert this type; empty when it can.

    Args:
        model_type: As in ``config.json``.
        transformers: The version that it will be converted with; None: the installed one.
        task: What for.
    """
    from packaging.version import Version

    window = _window(model_type, task)
    if window is None:
        return f"optimum-intel has no export of model type {model_type!r} for text generation"
    has = transformers or installed_transformers()
    if window.takes(has):
        return ""
    low, high = window
    if low and high and Version(low) > Version(high):
        return f"optimum-intel's export of {model_type!r} works with no transformers version (from {low} up to {high})"
    return f"optimum-intel converts {model_type!r} only with transformers {window}; {has} is installed"


def remedy(model_type: str, task: str = TASK) -> str:
    """What to do about a type that is not convertible: the exporter's own versions of transformers, or other types."""
    from packaging.version import Version

    window = _window(model_type, task)
    if window is None:
        return f"it exports types of a similar name: {', '.join(_neighbours(model_type))}"
    low, high = window
    if low and high and Version(low) > Version(high):
        return "another version of optimum-intel is needed: pip install -U optimum-intel"
    return (
        f"in an environment of its own: pip install 'transformers{window.specifier}' optimum-intel, "
        "and llmcompress again"
    )


def _version(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "base_version", value))


def installed_transformers() -> str:
    """The version of transformers that is installed."""
    import transformers

    return str(transformers.__version__)


def dtype_argument() -> str:
    """What ``from_pretrained`` of the installed transformers calls the precision of weights."""
    from packaging.version import Version

    return "dtype" if Version(installed_transformers()) >= Version("4.56") else "torch_dtype"


def _neighbours(model_type: str) -> list[str]:
    """Convertible types with a similar name, or well-known ones."""
    usable = [name for name in sorted(_exporters()) if not not_convertible(name)]
    return difflib.get_close_matches(model_type, usable, n=3, cutoff=0.5) or ["llama", "qwen3", "mistral", "phi3"]
