"""What is said of layers that NNCF's GPTQ does not take: before the model is loaded, and before its statistics."""

from __future__ import annotations

from collections.abc import Sequence

from llmcompress.errors import RecipeError

MAX_NAMES = 4
WITHOUT_GPTQ = "int4-awq-se"
"""The packaged recipe that comes next in quality."""


def gptq_refusal(names: Sequence[str], *, all_layers: bool) -> RecipeError:
    """Return the refusal of weights that lie the other way round: a column of theirs is an output channel.

    Args:
        names: Of the weights, or of the operations that multiply by them.
        all_layers: No layer is left for GPTQ.
    """
    unique = list(dict.fromkeys(names))
    rest = len(unique) - MAX_NAMES
    shown = ", ".join(unique[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
    hint = f"take a recipe without GPTQ, such as {WITHOUT_GPTQ}"
    patterns = sorted({pattern for name in unique for pattern in _patterns(name)})
    if patterns and not all_layers:
        # NNCF takes the last layer of a pass for the output head, which needs all_layers to have few bits.
        listed = ", ".join(f"'{pattern}'" for pattern in patterns)
        hint += (
            f"; or keep GPTQ for the others and write weights.ignored_scope.patterns: [{listed}] "
            "and further_weights: [{mode: int4_asym, group_size: 128, group_size_fallback: adjust, all_layers: true}]"
        )
    return RecipeError(
        f"GPTQ takes weights that hold an output channel in each row, and these hold it in each column: {shown}",
        where="weights.gptq",
        hint=hint,
    )


def _patterns(name: str) -> list[str]:
    """An ignored scope's pattern for the operations of such a layer in every block, where the name tells it.

    ``__module.model.layers.0.mlp.experts/aten::bmm/MatMul`` and ``model.layers.0.mlp.experts.down_proj`` both give
    ``.*mlp.experts/.*``.
    """
    module, slash, _ = name.partition("/")
    parts = module.removesuffix(".weight").split(".")
    while parts and parts[-1].isdigit():
        parts.pop()
    if not slash and not module.endswith(".weight"):
        parts = parts[:-1]
    last_index = max((index for index, part in enumerate(parts) if part.isdigit()), default=None)
    if last_index is None or last_index + 1 == len(parts):
        return []
    return [f".*{'.'.join(parts[last_index + 1 :])}/.*"]
