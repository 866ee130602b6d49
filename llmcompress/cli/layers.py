"""`llmcompress doctor --layers`: the versions of transformers that some architectures need."""

from __future__ import annotations

from collections.abc import Sequence

from llmcompress.cli.console import print_blocks, print_report, table, tell
from llmcompress.cli.progress import install_watched
from llmcompress.loaders.architecture import VISION_TYPES
from llmcompress.loaders.environments import LAYERS, TransformersLayer, fitting_layer, layer_of
from llmcompress.loaders.exporter import TASK, VISION_TASK, declared_windows
from llmcompress.loaders.layer_folders import folder_of, remove, size_bytes
from llmcompress.report.record import Record
from llmcompress.report.text import size_text


class LayerState(Record):
    """A layer, and what stands of it."""

    version: str
    """Of transformers."""
    tested: bool
    packages: dict[str, str]
    """All that it holds, with the versions."""
    architectures: tuple[str, ...]
    """The model types whose window this is the newest tested version of, where the installed one is outside it."""
    installed: bool
    size_bytes: int
    directory: str


class LayerStates(Record):
    """What `llmcompress doctor --layers` prints."""

    layers: tuple[LayerState, ...]


def manage_layers(installed: Sequence[str], removed: Sequence[str], *, as_json: bool, verbose: bool) -> None:
    """Install and remove layers by their versions, and list all that there are.

    Raises:
        UsageError: There is no such layer.
        ResourceError: It cannot be installed.
        LockedError: A run is using what is to be removed.
    """
    wanted, unwanted = ([layer_of(version) for version in versions] for versions in (installed, removed))
    for layer in unwanted:
        if remove(layer.requirements):
            tell(f"removed transformers {layer.version}")
    for layer in wanted:
        install_watched(layer, verbose=verbose)
    print_report(LayerStates(layers=tuple(map(_record, LAYERS))), _print, as_json=as_json, brief=lambda _: "")


def _tasks() -> list[tuple[str, str]]:
    """All model types, sorted, each with what it is exported for."""
    return sorted({**dict.fromkeys(declared_windows(), TASK), **dict.fromkeys(VISION_TYPES, VISION_TASK)}.items())


def _record(layer: TransformersLayer) -> LayerState:
    there = layer.is_installed
    return LayerState(
        version=layer.version,
        tested=layer.is_tested,
        packages=layer.packages,
        architectures=tuple(name for name, task in _tasks() if fitting_layer(name, task) == layer),
        installed=there,
        size_bytes=size_bytes(layer.requirements) if there else 0,
        directory=str(folder_of(layer.requirements)),
    )


def _print(records: LayerStates) -> None:
    found = table(["Transformers", "Architectures"], ["Installed"])
    for layer in records.layers:
        tested = "" if layer.tested else ", not tested"
        state = size_text(layer.size_bytes) if layer.installed else "no"
        found.add_row(f"{layer.version}{tested}", ", ".join(layer.architectures), state)
    print_blocks(found)
