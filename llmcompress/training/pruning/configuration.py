"""What a configuration says after parts of the model are gone."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from llmcompress.errors import RecipeError, one_line
from llmcompress.spec.pruning import Pruning

NUM_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Names that configurations give the number of experts of a layer."""
_NUMBERS_OF_LAYERS = ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices")
"""Lists that name layers by their numbers."""


def shrink(config: Any, pruning: Pruning, layers: Collection[int] | None = None) -> None:
    """Change a transformers configuration in place to that of the pruned model.

    Args:
        config: Of the original.
        pruning: What goes.
        layers: The decoder layers that go; None: they are not chosen yet, and the last ones stand for them.

    Raises:
        RecipeError: The model does not have what is to go, or nothing would be left.
    """
    text = config.get_text_config()
    if pruning.method == "depth":
        if layers is None:
            layers = chosen(text, pruning)
        _without_layers(text, layers)
    elif pruning.method == "experts":
        name, num_experts = experts_of(text)
        setattr(text, name, num_kept_experts(text, num_experts, pruning))
    elif pruning.method == "width":
        _narrower(text, pruning)
    _require_valid(config)


def require_prunable(config: Any, pruning: Pruning) -> None:
    """Refuse, by its configuration alone, what pruning a model would refuse later; raises as ``shrink``."""
    shrink(copy.deepcopy(config), pruning)


def _require_valid(config: Any) -> None:
    """Ask the configuration's class, where it checks anything."""
    validate = getattr(config, "validate", None)
    if validate is None:
        return
    try:
        validate()
    except Exception as error:  # the class may raise anything
        reason = one_line(str(error.__cause__ or error), 200)
        raise RecipeError(
            f"transformers does not take the configuration of what is left: {reason}",
            where="pruning",
            hint="take other sizes, or another pruning.method",
        ) from error


def chosen(text: Any, pruning: Pruning) -> tuple[int, ...]:
    """The decoder layers that a recipe names, or as many of the last; none where a text will decide how many.

    Raises:
        RecipeError: There are no such layers, or none would be left.
    """
    num_layers: int = text.num_hidden_layers
    if pruning.layers is not None:
        strange = [number for number in pruning.layers if number >= num_layers]
        if strange:
            raise _refused("layers", f"{strange[0]} names no layer: the model has {num_layers}", "count from 0")
        layers = pruning.layers
    else:
        layers = tuple(range(max(0, num_layers - (pruning.num_layers or 0)), num_layers))
    if len(layers) >= num_layers:
        raise _refused("num_layers", f"the model has {num_layers} decoder layers, and none would be left", "drop fewer")
    return layers


def experts_of(text: Any) -> tuple[str, int]:
    """The name that a configuration gives the number of experts, and that number.

    Raises:
        RecipeError: The model has none, or experts in groups.
    """
    for name in NUM_EXPERTS:
        number = getattr(text, name, None)
        if isinstance(number, int) and number > 1:
            if (getattr(text, "n_group", None) or 1) > 1:
                raise _refused("method", "the router chooses experts by groups, which must stay whole", "take depth")
            return name, number
    raise _refused("method", f"a model of type {text.model_type} has no experts", "take depth or width")


def num_kept_experts(text: Any, num_experts: int, pruning: Pruning) -> int:
    """How many experts of a layer stay.

    Raises:
        RecipeError: Fewer than the router chooses, or all.
    """
    assert pruning.ratio is not None
    kept = num_experts - round(pruning.ratio * num_experts)
    num_chosen: int = getattr(text, "num_experts_per_tok", None) or 1
    if kept < num_chosen:
        problem = f"{kept} of {num_experts} experts would be left, and the router chooses {num_chosen}"
        raise _refused("ratio", problem, "take a smaller ratio")
    if kept == num_experts:
        raise _refused("ratio", f"{pruning.ratio:g} of {num_experts} experts is none", "take a larger ratio")
    return kept


def _without_layers(text: Any, layers: Collection[int]) -> None:
    num_layers: int = text.num_hidden_layers
    kept = [number for number in range(num_layers) if number not in layers]
    later = {number: place for place, number in enumerate(kept)}
    changed: dict[str, Any] = {}
    for name, value in vars(text).items():
        if not isinstance(value, list | tuple) or name.endswith("token_id"):
            continue
        if name in _NUMBERS_OF_LAYERS:
            changed[name] = [later[number] for number in value if number in later]
        elif len(value) == num_layers:
            changed[name] = [value[number] for number in kept]
    for name, value in {**changed, "num_hidden_layers": len(kept)}.items():
        setattr(text, name, value)


def _narrower(text: Any, pruning: Pruning) -> None:
    for name in ("intermediate_size", "num_key_value_heads"):
        wanted, present = getattr(pruning, name), getattr(text, name, None)
        if wanted is not None and (not isinstance(present, int) or wanted >= present):
            raise _refused(name, f"{wanted} is not fewer than the model's {present}", "take a smaller number")
    if pruning.intermediate_size is not None:
        text.intermediate_size = pruning.intermediate_size
    if pruning.num_key_value_heads is not None:
        num_sharing = text.num_attention_heads // text.num_key_value_heads
        # It is derived from the number of heads otherwise.
        text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        text.num_key_value_heads = pruning.num_key_value_heads
        text.num_attention_heads = num_sharing * pruning.num_key_value_heads


def _refused(field: str, problem: str, hint: str) -> RecipeError:
    return RecipeError(problem, where=f"pruning.{field}", hint=hint)
