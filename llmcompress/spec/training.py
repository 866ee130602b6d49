"""How the bits of compressed weights are learned: training-time optimisation as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from llmcompress.spec.dataset import Calibration
from llmcompress.spec.modes import INTEGER
from llmcompress.spec.validation import MAX_COUNT, Count, Refusal

if TYPE_CHECKING:
    from llmcompress.spec.recipe import Recipe

Learned = Literal["scales", "zero_points", "rounding"]
LearningRate = Annotated[float, Field(gt=0, le=1)]


MAX_LOGITS = 1 << 26
"""That a distillation computes at once; a batch with more is taken in parts."""


class Training(Calibration):
    """What is learned of the weights that ``weights`` compresses, and from which text.

    The first point is what ``weights`` makes of the checkpoint: data-free codes, or those of GPTQ or scale estimation
    where it asks for them. Layout, size and speed stay the same. ``distillation`` trains all layers together, by the
    KL divergence of the model to the original (LLM-QAT, arXiv:2305.17888); ``blocks`` one decoder layer after another,
    by the error of its output (AutoRound, arXiv:2309.05516), in the memory of one layer.
    """

    method: Literal["distillation", "blocks"]
    what: Annotated[tuple[Learned, ...], Field(strict=False, min_length=1)] = ("scales", "zero_points", "rounding")
    """zero_points have an effect only where codes have some of their own (int4_asym, int8_asym)."""
    num_samples: Count = 1024
    """Windows to train on; after the last one training begins with the first again."""
    num_validation_samples: Count = 32
    """Further windows of the text, never trained on: they choose the step whose weights are kept."""
    num_steps: Count = 500
    """Of each decoder layer by ``blocks``."""
    batch_size: Count = 8
    """Windows in a step."""
    learning_rate: LearningRate = 5e-3
    """Of the rounding, in steps between two codes."""
    scale_learning_rate: LearningRate = 1e-3
    """Relative to a scale."""
    zero_point_learning_rate: LearningRate = 5e-2
    """In steps between two codes."""
    num_warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 10
    """Over which the learning rates rise; then they fall in a straight line."""
    num_validations: Count = 20
    """Over all steps."""
    patience: Count = 10
    """Validations without a better one before training ends early."""
    num_top_tokens: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 256
    """Of the original's distribution at each position, kept for ``distillation``; the others count as one."""
    gradient_checkpointing: bool = False
    """Compute activations twice, and hold those of one decoder layer only."""
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    """Where torch trains; auto: an accelerator that torch finds, else the processor."""


def training_refusals(recipe: Recipe) -> Iterator[Refusal]:
    """Yield what of a recipe leaves nothing to train, or nothing that could be."""
    training, weights = recipe.training, recipe.weights
    if training is None:
        return
    if recipe.method != "weights" or weights is None:
        problem = f"has no effect with method {recipe.method}: the bits of compressed weights are learned"
        yield Refusal("training", problem, "remove it, or write method: weights")
        return
    if weights.mode not in INTEGER:
        problem = f"learns codes, scales and zero points of integers, and weights.mode is {weights.mode}"
        yield Refusal("training", problem, f"take one of {', '.join(sorted(INTEGER))}, or remove training")
    for name in ("awq", "lora_correction"):
        if getattr(weights, name):
            problem = "changes the layers around a weight, training starts from the checkpoint's own"
            yield Refusal(f"weights.{name}", problem, "remove it, or take gptq or scale_estimation as the start")
    is_default = training.what == Training.model_fields["what"].default
    if "zero_points" in training.what and not is_default and not weights.mode.endswith("_asym"):
        yield Refusal("training.what", f"zero_points has no effect: {weights.mode} has none", "leave it out")
    if len(set(training.what)) < len(training.what):
        yield Refusal("training.what", "names something twice", "every entry once is accepted")
    num_top_tokens = Training.model_fields["num_top_tokens"].default
    if training.method == "blocks" and training.num_top_tokens != num_top_tokens:
        problem = "has no effect with method blocks, which compares outputs of layers"
        yield Refusal("training.num_top_tokens", problem, "remove it")
