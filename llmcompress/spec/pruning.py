"""What of a model is taken away before its weights are compressed: pruning as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llmcompress.spec.modes import INTEGER
from llmcompress.spec.validation import Count, Refusal, StrictModel

if TYPE_CHECKING:
    from llmcompress.spec.recipe import Recipe

Method = Literal["depth", "experts", "width", "magnitude", "wanda", "sparsegpt"]
UNSTRUCTURED: frozenset[Method] = frozenset({"magnitude", "wanda", "sparsegpt"})
"""Methods that set single weights to zero."""
_FIELDS: dict[Method, tuple[str, ...]] = {
    "depth": ("num_layers", "max_kl", "speedup", "layers", "selection"),
    "experts": ("ratio", "merge"),
    "width": ("intermediate_size", "num_key_value_heads"),
    "magnitude": ("sparsity", "pattern"),
    "wanda": ("sparsity", "pattern"),
    "sparsegpt": ("sparsity", "pattern"),
}
"""What each method goes by; one of them at least, and no other."""
_HOW = ("selection", "merge")
"""Fields that say how, and not how much."""
_PATTERN = r"^[1-9][0-9]?:[1-9][0-9]?$"


class Pruning(StrictModel):
    """What is taken away, and how it is chosen; the text is that of ``calibration``.

    ``depth`` drops decoder layers, by the measured KL divergence of each drop, one after another (``greedy``), or the
    block of consecutive layers whose input and output are nearest in angle (``contiguous``, arXiv:2403.17887).
    ``experts`` drops of every layer the experts that the text calls least, weighted by their router and their output's
    norm (REAP, arXiv:2510.13999); with ``merge`` those that stay take them up. ``width`` drops channels between the
    projections of an MLP, and groups of heads that share keys and values, by the norm of what they add; the projection
    behind them is refitted to the original's output by least squares. These make a smaller model, which is faster
    everywhere. ``magnitude``, ``wanda`` (arXiv:2306.11695) and ``sparsegpt`` (arXiv:2301.00774) set single weights of
    linear layers to zero: size and speed stay what they are on devices without kernels for that.
    """

    method: Method
    num_layers: Count | None = None
    """Decoder layers to drop."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """Drop layers as long as the KL divergence on the text, before any healing, stays within these nats a token."""
    speedup: Annotated[float, Field(gt=1)] | None = None
    """Drop as few layers as make a new token this many times as fast, by times that are measured on this machine's
    CPU; how many that are stands as ``num_layers`` in the manifest's recipe."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] | None = None
    """Numbers of the decoder layers to drop, from 0; no text is needed."""
    selection: Literal["greedy", "contiguous"] = "greedy"
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the experts of each layer to drop."""
    merge: bool = False
    """Average each expert that goes, by calls, into the one that stays and answers most like it (arXiv:2410.08589)."""
    intermediate_size: Count | None = None
    """Channels of each MLP that are kept."""
    num_key_value_heads: Count | None = None
    """Of each attention that are kept, with the query heads that share them."""
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the weights that become zero: of each matrix, by ``wanda`` of each row."""
    pattern: Annotated[str, Field(pattern=_PATTERN)] | None = None
    """``2:4``: two of every four consecutive weights of a row become zero."""

    @property
    def uses_data(self) -> bool:
        """Whether a text decides what goes."""
        return self.method != "magnitude" and self.layers is None

    @property
    def zeros_of(self) -> tuple[int, int] | None:
        """How many of how many consecutive weights become zero; None: it goes by ``sparsity``."""
        if self.pattern is None:
            return None
        zeros, of = map(int, self.pattern.split(":"))
        return zeros, of

    def _refusals(self) -> Iterator[Refusal]:
        own = _FIELDS[self.method]
        others = {name for names in _FIELDS.values() for name in names} - set(own)
        for name in sorted(others):
            if getattr(self, name) != type(self).model_fields[name].default:
                yield Refusal(name, f"has no effect with method {self.method}", "remove it")
        sizes = [name for name in own if name not in _HOW]
        given = [name for name in sizes if getattr(self, name) is not None]
        if not given:
            yield Refusal(sizes[0], f"is missing; method {self.method} needs {' or '.join(sizes)}", "write one of them")
        if len(given) > 1 and self.method != "width":
            yield Refusal(given[1], f"has no effect beside {given[0]}", f"write {given[0]} or {given[1]}")
        if self.selection == "contiguous" and self.num_layers is None and self.speedup is None:
            hint = "write one of them, or remove selection"
            yield Refusal("selection", "contiguous needs num_layers or speedup", hint)
        if self.layers is not None and len(set(self.layers)) < len(self.layers):
            yield Refusal("layers", "names a layer twice", "every layer once is accepted")
        if self.zeros_of is not None and self.zeros_of[0] >= self.zeros_of[1]:
            yield Refusal("pattern", f"{self.pattern} leaves nothing", "write 2:4 for two zeros of every four weights")


def with_num_layers(recipe: Recipe, num_layers: int) -> Recipe:
    """A recipe that prunes, with a number of layers in place of a speed."""
    assert recipe.pruning is not None
    pruning = recipe.pruning.model_copy(update={"num_layers": num_layers, "speedup": None})
    return recipe.model_copy(update={"pruning": pruning})


def pruning_refusals(recipe: Recipe) -> Iterator[Refusal]:
    """Yield what of a recipe contradicts its pruning, or is missing for it."""
    pruning, training = recipe.pruning, recipe.training
    if training is not None and training.heals and pruning is None:
        hint = "add pruning, or learn the bits: remove training.what"
        yield Refusal("training.what", "float weights are healed after a pruning, and there is none", hint)
    if pruning is None:
        return
    if recipe.method == "keep":
        yield Refusal("pruning", "has no effect with method keep, which changes no weight", "remove it")
    if pruning.uses_data and recipe.calibration is None:
        hint = "add calibration: {dataset: FILE.txt}"
        yield Refusal("calibration", f"is missing; pruning.method {pruning.method} looks at data", hint)
    if pruning.speedup is not None:
        yield from _speed_refusals(recipe)
    if pruning.method in UNSTRUCTURED:
        for number, weights in enumerate(recipe.weight_passes):
            for name in ("gptq", "awq", "lora_correction"):
                if getattr(weights, name):
                    place = "weights" if number == 0 else f"further_weights.{number - 1}"
                    problem = f"moves weights that pruning.method {pruning.method} has set to zero"
                    yield Refusal(f"{place}.{name}", problem, "remove it; data-free codes keep every zero exactly")
        mode = recipe.weights.mode if recipe.weights else None
        if training is not None and not training.heals and (training.method == "fq_lora" or mode not in INTEGER):
            problem = f"moves zeros, which pruning.method {pruning.method} has set"
            yield Refusal("training.method", problem, "take distillation or blocks, of weights in integers")


def _speed_refusals(recipe: Recipe) -> Iterator[Refusal]:
    """What changes a model's speed and is not in the model that is timed, which is made without data."""
    fields = [
        f"weights.{name}"
        for name in ("rules", "lora_correction")
        if any(getattr(weights, name) for weights in recipe.weight_passes)
    ]
    if any(weights.mode == "adaptive_codebook" for weights in recipe.weight_passes):
        fields.append("weights.mode adaptive_codebook")
    if recipe.activations is not None:
        fields.append("activations")
    for name in fields[:1]:
        problem = f"is measured before there is any data, of one format for all weights: not beside {name}"
        yield Refusal("pruning.speedup", problem, f"write pruning.num_layers, or remove {name}")
