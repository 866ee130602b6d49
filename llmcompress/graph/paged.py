"""The paged form of a decoder, which GenAI and Model Server run: the cache lies in blocks that the caller hands out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmcompress.errors import ModelError, last_line
from llmcompress.graph.device import input_names

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray

_TABLES = ("max_context_len", "past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
_FED = {"input_ids", "position_ids", *_TABLES}
_CACHES = ("key_cache.", "value_cache.")


def is_paged(model: ov.Model | ov.CompiledModel) -> bool:
    """Whether a graph takes tables of blocks."""
    return "block_indices" in input_names(model)


def to_paged(model: ov.Model) -> None:
    """Turn a stateful decoder into its paged form, in place, by the transformation that GenAI applies.

    Its tokens then lie in one row, those of one sequence after those of another, and its logits are
    ``[tokens, 1, vocabulary]``.

    Raises:
        ModelError: The transformation refuses the graph, or leaves inputs that are not fed here, such as the states
            of recurrent layers.
    """
    from openvino._offline_transformations import paged_attention_transformation

    try:
        paged_attention_transformation(model)
    except RuntimeError as error:
        raise no_paged_form(f"the transformation refuses it: {last_line(error)}") from error
    names = input_names(model)
    unknown = sorted(name for name in names - _FED if not name.startswith(_CACHES))
    if unknown:
        raise no_paged_form(f"it takes {', '.join(unknown)}, which a cache of keys and values alone does not fill")
    if not is_paged(model):
        raise no_paged_form("the transformation found no attention in it")


class BlockCache:
    """Keys and values of sequences that grow together, in blocks of their own, for one inference request.

    A sequence begins again wherever its past is 0: nothing is read that was not written since.
    """

    def __init__(self, compiled: ov.CompiledModel, request: ov.InferRequest) -> None:
        self._request = request
        self._names = input_names(compiled)
        self._ports = [port for port in compiled.inputs if port.get_any_name().startswith(_CACHES)]
        self._block_size = block_size(compiled)
        self._num_blocks = 0
        self._blocks_each = 0

    def reserve(self, num_sequences: int, num_tokens: int) -> None:
        """Make room for sequences of at most so many tokens; what is there already is kept where it suffices."""
        import openvino as ov

        self._blocks_each = -(-num_tokens // self._block_size)
        if self._num_blocks >= num_sequences * self._blocks_each:
            return
        self._num_blocks = num_sequences * self._blocks_each
        for port in self._ports:
            # As the plugin lays a block out, the scales of a quantized cache included.
            block = [dimension.get_length() for dimension in list(port.get_partial_shape())[1:]]
            tensor = ov.Tensor(port.get_element_type(), ov.Shape([self._num_blocks, *block]))
            self._request.set_tensor(port, tensor)

    def inputs(self, token_ids: NDArray[np.int64], past: int) -> dict[str, NDArray[Any]]:
        """What the graph is fed in one call, of the inputs it has.

        Args:
            token_ids: int64 ``[sequences, tokens]``.
            past: Tokens of each sequence that the cache holds already.
        """
        import numpy as np

        size, count = token_ids.shape
        # A block beyond them is another sequence's, or nobody's memory.
        assert past + count <= self._blocks_each * self._block_size
        used = -(-(past + count) // self._block_size)
        steps = np.arange(size + 1, dtype=np.int32)
        blocks = steps[:size, None] * self._blocks_each + np.arange(used, dtype=np.int32)
        values: dict[str, NDArray[Any]] = {
            "input_ids": np.ascontiguousarray(token_ids, dtype=np.int64).reshape(-1),
            "position_ids": np.tile(np.arange(past, past + count, dtype=np.int64), size),
            "max_context_len": np.array(past + count, dtype=np.int32),
            "past_lens": np.full(size, past, dtype=np.int32),
            "subsequence_begins": steps * count,
            "block_indices_begins": steps * used,
            "block_indices": np.ascontiguousarray(blocks.reshape(-1), dtype=np.int32),
        }
        return {name: value for name, value in values.items() if name in self._names}


def block_size(compiled: ov.CompiledModel) -> int:
    """Tokens in a block of a compiled paged graph, whose values lie as ``[blocks, heads, tokens, head size]``."""
    values = next(port for port in compiled.inputs if port.get_any_name().startswith("value_cache."))
    return int(values.get_partial_shape()[2].get_length())


def no_paged_form(reason: str) -> ModelError:
    """The error for a graph without one."""
    return ModelError(
        f"the graph has no paged form: {reason}",
        where="`backend`",
        hint='measure it as it is: `backend="stateful"`',
    )
