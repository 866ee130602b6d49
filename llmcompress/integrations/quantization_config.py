"""Recipes as ``quantization_config`` of stock ``optimum.intel.OVModelForCausalLM.from_pretrained``.

Optimum takes subclasses of its own configuration classes and asks them for NNCF's arguments, so every mode of NNCF
gets through, also those that Optimum has no name for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from optimum.intel import OVMixedQuantizationConfig, OVQuantizationConfig, OVWeightQuantizationConfig
from optimum.intel.openvino.configuration import OVQuantizationMethod

from llmcompress.compression.nncf.activations import quantize_arguments
from llmcompress.compression.nncf.weights import nncf_arguments
from llmcompress.data import require_text
from llmcompress.errors import RecipeError
from llmcompress.integrations.stock_path import BoundTexts, refuse_uncarried
from llmcompress.spec import Quantization, Recipe, WeightCompression, load_recipe
from llmcompress.spec.access import Access
from llmcompress.spec.modes import INT8
from llmcompress.spec.optimum import ACTIVATION_MODES
from llmcompress.spec.validation import dotted, validated

_ACTIVATION_DTYPES = {mode: dtype for dtype, mode in ACTIVATION_MODES.items()}


class OVRecipeConfig(ABC):
    """A recipe that Optimum accepts; made by ``from_recipe``, always of one of the subclasses below.

    Frozen apart from what Optimum itself writes into a configuration: ``tokenizer`` (the model whose tokenizer cuts
    the calibration text, set by ``from_pretrained``), ``num_samples`` and ``ignored_scope``. Equal recipes are equal
    and have equal hashes; pickling and ``from_dict(config.to_dict())`` lose nothing.
    """

    processor = None
    """Of multimodal models only."""
    statistics_path = None
    """A cache, which no recipe names."""
    WRITABLE: ClassVar[frozenset[str]] = frozenset({"tokenizer", "num_samples", "ignored_scope"})

    recipe: Recipe
    num_samples: int | None
    ignored_scope: dict[str, list[str]] | None

    def __init__(self, recipe: Recipe, access: Access = Access(), bound: BoundTexts | None = None) -> None:
        scope = getattr(recipe, self._scope_of).ignored_scope.model_dump() if self._scope_of else {}
        self.__dict__.update(
            recipe=recipe,
            _access=access,
            num_samples=recipe.calibration.num_samples if recipe.calibration else None,
            ignored_scope={kind: list(values) for kind, values in scope.items() if values} or None,
            _dataset_kwargs={},
            _bound=bound,
        )

    @staticmethod
    def from_recipe(
        recipe: str | Path | Recipe,
        overrides: Sequence[str] = (),
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        offline: bool = False,
    ) -> OVRecipeConfig:
        """Return the configuration of a packaged recipe, a YAML file, or a ``Recipe``.

        Args:
            recipe: What to do.
            overrides: ``"field.field=value"``, for a name or a file.
            revision: Of the model's tokenizer on the Hub, which Optimum does not say; for data-aware recipes.
            trust_remote_code: Run Python code that the tokenizer brings.
            offline: Take the tokenizer and a Hub dataset from local caches only.

        Raises:
            RecipeError: the recipe is wrong, or the stock path cannot carry the field that the error names.
            DataError: the local calibration text is not there.
        """
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe, overrides)
        elif overrides:
            raise RecipeError("overrides are for a recipe's name or file", where="overrides", hint="change the Recipe")
        refuse_uncarried(recipe)
        if recipe.calibration is not None:
            require_text(recipe.calibration)
        return _CLASSES[recipe.method](recipe, Access(revision, trust_remote_code, offline))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> OVRecipeConfig:
        """Return the configuration that ``to_dict`` wrote.

        Raises:
            RecipeError: it holds no recipe, or more than that.
        """
        given = {**config_dict, **kwargs}
        if "recipe" not in given or given.keys() - {"recipe", "num_samples", "ignored_scope"}:
            raise RecipeError(
                f"got the keys {', '.join(sorted(given))}; accepted: recipe, num_samples, ignored_scope",
                where="quantization_config",
                hint="for a configuration of Optimum's own: llmcompress.recipe_from_quantization_config",
            )
        config = cls.from_recipe(
            validated(Recipe, given["recipe"], lambda place: f"quantization_config.recipe.{dotted(place)}")
        )
        for name in given.keys() - {"recipe"}:
            setattr(config, name, given[name])
        return config

    def to_dict(self) -> dict[str, Any]:
        """The recipe, and what Optimum changed, as values that JSON keeps."""
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
            "num_samples": self.num_samples,
            "ignored_scope": self.ignored_scope,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OVRecipeConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.recipe)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.recipe!r})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.WRITABLE:
            raise RecipeError(
                f"{name} cannot be set on a configuration that follows a recipe",
                where=f"quantization_config.{name}",
                hint="change the recipe, and make a configuration of it",
            )
        super().__setattr__(name, value)

    def post_init(self) -> None:  # noqa: B027 - Optimum calls it
        """Nothing is left to check: a recipe is checked when it is made."""

    @property
    def tokenizer(self) -> str | None:
        """None until a model's is set; then a directory with the tokenizer that reads ``dataset``."""
        return self.__dict__["_bound"].tokenizer if self.__dict__["_bound"] else None

    @tokenizer.setter
    def tokenizer(self, source: str | Path | None) -> None:
        """Take a Hub id or a checkpoint directory, and cut the recipe's calibration text by its tokenizer."""
        self.__dict__["_bound"] = (
            None if source is None else BoundTexts(str(source), self.recipe, self.__dict__["_access"])
        )

    @property
    def dataset(self) -> list[str] | None:
        """The calibration windows as strings of token ids; None without them, or before ``tokenizer`` is set."""
        return self.__dict__["_bound"].texts if self.__dict__["_bound"] else None

    @property
    def kwargs(self) -> dict[str, Any]:
        """Nothing but the recipe."""
        return {}

    @property
    @abstractmethod
    def _scope_of(self) -> str | None:
        """The part of the recipe whose ignored scope it has."""

    def _num_windows(self) -> int:
        if self.recipe.calibration is None:
            return 0
        if self.tokenizer is None:
            raise RecipeError(
                "the calibration text is not tokenized: no model is known",
                where="quantization_config.tokenizer",
                hint="set it to the model's Hub id or directory; from_pretrained does",
            )
        return self.num_samples or self.recipe.calibration.num_samples


def to_quantization_config(
    recipe: Recipe, *, revision: str | None = None, trust_remote_code: bool = False, offline: bool = False
) -> OVRecipeConfig:
    """Return the recipe as a ``quantization_config`` for stock ``optimum.intel.OVModelForCausalLM``.

    The options are for the tokenizer that cuts the calibration text: Optimum does not hand on those of
    ``from_pretrained``.

    Raises:
        RecipeError: Names the field which the stock path cannot carry.
        DataError: The text is missing.
    """
    return OVRecipeConfig.from_recipe(recipe, revision=revision, trust_remote_code=trust_remote_code, offline=offline)


class OVRecipeWeightConfig(OVRecipeConfig, OVWeightQuantizationConfig):  # type: ignore[misc]
    """A recipe of method ``weights``."""

    _scope_of = "weights"

    @property
    def _weights(self) -> WeightCompression:
        assert self.recipe.weights is not None
        return self.recipe.weights

    @property
    def bits(self) -> int:
        """8 for NNCF's int8 modes, which Optimum gives no data, and 4 for all others."""
        return 8 if self._weights.mode in INT8 else 4

    @property
    def dtype(self) -> str:
        """NNCF's name of the mode."""
        return self._weights.mode

    @property
    def backup_precision(self) -> str | None:
        """The recipe's backup mode."""
        return self._weights.backup_mode

    @property
    def quant_method(self) -> OVQuantizationMethod:
        """Whether AWQ is on."""
        return OVQuantizationMethod.AWQ if self._weights.awq else OVQuantizationMethod.DEFAULT

    @property
    def dq_group_size(self) -> int | None:
        """The one runtime hint that Optimum writes into the model, which it does not look at for it."""
        return self.recipe.runtime.resolved(self._weights.integer_group_sizes).dynamic_quantization_group_size

    def to_nncf_dict(self) -> dict[str, Any]:
        """The arguments of ``nncf.compress_weights``."""
        arguments = nncf_arguments(self._weights, num_windows=self._num_windows())
        return {**arguments, "ignored_scope": self.get_ignored_scope_instance()}


class OVRecipeFullConfig(OVRecipeConfig, OVQuantizationConfig):  # type: ignore[misc]
    """A recipe of method ``activations``."""

    _scope_of = "activations"

    @property
    def _activations(self) -> Quantization:
        assert self.recipe.activations is not None
        return self.recipe.activations

    @property
    def bits(self) -> int:
        """8: nothing less is for activations."""
        return 8

    @property
    def dtype(self) -> str:
        """Optimum's name of the mode."""
        return _ACTIVATION_DTYPES[self._activations.mode]

    def to_nncf_dict(self) -> dict[str, Any]:
        """The arguments of ``nncf.quantize``."""
        arguments = quantize_arguments(self._activations, num_windows=self._num_windows())
        return {**arguments, "ignored_scope": self.get_ignored_scope_instance()}


class OVRecipeMixedConfig(OVRecipeConfig, OVMixedQuantizationConfig):  # type: ignore[misc]
    """A recipe of method ``weights_and_activations``."""

    _scope_of = None

    @property
    def weight_quantization_config(self) -> OVRecipeWeightConfig:
        """The first step."""
        return OVRecipeWeightConfig(self.recipe, bound=self.__dict__["_bound"])

    @property
    def full_quantization_config(self) -> OVRecipeFullConfig:
        """The second step."""
        return OVRecipeFullConfig(self.recipe, bound=self.__dict__["_bound"])


_CLASSES: dict[str, type[OVRecipeConfig]] = {
    "weights": OVRecipeWeightConfig,
    "activations": OVRecipeFullConfig,
    "weights_and_activations": OVRecipeMixedConfig,
}
