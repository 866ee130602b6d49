"""The next token from the logits, as a generation config says: the most likely one, or one drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Choose = Callable[["NDArray[np.float32]", Sequence[int]], int]
"""Logits of the next token ``[vocabulary]`` and the ids before it -> its id."""


def greedy(logits: NDArray[np.float32], token_ids: Sequence[int]) -> int:
    """The most likely token."""
    return int(logits.argmax())


def chooser(config: Mapping[str, Any], seed: int = 0) -> Choose:
    """Return what a generation config says: ``greedy``, or draws by ``probabilities`` where ``do_sample`` is set.

    A repetition penalty holds for both.
    """
    import numpy as np

    sampled, penalty = bool(config.get("do_sample")), float(config.get("repetition_penalty") or 1.0)
    if not sampled and penalty == 1.0:
        return greedy
    random = np.random.default_rng(seed)

    def choose(logits: NDArray[np.float32], token_ids: Sequence[int]) -> int:
        logits = penalized(logits, token_ids, penalty)
        if not sampled:
            return greedy(logits, token_ids)
        chances = probabilities(logits, config)
        return int(random.choice(len(chances), p=chances))

    return choose


def penalized(logits: NDArray[np.float32], token_ids: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """Make tokens that were there before less likely, by CTRL's rule (arXiv 1909.05858), as transformers does."""
    import numpy as np

    seen = np.unique(np.asarray(token_ids, dtype=np.int64))
    made = logits.copy()
    made[seen] = np.where(made[seen] < 0, made[seen] * penalty, made[seen] / penalty)
    return made


def probabilities(logits: NDArray[np.float32], config: Mapping[str, Any]) -> NDArray[np.float64]:
    """Chances ``[vocabulary]`` of each token by ``temperature``, ``top_k``, ``top_p`` and ``min_p``, in this order.

    The defaults are those of transformers' GenerationConfig; ties at the edge of ``top_k`` are all kept, as there.
    """
    import numpy as np

    scaled = logits.astype(np.float64) / float(config.get("temperature") or 1.0)
    top_k = int(config["top_k"] if config.get("top_k") is not None else 50)
    if 0 < top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -top_k)[-top_k]] = -np.inf
    top_p = float(config.get("top_p") or 1.0)
    if top_p < 1:
        order = np.argsort(scaled, kind="stable")
        # From the least likely one on; the most likely one always stays.
        dropped = order[np.cumsum(_softmax(scaled)[order]) <= 1 - top_p]
        scaled[np.setdiff1d(dropped, order[-1:])] = -np.inf
    min_p = float(config.get("min_p") or 0.0)
    chances = _softmax(scaled)
    if min_p > 0:
        scaled[chances < min_p * chances.max()] = -np.inf
        chances = _softmax(scaled)
    return chances


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    powers = np.exp(logits - logits.max())
    chances: NDArray[np.float64] = powers / powers.sum()
    return chances
