"""What to do to a model, as data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

import llmcompress
from llmcompress.spec.activations import Quantization
from llmcompress.spec.dataset import Calibration, Dataset
from llmcompress.spec.parts import Parts
from llmcompress.spec.pruning import UNSTRUCTURED, Pruning, pruning_refusals
from llmcompress.spec.runtime import Gate, Runtime
from llmcompress.spec.training import Training, training_refusals
from llmcompress.spec.validation import Refusal, StrictModel, Text
from llmcompress.spec.weight_refusals import data_refusals
from llmcompress.spec.weights import WeightCompression

NPU_GROUP_SIZES = (128, -1)
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Recipe(StrictModel):
    """One way to compress a model.

    ``method: none`` converts only, in the checkpoint's precision: the baseline of every comparison. ``keep`` converts a
    checkpoint that is quantized already with its codes; of such a one ``none`` gives the floats that they stand for.
    ``weights`` needs ``weights``, ``activations`` needs ``activations`` and ``calibration``,
    ``weights_and_activations`` all three; a part that the method or the other parts would not use is refused.
    ``target: npu`` accepts what that device runs: int4_sym or int8_sym weights at ratio 1.0 with groups of 128 or one
    per channel.
    """

    name: Annotated[Text, Field(pattern=NAME)]
    description: Annotated[Text, Field(max_length=300)] | None = None
    """One line: when to take it."""
    method: Literal["none", "keep", "weights", "activations", "weights_and_activations"] = "weights"
    target: Literal["any", "cpu", "gpu", "npu"] = "any"
    weights: WeightCompression | None = None
    further_weights: Annotated[tuple[WeightCompression, ...], Field(strict=False)] = ()
    """More passes after ``weights``, in order; each compresses what the passes before left in floating point."""
    parts: Parts | None = None
    """What the other parts of a vision-language model become, whose language model takes ``weights``."""
    activations: Quantization | None = None
    calibration: Calibration | None = None
    pruning: Pruning | None = None
    """What is taken away before anything is compressed."""
    training: Training | None = None
    """Learn the bits of the weights that ``weights`` has compressed, or heal what ``pruning`` has left."""
    runtime: Runtime = Runtime()
    gate: Gate = Gate()

    def _refusals(self) -> Iterator[Refusal]:
        yield from _parts(self)
        yield from _further(self)
        for place, weights in zip(_places(self), self.weight_passes, strict=True):
            for refusal in data_refusals(weights, has_data=self.calibration is not None):
                yield refusal._replace(field=f"{place}.{refusal.field}" if refusal.field else "calibration")
        yield from training_refusals(self)
        yield from pruning_refusals(self)
        if self.target == "npu":
            yield from _npu(self)
        if self.runtime.follows_weights and not any(weights.integer_group_sizes for weights in self.weight_passes):
            problem = "the weights of this recipe have no groups of integers"
            yield Refusal("runtime.dynamic_quantization_group_size", problem, "write a number, or remove it")

    def portable(self) -> Recipe:
        """Return the recipe with a local dataset reduced to its file name: the same wherever the file lies.

        For what is stored with a result; the text itself is identified by the hash of its tokens.
        """
        changes = {}
        for part in ("calibration", "training"):
            text: Calibration | None = getattr(self, part)
            if text is not None:
                changes[part] = text.portable()
        return self.model_copy(update=changes) if changes else self

    @property
    def texts(self) -> tuple[Dataset, ...]:
        """What it reads."""
        parts = (self.calibration, self.training, self.training and self.training.validation)
        return tuple(part for part in parts if part is not None)

    @property
    def weight_passes(self) -> tuple[WeightCompression, ...]:
        """``weights`` and ``further_weights``, in the order in which they are carried out."""
        return (*([self.weights] if self.weights else []), *self.further_weights)

    def weights_of(self, part: str) -> WeightCompression | None:
        """What a part of a vision-language model takes that is not its language model; None: it is kept."""
        if not self.quantizes:
            return None
        parts = self.parts or Parts()
        if part == "mtp_model" and part not in parts.model_fields_set and self.weights is not None:
            return self.weights.data_free
        found: WeightCompression | None = getattr(parts, part)
        return found

    @property
    def keeps_zeros(self) -> bool:
        """Whether weights that are zero were set so by a pruning, and stay so."""
        return self.pruning is not None and self.pruning.method in UNSTRUCTURED

    @property
    def quantizes(self) -> bool:
        """Whether it makes codes of floats."""
        return self.method not in ("none", "keep")

    def to_quantization_config(self, **options: Any) -> Any:
        """Alias of ``llmcompress.to_quantization_config``, which gives an ``OVRecipeConfig``."""
        return llmcompress.to_quantization_config(self, **options)

    @classmethod
    def from_quantization_config(cls, config: object, **options: Any) -> Recipe:
        """Alias of ``llmcompress.recipe_from_quantization_config``."""
        return llmcompress.recipe_from_quantization_config(config, **options)

    @classmethod
    def from_artifact(cls, directory: str | Path, **options: Any) -> Recipe:
        """Alias of ``llmcompress.recipe_from_artifact``."""
        return llmcompress.recipe_from_artifact(directory, **options)


def _parts(recipe: Recipe) -> Iterator[Refusal]:
    for name in ("weights", "activations"):
        asked = name in recipe.method.split("_and_")
        if asked and getattr(recipe, name) is None:
            yield Refusal(name, f"is missing; method {recipe.method} needs it", f"add {name}: {{mode: ...}}")
        if not asked and getattr(recipe, name) is not None:
            yield Refusal(name, f"has no effect with method {recipe.method}", "remove it, or write another method")
    if recipe.activations is not None and recipe.calibration is None:
        yield Refusal("calibration", "is missing; activations need data", "add calibration: {dataset: FILE.txt}")
    if recipe.parts is not None and not recipe.quantizes:
        yield Refusal("parts", "has no effect without weights", "remove it, or write method: weights")
    weights_use_data = any(weights.uses_data for weights in recipe.weight_passes)
    prunes_by_data = recipe.pruning is not None and recipe.pruning.uses_data
    if recipe.calibration is not None and recipe.activations is None and not weights_use_data and not prunes_by_data:
        hint = "remove it (`overrides` calibration=null), or switch on a method that looks at data, such as weights.awq"
        yield Refusal("calibration", "has no effect: nothing in this recipe looks at data", hint)


def _places(recipe: Recipe) -> list[str]:
    return ["weights"] * (recipe.weights is not None) + [
        f"further_weights.{index}" for index in range(len(recipe.further_weights))
    ]


def _further(recipe: Recipe) -> Iterator[Refusal]:
    if recipe.further_weights and recipe.weights is None:
        yield Refusal("further_weights", "has no effect without weights", "write the first pass as weights")
        return
    for place, before in zip(_places(recipe)[1:], recipe.weight_passes, strict=False):
        if not before.leaves_weights:
            hint = "remove it, or name the layers it is for in the ignored_scope of the pass before"
            yield Refusal(place, "has no effect: the pass before leaves no layer uncompressed", hint)


def _npu(recipe: Recipe) -> Iterator[Refusal]:
    weights = recipe.weights
    if recipe.method != "weights" or weights is None:
        yield Refusal("method", f"target npu accepts weights, not {recipe.method}", "write method: weights")
        return
    if recipe.further_weights:
        yield Refusal("further_weights", "target npu accepts one pass", "remove it")
    if weights.mode not in ("int4_sym", "int8_sym"):
        yield Refusal("weights.mode", f"target npu accepts int4_sym and int8_sym, not {weights.mode}", "take int4_sym")
    if weights.effective_group_size not in NPU_GROUP_SIZES:
        problem = f"target npu accepts groups of 128 or -1, not {weights.effective_group_size}"
        yield Refusal("weights.group_size", problem, "take -1 (one group per channel)")
    for number, rule in enumerate(weights.rules):
        place = f"weights.rules.{number}"
        if rule.mode not in ("none", "int4_sym", "int8_sym", "int8_asym"):
            problem = f"target npu accepts none, int4_sym, int8_sym and int8_asym, not {rule.mode}"
            yield Refusal(f"{place}.mode", problem, "take int4_sym")
        elif rule.effective_group_size not in NPU_GROUP_SIZES:
            problem = f"target npu accepts groups of 128 or -1, not {rule.effective_group_size}"
            yield Refusal(f"{place}.group_size", problem, "take -1 (one group per channel)")
    if weights.group_size_fallback == "adjust":
        problem = "target npu accepts groups of 128 or -1 only, and adjust makes others"
        yield Refusal("weights.group_size_fallback", problem, "remove it, or take group_size -1")
    if weights.ratio != 1.0:
        yield Refusal("weights.ratio", f"target npu accepts 1.0, not {weights.ratio}", "remove it")
    if weights.effective_backup_mode not in ("none", "int8_sym", "int8_asym"):
        problem = f"target npu accepts none, int8_sym and int8_asym, not {weights.effective_backup_mode}"
        yield Refusal("weights.backup_mode", problem, "take int8_sym")
