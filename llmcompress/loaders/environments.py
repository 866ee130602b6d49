"""Which transformers a model is converted with: the installed one, or a layer in front of a worker's search path.

Optimum's exporter takes each architecture within a window of transformers versions, and no version serves all. A layer
is another version of transformers alone, with what it needs to be imported; everything else stays as it is installed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llmcompress.errors import UsageError
from llmcompress.loaders.exporter import TASK, VersionWindow, declared_windows, window_of
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.layer_folders import folder_of, install
from llmcompress.loaders.source import Source
from llmcompress.system.cache import hold
from llmcompress.system.environment import installed_versions
from llmcompress.system.library_call import libraries_speak
from llmcompress.system.process import run_supervised
from llmcompress.system.progress import WARNING, Reporter, silent

ResultT = TypeVar("ResultT")

VARIABLE = "LLMCOMPRESS_LAYERS"
REQUIREMENTS = Path(__file__).with_name("layer_requirements")
_MODES = ("ask", "auto", "off")

_log = logging.getLogger(__name__)


class TransformersLayer(NamedTuple):
    """A version of transformers."""

    version: str
    is_tested: bool = True
    """False: it is beyond the versions that optimum-intel requires, and has been tried with one model of each type."""

    @property
    def requirements(self) -> Path:
        """The file that pins what is installed for it."""
        return REQUIREMENTS / f"transformers-{self.version}.txt"

    @property
    def packages(self) -> dict[str, str]:
        """The versions of what it holds, by the packages' names."""
        text = self.requirements.read_text(encoding="utf-8")
        return dict(re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE))

    @property
    def is_installed(self) -> bool:
        """Whether all of it is there."""
        return folder_of(self.requirements).is_dir()


LAYERS = (
    *map(TransformersLayer, ("5.2.0", "5.0.0", "4.57.6", "4.55.4", "4.53.3", "4.51.3")),
    TransformersLayer("5.15.1", is_tested=False),
    TransformersLayer("5.10.4", is_tested=False),
)
"""In the order in which the first that fits is taken."""


class LayerMissingError(UsageError):
    """A model needs a layer that is not installed, and that may not be installed unasked."""

    def __init__(self, message: str, *, version: str = "", where: str = "", hint: str = "", **more: Any) -> None:
        """Take the texts, and the version of the layer; empty where it cannot be installed."""
        super().__init__(message, where=where, hint=hint, **more)
        self.version = version

    def __reduce__(self) -> tuple[object, ...]:
        return _missing, (self.message, self.version, self.where, self.hint)


def mode() -> str:
    """``$LLMCOMPRESS_LAYERS``: ask, which is the default, auto or off.

    Raises:
        UsageError: It is something else.
    """
    found = os.environ.get(VARIABLE) or "ask"
    if found not in _MODES:
        raise UsageError(f"got {found!r}; accepted: {', '.join(_MODES)}", where=VARIABLE, hint="write one of these")
    return found


def layer_of(version: str) -> TransformersLayer:
    """The layer with a version of transformers.

    Raises:
        UsageError: There is no such layer.
    """
    for layer in LAYERS:
        if layer.version == version:
            return layer
    accepted = ", ".join(layer.version for layer in LAYERS)
    raise UsageError(f"there is no layer {version!r}; accepted: {accepted}", hint="run: llmcompress doctor --layers")


def needed_layer(source: Source) -> TransformersLayer | None:
    """The newest layer that the exporter converts a source with; None: it is converted here, already, or not at all.

    Raises:
        UsageError: ``LLMCOMPRESS_LAYERS`` holds no such word.
    """
    is_checkpoint = source.layout == "checkpoint"
    return _fitting(window_of(source.config)) if is_checkpoint and mode() != "off" else None


def is_known(source: Source) -> bool:
    """Whether the installed transformers can build the model of a source from its configuration, without its code."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return source.config.get("model_type") in CONFIG_MAPPING_NAMES and not source.runs_code


def fitting_layer(model_type: str, task: str = TASK) -> TransformersLayer | None:
    """The newest layer that the exporter converts a model type with; None: the installed transformers does, or none."""
    return _fitting(declared_windows(task).get(model_type))


def _fitting(window: VersionWindow | None) -> TransformersLayer | None:
    if window is None:
        return None
    try:
        here = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return None
    return None if window.takes(here) else next((layer for layer in LAYERS if window.takes(layer.version)), None)


def transformers_needed(source: Source) -> str | None:
    """The versions of transformers that a source is converted and run with, as pip reads them; None: any new one."""
    window = window_of(source.config) if source.layout == "checkpoint" else None
    return window.specifier if window is not None and window.high is not None else None


def versions_for(source: Source, packages: tuple[str, ...]) -> dict[str, str]:
    """As ``installed_versions``, with those of the layer that converts a source."""
    versions = installed_versions(packages)
    layer = needed_layer(source)
    return versions | {name: pinned for name, pinned in (layer.packages if layer else {}).items() if name in versions}


def is_at_hand(layer: TransformersLayer, *, offline: bool = False) -> bool:
    """Whether a layer is installed, or is installed unasked when it is needed."""
    return layer.is_installed or (mode() == "auto" and not offline)


def require_layer(layer: TransformersLayer, config: Mapping[str, Any], *, offline: bool = False) -> None:
    """Refuse to go on where a layer is not installed and may not be installed now.

    Args:
        layer: What the model takes.
        config: The model's ``config.json``.
        offline: Nothing may be installed.

    Raises:
        LayerMissingError: Says how it is installed.
    """
    if is_at_hand(layer, offline=offline):
        return
    command = f"llmcompress doctor --layers --install {layer.version}"
    raise LayerMissingError(
        f"optimum-intel converts {str(config.get('model_type'))!r} only with transformers {window_of(config)}; "
        f"{metadata.version('transformers')} is installed, and {layer.version} is not there as a layer",
        version="" if offline else layer.version,
        hint=f"{'with the network, ' if offline else ''}run: {command}"
        + ("" if offline else f"; {VARIABLE}=auto does so wherever it is needed"),
    )


def at_hand(
    layer: TransformersLayer, config: Mapping[str, Any], *, offline: bool = False, progress: Reporter = silent
) -> Path:
    """The folder of a layer for the search path of a worker; it is installed where it may be.

    Raises: as ``require_layer`` and ``install``.
    """
    require_layer(layer, config, offline=offline)
    folder = folder_of(layer.requirements)
    hold(folder)
    if not folder.is_dir():
        install(layer.requirements, progress=progress)
    return folder


def on_layer(
    layer: TransformersLayer,
    function: Callable[..., ResultT],
    source: Source,
    keywords: Mapping[str, Any],
    *,
    offline: bool = False,
    progress: Reporter = silent,
    fetch: Callable[[Source], Source] | None = None,
) -> ResultT:
    """Call ``function(source, **keywords, progress=...)`` in a fresh process that imports a layer's transformers.

    Args:
        layer: Is installed where it may be.
        function: Of a module.
        source: Whose files are fetched, because the Hub is out of reach there.
        keywords: The function's.
        offline: Nothing may be installed.
        progress: Told of what goes on before the function is called, and by it.
        fetch: Brings what the function reads; None: the weights too.

    Raises:
        What the function raises, and what ``require_layer``, ``install`` and ``fetch_weights`` do.
    """
    folder = at_hand(layer, source.config, offline=offline, progress=progress)
    if not layer.is_tested:
        _log.warning(
            "%s: transformers %s is beyond what optimum-intel requires; tried, and not tested",
            source.name,
            layer.version,
        )
    here = _without_hub(fetch_weights(source, progress=progress) if fetch is None else fetch(source))
    return run_supervised(
        function, {"source": here, **keywords}, progress=progress, logs=_pass_on, search_path=(folder,)
    )


def _without_hub(source: Source) -> Source:
    """The same, whose files are all here."""
    adapter = source.adapter and source.adapter._replace(files=None)
    return source._replace(files=None, adapter=adapter)


def _pass_on(line: str) -> None:
    if line.startswith(WARNING):
        _log.warning("%s", line.removeprefix(WARNING))
    elif libraries_speak():
        sys.stderr.write(f"{line}\n")


def _missing(message: str, version: str, where: str, hint: str) -> LayerMissingError:
    return LayerMissingError(message, version=version, where=where, hint=hint)
