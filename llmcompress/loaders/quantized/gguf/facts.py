"""The metadata of a GGUF file's architecture, each value checked when it is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from llmcompress.errors import ModelError
from llmcompress.loaders.safetensors_file import TensorInfo

BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.([a-z0-9_]+)\.(weight|bias)", re.ASCII)
"""Names of a layer's tensors: its number, what of it, and weight or bias."""
_MOST = 1 << 31


class Facts:
    """Metadata of one architecture, each value checked when it is asked for."""

    def __init__(self, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        self.architecture, self.tensors = architecture, tensors
        self._metadata = metadata

    def get(self, key: str) -> Any:
        """What the file says; None: nothing."""
        return self._metadata.get(f"{self.architecture}.{key}")

    def wrong(self, key: str, needed: str) -> ModelError:
        """The error about a value that is not what is needed."""
        value = self.get(key)
        shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)
        return ModelError(
            f"{self.architecture}.{key} is {shown}; {needed} is needed",
            where="metadata",
            hint="download the file again",
        )

    def count(self, key: str, default: int | None = None) -> int:
        """A positive number, also where it is given for each layer and is the same for all."""
        value = self.get(key)
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        value = default if value is None else value
        if type(value) is not int or not 0 < value < _MOST:
            raise self.wrong(key, "a positive whole number, the same for every layer,")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = default if self.get(key) is None else self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(key, "a positive number")
        # Metadata has numbers of 32 bits.
        return short(float(value))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    @property
    def num_layers(self) -> int:
        """Those that there are tensors of."""
        return max((int(found[1]) for name in self.tensors if (found := BLOCK.fullmatch(name))), default=-1) + 1

    @property
    def key_value_heads(self) -> int:
        """As many as of queries, unless the file says it."""
        return self.count("attention.head_count_kv", self.count("attention.head_count"))

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.count("attention.key_length", self.count("embedding_length") // self.count("attention.head_count"))

    @property
    def rotated(self) -> int:
        """Channels of a head that are rotated."""
        return self.count("rope.dimension_count", self.head_dim)


def short(value: float) -> float:
    """The shortest decimal that is the same number of 32 bits."""
    import numpy as np

    return float(str(np.float32(value)))
