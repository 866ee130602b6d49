"""How the bits of compressed weights are learned: training-time optimisation as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from llmcompress.spec.dataset import Calibration, Dataset, text_only_refusals
from llmcompress.spec.modes import INTEGER, Mode
from llmcompress.spec.tuning import with_budget_s
from llmcompress.spec.validation import MAX_COUNT, Count, Refusal

if TYPE_CHECKING:
    from llmcompress.spec.recipe import Recipe
    from llmcompress.spec.weights import WeightCompression

Learned = Literal["scales", "zero_points", "rounding", "weights", "adapters"]
LearningRate = Annotated[float, Field(gt=0, le=1)]


RateName = Literal[
    "learning_rate",
    "scale_learning_rate",
    "zero_point_learning_rate",
    "weight_learning_rate",
    "adapter_learning_rate",
]
_RATES: dict[RateName, float] = {
    "learning_rate": 5e-3,
    "scale_learning_rate": 1e-3,
    "zero_point_learning_rate": 5e-2,
    "weight_learning_rate": 3e-3,
    "adapter_learning_rate": 1e-3,
}
FULL_RATE_STEPS = 500
"""Up to so many steps the default rates are these."""
HEALED: frozenset[Learned] = frozenset({"weights", "adapters"})
"""What heals a pruned model, before its weights are compressed."""
LEARNABLE: frozenset[Mode] = INTEGER | {"nf4", "fp4"}
"""Modes whose bits can be learned."""
_POWERS, _CODEBOOK = "its scales are powers of two", "its values are a codebook's"
_NO_GRADIENT: dict[Mode, str] = {
    "mxfp4": _POWERS,
    "mxfp8_e4m3": _POWERS,
    "nvfp4": "its scales are eight-bit floats",
    "fp8_e4m3": "its codes are eight-bit floats, which lose little",
    "cb4": _CODEBOOK,
    "codebook": _CODEBOOK,
    "adaptive_codebook": _CODEBOOK,
}
"""Why not those of the others."""
MAX_LOGITS = 1 << 26
"""That a distillation computes at once; a batch with more is taken in parts."""


class ValidationText(Dataset):
    """A text that chooses the step whose weights are kept, in windows as long as those that are trained on."""

    chat_template: bool = False
    """Rows are conversations, written out by the model's chat template."""


class Training(Calibration):
    """What is learned of the weights that ``weights`` compresses, and from which text.

    The first point is what ``weights`` makes of the checkpoint: data-free codes, or those of AWQ, scale estimation or
    GPTQ where it asks for them. Layout, size and speed stay the same. ``distillation`` trains all layers together, by
    the KL divergence of the model to the original (LLM-QAT, arXiv:2305.17888); ``blocks`` one decoder layer after
    another, by the error of its output (AutoRound, arXiv:2309.05516), in the memory of one layer; ``fq_lora`` as
    ``distillation`` does, but by NNCF's absorbable low-rank adapters: what is added to a weight before it is rounded.
    """

    method: Literal["distillation", "blocks", "fq_lora"]
    what: Annotated[tuple[Learned, ...], Field(strict=False, min_length=1)] = ("scales", "zero_points", "rounding")
    """zero_points have an effect only where codes have some of their own (int4_asym, int8_asym). After a pruning,
    ``weights`` trains the floats of all decoder layers before they are compressed, and ``adapters`` low-rank ones that
    are merged into them (LoRA, arXiv:2106.09685): what is left is healed, and zeros stay."""
    num_samples: Count = 1024
    """Windows to train on; after the last one training begins with the first again."""
    num_validation_samples: Count = 32
    """Windows of ``validation``, or further ones of the text, never trained on: they choose the step that is kept."""
    validation: ValidationText | None = None
    """A text of its own to validate on. None: the text that is trained on, of which these windows are held out."""
    num_steps: Count = 500
    """Of each decoder layer by ``blocks``."""
    budget_s: Annotated[float, Field(gt=0, le=MAX_COUNT)] | None = None
    """Seconds that the training may take, the original's answers included; ``budget: 30m`` in a file. ``num_steps`` is
    what a few measured steps show to fit then, and stands in the manifest's recipe, which gives the same bytes."""
    batch_size: Count = 8
    """Windows in a step."""
    learning_rate: LearningRate | None = None
    """Of the rounding, in steps between two codes. None: 0.005, and beyond 500 steps less in proportion, as of the
    other rates: the noise of large steps would hide what many small ones gain."""
    scale_learning_rate: LearningRate | None = None
    """Relative to a scale. None: 0.001."""
    zero_point_learning_rate: LearningRate | None = None
    """In steps between two codes. None: 0.05."""
    weight_learning_rate: LearningRate | None = None
    """Of ``weights``, relative to the root mean square of each. None: 0.003."""
    adapter_rank: Count = 32
    """Of NNCF's adapters by ``fq_lora`` and of those that heal; at most the smallest side of a weight."""
    adapter_learning_rate: LearningRate | None = None
    """None: 0.001."""
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

    @model_validator(mode="before")
    @classmethod
    def _read_budget(cls, fields: Any) -> Any:
        return with_budget_s(fields)

    def rate(self, name: RateName) -> float:
        """A learning rate at its highest: as it is given, or its default for this number of steps."""
        given: float | None = getattr(self, name)
        return _RATES[name] * min(1.0, FULL_RATE_STEPS / self.num_steps) if given is None else given

    @property
    def heals(self) -> bool:
        """Whether floats are trained, not bits."""
        return not HEALED.isdisjoint(self.what)

    @property
    def num_used_windows(self) -> int:
        """Windows that ``distillation`` trains on, at most."""
        return self.num_samples if self.budget_s else min(self.num_samples, self.num_steps * self.batch_size)

    def with_num_steps(self, num_steps: int) -> Training:
        """The same with a number of steps in place of a time."""
        return self.model_copy(update={"num_steps": num_steps, "budget_s": None})

    def validation_windows(self) -> Calibration | None:
        """What is to be drawn of a validation text of its own; None: there is none."""
        if self.validation is None:
            return None
        text = self.validation.model_dump()
        return Calibration(**text, num_samples=self.num_validation_samples, seq_len=self.seq_len, seed=self.seed)


def with_num_steps(recipe: Recipe, num_steps: int) -> Recipe:
    """A recipe that trains, with a number of steps in place of a time."""
    assert recipe.training is not None
    return recipe.model_copy(update={"training": recipe.training.with_num_steps(num_steps)})


def training_refusals(recipe: Recipe) -> Iterator[Refusal]:
    """Yield what of a recipe leaves nothing to train, or nothing that could be."""
    training, weights = recipe.training, recipe.weights
    if training is None:
        return
    for refusal in text_only_refusals(training):
        yield refusal._replace(field=f"training.{refusal.field}")
    if len(set(training.what)) < len(training.what):
        yield Refusal("training.what", "names something twice", "every entry once is accepted")
    if training.budget_s is not None and training.num_steps != Training.model_fields["num_steps"].default:
        problem = "has no effect with budget_s, which decides the number of steps"
        yield Refusal("training.num_steps", problem, "write training.num_steps: null, or remove budget_s")
    if training.heals:
        yield from _healing_refusals(training)
        return
    if recipe.method != "weights" or weights is None:
        problem = f"has no effect with method {recipe.method}: the bits of compressed weights are learned"
        yield Refusal("training", problem, "remove it, or write method: weights")
        return
    if weights.mode not in LEARNABLE:
        problem = f"learns codes with f16 scales, and weights.mode is {weights.mode}: {_NO_GRADIENT[weights.mode]}"
        yield Refusal("training", problem, f"take one of {', '.join(sorted(LEARNABLE))}, or remove training")
    if weights.lora_correction:
        problem = "adds layers next to a weight, which training does not know"
        yield Refusal(
            "weights.lora_correction", problem, "remove it, or take awq, gptq or scale_estimation as the start"
        )
    is_default = training.what == Training.model_fields["what"].default
    if "zero_points" in training.what and not is_default and not weights.mode.endswith("_asym"):
        yield Refusal("training.what", f"zero_points has no effect: {weights.mode} has none", "leave it out")
    yield from _method_refusals(training)
    if training.method == "fq_lora":
        yield from _adapter_refusals(weights)


_OF_ADAPTERS = ("adapter_rank", "adapter_learning_rate")
_OF_BITS = ("learning_rate", "scale_learning_rate", "zero_point_learning_rate")
_WITHOUT_EFFECT = {
    "distillation": ("weight_learning_rate", *_OF_ADAPTERS),
    "blocks": ("num_top_tokens", "gradient_checkpointing", "weight_learning_rate", *_OF_ADAPTERS),
    "fq_lora": ("what", "weight_learning_rate", "learning_rate", "zero_point_learning_rate"),
}


def _healing_refusals(training: Training) -> Iterator[Refusal]:
    if len(training.what) > 1:
        problem = f"{' and '.join(training.what)} are not trained together"
        yield Refusal("training.what", problem, "write weights or adapters alone")
    if training.method != "distillation":
        problem = f"{training.what[0]} are trained by distillation, not by {training.method}"
        yield Refusal("training.method", problem, "write distillation")
    of_others = _OF_ADAPTERS if "weights" in training.what else ("weight_learning_rate",)
    for name in (*_OF_BITS, *of_others):
        if getattr(training, name) != Training.model_fields[name].default:
            yield Refusal(f"training.{name}", f"has no effect on {training.what[0]}", "remove it")


def _method_refusals(training: Training) -> Iterator[Refusal]:
    for name in _WITHOUT_EFFECT[training.method]:
        if getattr(training, name) != Training.model_fields[name].default:
            yield Refusal(f"training.{name}", f"has no effect with method {training.method}", "remove it")


def _adapter_refusals(weights: WeightCompression) -> Iterator[Refusal]:
    """What of the weights NNCF's adapters cannot follow: it compresses in torch by itself, from the weights alone."""
    if weights.mode not in ("int4_sym", "int4_asym"):
        problem = f"method fq_lora has adapters for int4_sym and int4_asym, not {weights.mode}"
        yield Refusal("training.method", problem, "take distillation or blocks")
    for name in ("awq", "scale_estimation", "gptq", "all_layers", "rules"):
        if getattr(weights, name):
            problem = (
                "has no effect with training.method fq_lora, which begins with the data-free codes of linear layers"
            )
            yield Refusal(f"weights.{name}", problem, "remove it, or take distillation or blocks")
    if weights.ratio != 1.0 or not weights.ignored_scope.is_empty:
        name = "ratio" if weights.ratio != 1.0 else "ignored_scope"
        problem = "leaves layers out, and training.method fq_lora takes all linear layers"
        yield Refusal(f"weights.{name}", problem, "remove it, or take distillation or blocks")
