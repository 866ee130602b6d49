"""Decoders whose recurrent layers begin anew with each call of several tokens, and what tells such a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import openvino as ov

_STATE = ".past.conv."
_MOVES = {"Concat", "Convert", "Gather", "Reshape", "Slice", "Squeeze", "StridedSlice", "Transpose", "Unsqueeze"}


class Recurrence(NamedTuple):
    """Such a graph is exact token by token. Several tokens go through it in one call from an empty state alone.

    Mamba's scan then divides by what underflows, so that long before the end its values are coarse. A call is given
    the mask of its own tokens.
    """

    kernel: int
    """Tokens that its convolutions see; so many cache positions mark the call of a prompt."""


def find_recurrence(model: ov.Model) -> Recurrence | None:
    """Look whether a graph is one of these; None: it goes on from any past.

    The exporter traces Mamba, Falcon-Mamba and Zamba2 with two branches, one for a prompt and one for a single token,
    and only the second one reads the state. Elsewhere a convolution runs over the state and the tokens in one row.
    """
    states = [op for op in model.get_ops() if op.get_type_name() == "ReadValue" and _STATE in op.get_variable_id()]
    if not states or all(_is_convolved(state) for state in states):
        return None
    return Recurrence(int(states[0].get_output_partial_shape(0)[-1].get_length()))


def keep_recurrence(compiled: ov.CompiledModel, found: Recurrence | None) -> None:
    """Tie it to a compiled model, which does not show the graph that it was made of."""
    compiled._llmcompress_recurrence = found


def recurrence(compiled: ov.CompiledModel) -> Recurrence | None:
    """What ``keep_recurrence`` tied to a compiled model."""
    found: Recurrence | None = getattr(compiled, "_llmcompress_recurrence", None)
    return found


def _is_convolved(state: ov.Node) -> bool:
    """Whether a convolution takes a state, moved but not computed with."""
    waiting, seen = [state], set()
    while waiting:
        for output in waiting.pop().outputs():
            for taker in (port.get_node() for port in output.get_target_inputs()):
                if taker.get_type_name() in ("Convolution", "GroupConvolution"):
                    return True
                if taker.get_type_name() in _MOVES and taker.get_name() not in seen:
                    seen.add(taker.get_name())
                    waiting.append(taker)
    return False
