"""How many decoder layers must go for a speed: by what a token takes of a whole model, and of one with half the layers.

All decoder layers are taken to cost the same, so that two models tell what one costs, and what is left without any.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.artifact import write_errors
from llmcompress.benchmarking.token_times import DEVICE, model_times
from llmcompress.errors import RecipeError
from llmcompress.report.file_names import MODEL_XML
from llmcompress.report.record import DepthSpeed
from llmcompress.system.json_file import write_json
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    from llmcompress.loaders.loaded_model import LoadedModel


class DepthForSpeed(NamedTuple):
    """What a speed asks for."""

    num_layers: int
    """Decoder layers to drop."""
    measured: DepthSpeed


def depth_for_speed(
    speedup: float,
    models: Mapping[int, Callable[[Path], LoadedModel]],
    scratch_dir: Path,
    target: Path,
    progress: Reporter,
) -> DepthForSpeed:
    """Find the least number of decoder layers whose drop makes a new token so many times as fast.

    Args:
        speedup: Above 1.
        models: By its number of decoder layers what makes a compressed model, the whole one first; given an empty
            directory for its files.
        scratch_dir: Existing directory, for the models while they are timed.
        target: Named where the disk refuses something.
        progress: Told when the models are timed.

    Raises:
        RecipeError: No drop that leaves a layer does.
        WriteError: The disk does not hold the models.
    """
    directories = [_saved(make, scratch_dir / f"of-{number}-layers", target) for number, make in models.items()]
    progress(Progress("time a token", 0, 1))
    whole_s, part_s = model_times(directories, "decode")
    progress(Progress("time a token", 1, 1))
    for directory in directories:
        shutil.rmtree(directory)
    num_whole, num_part = models
    return _solved(speedup, num_whole, whole_s, (whole_s - part_s) / (num_whole - num_part))


def _solved(speedup: float, num_layers: int, token_s: float, layer_s: float) -> DepthForSpeed:
    hint = "ask for less, take a recipe of fewer bits, or write pruning.num_layers"
    if layer_s <= 0:
        problem = f"a token takes {token_s * 1e3:.3g} ms here, and no less without half of the decoder layers"
        raise RecipeError(problem, where="pruning.speedup", hint=hint)
    # By noise layers may seem to take more than all there is.
    layer_s = min(layer_s, token_s / num_layers)
    num_dropped = math.ceil((1 - 1 / speedup) * token_s / layer_s)
    if num_dropped >= num_layers:
        most = token_s / (token_s - (num_layers - 1) * layer_s)
        raise RecipeError(
            f"got {speedup:g}, and a token takes {token_s * 1e3:.3g} ms here, of which each of {num_layers} decoder "
            f"layers takes {layer_s * 1e3:.3g} ms: with one layer left it is {most:.2f} times as fast",
            where="pruning.speedup",
            hint=hint,
        )
    ratio = token_s / (token_s - num_dropped * layer_s)
    return DepthForSpeed(num_dropped, DepthSpeed(device=DEVICE, token_s=token_s, layer_s=layer_s, ratio=ratio))


def _saved(make: Callable[[Path], LoadedModel], directory: Path, target: Path) -> Path:
    import openvino as ov

    with write_errors(target):
        directory.mkdir()
        loaded = make(directory)
        write_json(directory / "config.json", loaded.config)
        ov.save_model(loaded.model, directory / MODEL_XML, compress_to_fp16=False)
    return directory
