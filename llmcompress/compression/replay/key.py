"""What a kept graph is known by: everything that its bytes depend on but the weights' values."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmcompress.compression.replay.content import TensorMemory, content
from llmcompress.errors import UsageError
from llmcompress.loaders.generation import read_generation_config
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.source import Source
from llmcompress.report.compression import Engine
from llmcompress.spec import Recipe, WeightCompression
from llmcompress.system.cache import cache_dir, content_key
from llmcompress.system.environment import (
    PACKAGES_THAT_DECIDE_BYTES,
    cpu_name,
    installed_versions,
    platform_name,
)

KIND = "graphs"
"""The cache's folder for them."""
VARIABLE = "LLMCOMPRESS_GRAPH_CACHE"
"""What is done with kept graphs where a call does not say: one of ``_SETTINGS``."""
_SETTINGS = ("on", "off", "background", "use")
"""Use and keep them; neither; keep them in a process that outlives the call; use them alone."""

_NAMES = ("_name_or_path", "transformers_version")
"""Of a configuration: where it came from and what wrote it, which the exporter passes over."""
_DECIDING_VARIABLES = ("NNCF_", "OV_", "OPENVINO_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "ATEN_", "DNNL_", "ONEDNN_")


class GraphKey(NamedTuple):
    """What a kept graph is known by."""

    configuration: Mapping[str, Any]
    """Plain values."""
    tensors: Mapping[str, Any]
    """The same, of the weights."""

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        first = content_key(self.configuration)[:32]
        return cache_dir() / KIND / f"{first}-{content_key(self.tensors)[:32]}"


class GraphCache(NamedTuple):
    """What is done with kept graphs."""

    uses: bool = False
    keeps: bool = False
    is_asked: bool = False
    """Whether a call itself asks for keeping, and is told where that cannot be."""
    in_background: bool = False
    """Whether they are kept by a process that outlives the call."""


GraphCacheOption = bool | Literal["background"] | None
"""Use and keep graphs, or neither; keep them in the background; None: as the environment says."""


def cache_use(wanted: GraphCacheOption) -> GraphCache:
    """What a call does with kept graphs; ``LLMCOMPRESS_GRAPH_CACHE=off`` goes before what it asks for.

    Args:
        wanted: None: as the variable says, without it use what is kept: to keep a graph takes as long as tracing the
            model.

    Raises:
        UsageError: It is something else, or the variable holds something else than its settings.
    """
    found = setting()
    if wanted not in (True, False, "background", None):
        hint = "write one of these"
        raise UsageError(f"got {wanted!r}; accepted: True, False, 'background'", where="`graph_cache`", hint=hint)
    if found == "off" or wanted is False:
        return GraphCache()
    if wanted is True:
        return GraphCache(uses=True, keeps=True, is_asked=True)
    in_background = (wanted or found) == "background"
    return GraphCache(uses=True, keeps=in_background or found == "on", in_background=in_background)


def setting() -> str | None:
    """What the variable says; None: nothing.

    Raises:
        UsageError: It holds something else than its settings.
    """
    found = os.environ.get(VARIABLE) or None
    if found not in (*_SETTINGS, None):
        raise UsageError(f"got {found!r}; accepted: {', '.join(_SETTINGS)}", where=VARIABLE, hint="write one of these")
    return found


def why_not(source: Source, recipe: Recipe, engine: Engine) -> str:
    """Why no graph is kept of a source by a recipe; empty where one can be."""
    if not hasattr(os, "posix_fallocate"):
        return "this system does not reserve room in a file"
    if source.layout != "checkpoint" or source.container is not None or is_repacked(source.config):
        return "the source is no checkpoint of floats in safetensors files"
    if source.text_only:
        return "it is a part of a vision-language checkpoint"
    if source.sees:
        return "a vision-language model is several graphs"
    if source.adapter is not None or source.trust_remote_code:
        return "an adapter or code of its own belongs to the model"
    if engine != "llmcompress":
        return "the arithmetic is NNCF's"
    if recipe.method not in ("none", "weights") or recipe.texts or recipe.pruning or recipe.training:
        return f"recipe {recipe.name} does more than compress weights without data"
    return next(filter(None, map(_depends_on_values, recipe.weight_passes)), "")


def _depends_on_values(weights: WeightCompression) -> str:
    if weights.selects_layers:
        return f"which layers take {weights.mode} at ratio {weights.ratio} depends on the weights' values"
    if weights.awq or weights.uses_data or any(rule.method for rule in weights.rules):
        return "a method searches for codes by the weights' values"
    return ""


def configuration(source: Source, recipe: Recipe, engine: Engine) -> dict[str, Any]:
    """The part of a key that is known before a Hub source's weights are here."""
    return {
        "config": without_names(source.config),
        "generation_config": without_names(read_generation_config(source.path) or {}),
        "recipe": recipe.portable().model_dump(mode="json"),
        "engine": engine,
        **surroundings(),
    }


def without_recipe(configured: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a key that a graph is known by before it is compressed."""
    return {**configured, "recipe": None, "engine": None}


def graph_key(source: Source, configured: Mapping[str, Any], tensors: TensorMemory) -> GraphKey:
    """The whole key.

    Args:
        source: Whose weights are here.
        configured: Of it, as ``configuration`` gives it.
        tensors: Its tensors.
    """
    headers = sorted([name, info.dtype, list(info.shape)] for name, info in tensors.checkpoint.tensors.items())
    return GraphKey(configured, {"headers": headers, "content": content(tensors).plain()})


def is_any_kept(configured: Mapping[str, Any]) -> bool:
    """Whether a graph of some checkpoint of this configuration is kept."""
    return any((cache_dir() / KIND).glob(f"{content_key(configured)[:32]}-*"))


def without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what says where it came from."""
    return {name: value for name, value in config.items() if name not in _NAMES}


@functools.cache
def surroundings() -> dict[str, Any]:
    """Versions, code, machine and settings that decide bytes."""
    return {
        "versions": installed_versions(PACKAGES_THAT_DECIDE_BYTES),
        "python": sys.version,
        "code": _code(),
        "machine": [platform_name(), cpu_name(), len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0],
        "variables": {name: value for name, value in os.environ.items() if name.startswith(_DECIDING_VARIABLES)},
    }


def _code() -> str:
    """A hash of our own sources: of an installed version they do not change, of a working tree they do."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
