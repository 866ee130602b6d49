"""Prompts of a picture and a text, made of chance: which they are changes no speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORDS = " the of and to in is that it was for on as with his he be at by I this had not are but from or have an they"
"""Most tokenizers have a token for each."""
_SQUARES = 8


def random_text(num_tokens: int, count: Callable[[str], int], generator: np.random.Generator) -> str:
    """Random words, as many as give at most so many tokens.

    Args:
        count: The tokens that a text has.
    """
    words = [f" {word}" for word in generator.choice(_WORDS.split(), num_tokens)]
    low, high = 1, num_tokens
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count("".join(words[:middle])) <= num_tokens else (low, middle - 1)
    return "".join(words[:low])


def random_picture(size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Squares of random colours, ``[size, size, 3]``."""
    import numpy as np

    colours = generator.integers(0, 256, (_SQUARES, _SQUARES, 3), dtype=np.uint8)
    places = np.arange(size) * _SQUARES // size
    return np.ascontiguousarray(colours[places][:, places])
