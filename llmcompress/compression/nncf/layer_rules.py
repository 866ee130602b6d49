"""A recipe's rules for single weights, inside NNCF's compression: one call gives each weight the format of its rule.

NNCF has one mode and one ratio. Where it has listed the weights and not yet chosen their formats, those with a rule get
theirs and leave the list that ``ratio`` and ``group_size_fallback`` work on; all that follows goes by each weight's own
format.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nncf import CompressWeightsMode
from nncf.quantization.algorithms.weight_compression.algorithm import WeightCompression as Algorithm
from nncf.quantization.algorithms.weight_compression.config import WeightCompressionConfig, WeightCompressionParameters

from llmcompress.errors import ModelError
from llmcompress.graph.model import parameter_name
from llmcompress.spec.layer_rules import LayerRule, first_rule, require_used, undivided
from llmcompress.system.patching import replaced

_METHODS = {"awq_algo": ("data_free", "gptq"), "_scale_estimation_algo": ("data_free",)}
"""Of NNCF's objects, and the methods of rules whose weights they are to leave alone."""
_DECIDED = "_get_ratio_defining_params"


@contextlib.contextmanager
def rules_applied(rules: Sequence[LayerRule]) -> Iterator[None]:
    """Have NNCF give weights the formats of their rules.

    Raises:
        ModelError: The installed NNCF has moved what is taken over.
        RecipeError: A rule takes no weight, or its group size does not divide a weight's channels.
    """
    moved = [name for name in (_DECIDED, "collect_statistics_and_statistic_points") if name not in vars(Algorithm)]
    if moved:
        raise ModelError(
            f"the installed NNCF has no {moved[0]}, where rules for single layers come in",
            where="weights.rules",
            hint="install the tested version of NNCF: llmcompress doctor names it",
        )
    stock_decided = Algorithm._get_ratio_defining_params
    stock_collected = Algorithm.collect_statistics_and_statistic_points
    stock_applied = Algorithm.apply_with_parameters
    rule_of: dict[str, LayerRule] = {}

    def decided(self: Any, weights: list[WeightCompressionParameters], is_last_skipped: bool) -> list[Any]:
        found = {each.weight_name: _rule(each, rules) for each in weights}
        rule_of.update({name: rule for name, rule in found.items() if rule is not None})
        require_used(rules, rule_of.values())
        for each in weights:
            if each.weight_name in rule_of:
                each.compression_config = _config(each, rule_of[each.weight_name])
        return [each for each in stock_decided(self, weights, is_last_skipped) if each.weight_name not in rule_of]

    def collected(self: Any, *arguments: Any) -> Any:
        *others, deciding, weights = arguments
        # Without a backup precision NNCF looks only at the activations of those that ratio decides on.
        with_rule = [each for each in weights if each.weight_name in rule_of]
        return stock_collected(self, *others, [*deciding, *with_rule], weights)

    def applied(self: Any, *arguments: Any) -> Any:
        for name, methods in _METHODS.items():
            if (algorithm := getattr(self, name, None)) is not None:
                algorithm.apply = _leaving_out(algorithm.apply, _by_method(rule_of, methods))
        if (algorithm := getattr(self, "_gptq_algo", None)) is not None:
            algorithm.apply = _passing_over(algorithm.apply, _by_method(rule_of, ("data_free",)))
        return stock_applied(self, *arguments)

    with (
        replaced(Algorithm, _DECIDED, decided),
        replaced(Algorithm, "collect_statistics_and_statistic_points", collected),
        replaced(Algorithm, "apply_with_parameters", applied),
    ):
        yield


def _rule(weight: WeightCompressionParameters, rules: Sequence[LayerRule]) -> LayerRule | None:
    return first_rule(rules, parameter_name(weight.weight_name), weight.node_with_weight.node_type)


def _config(weight: WeightCompressionParameters, rule: LayerRule) -> WeightCompressionConfig | None:
    if rule.mode == "none":
        return None
    size, axes = rule.effective_group_size, weight.reduction_axes
    channels = [weight.weight_shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes)]
    if size != -1 and (len(channels) != 1 or channels[0] % size):
        raise undivided(rule, parameter_name(weight.weight_name), channels[0])
    return WeightCompressionConfig(CompressWeightsMode(rule.mode), size)


def _by_method(rule_of: Mapping[str, LayerRule], methods: Sequence[str]) -> set[str]:
    return {name for name, rule in rule_of.items() if rule.method in methods}


def _passing_over(apply: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """GPTQ that leaves some weights alone as it does those of 8 bits.

    It goes through the same layers, whatever the rules: between others the activations would be rounded otherwise.
    """

    def applied(**named: Any) -> Any:
        weights = named["weight_compression_parameters"]
        configs = {each.weight_name: each.compression_config for each in weights if each.weight_name in names}
        for each in weights:
            if each.weight_name in names:
                each.compression_config = WeightCompressionConfig(CompressWeightsMode.INT8_ASYM)
        found = apply(**named)
        for each in weights:
            each.compression_config = configs.get(each.weight_name, each.compression_config)
        return found

    return applied


def _leaving_out(apply: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """A method of NNCF's that does not see some weights."""

    def is_listed(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and isinstance(value[0], WeightCompressionParameters)

    def kept(value: Any) -> Any:
        return [each for each in value if each.weight_name not in names] if is_listed(value) else value

    def applied(*arguments: Any, **named: Any) -> Any:
        return apply(*map(kept, arguments), **{name: kept(value) for name, value in named.items()})

    return applied
