"""Decoding through the OpenVINO runtime: what an artifact says, with nothing but its own files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.device import compile_model, decoder_inputs, input_names
from llmcompress.graph.model import read_ir
from llmcompress.graph.paged import BlockCache, is_paged
from llmcompress.graph.recurrence import recurrence
from llmcompress.graph.sampling import Choose, greedy
from llmcompress.system.json_file import read_json

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov
    from numpy.typing import NDArray


class Generation(NamedTuple):
    """The tokens after a prompt."""

    token_ids: tuple[int, ...]
    """Without the eos token."""
    stopped: bool
    """True when an eos token ended it, False when ``max_new_tokens`` did."""


def compile_decoder(
    directory: Path, device: str = "CPU", properties: Mapping[str, str] | None = None
) -> ov.CompiledModel:
    """Compile ``openvino_model.xml`` of an artifact for a device, with runtime properties by OpenVINO's names.

    Raises:
        ModelError: The files are damaged or incomplete.
        UsageError: The device refuses the model or a property.
    """
    return compile_model(read_ir(directory), device, dict(properties or {}))


def eos_token_ids(directory: Path) -> frozenset[int]:
    """The ids that end a text, from the artifact's generation config."""
    return eos_ids(read_json(directory / "generation_config.json"))


def eos_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text, from a generation config or a model's configuration."""
    eos = config.get("eos_token_id")
    return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


class Decoder:
    """One inference request of a compiled decoder, stateful or paged, with a past of its own."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.request = compiled.create_infer_request()
        self.input_names = input_names(compiled)
        self.recurrence = recurrence(compiled)
        self._cache = BlockCache(compiled, self.request) if is_paged(compiled) else None

    @property
    def is_paged(self) -> bool:
        """Whether the tokens of all sequences lie in one row, and the logits in ``[tokens, 1, vocabulary]``."""
        return self._cache is not None

    def begin(self, num_sequences: int, num_tokens: int) -> None:
        """Forget the past, and make room for sequences of at most so many tokens."""
        if self._cache is None:
            self.request.reset_state()
        else:
            self._cache.reserve(num_sequences, num_tokens)

    def inputs(self, token_ids: NDArray[np.int64], past: int) -> dict[str, NDArray[Any]]:
        """What the next call is fed.

        Args:
            token_ids: int64 ``[sequences, tokens]``.
            past: Tokens of each sequence that were fed since ``begin``.

        Raises:
            ModelError: As ``decoder_inputs``.
        """
        if self._cache is None:
            return decoder_inputs(token_ids, past, self.input_names, self.recurrence)
        return self._cache.inputs(token_ids, past)

    def tensors(self, token_ids: NDArray[np.int64], past: int) -> dict[str, ov.Tensor]:
        """``inputs``, ready to be run."""
        import openvino as ov

        return {name: ov.Tensor(value) for name, value in self.inputs(token_ids, past).items()}

    def run(self, tensors: Mapping[str, ov.Tensor]) -> None:
        """Feed one call and wait for its logits, which stay where they are."""
        for name, tensor in tensors.items():
            self.request.set_tensor(name, tensor)
        # The other way to run it would copy every output.
        self.request.start_async()
        self.request.wait()


def generate(
    compiled: ov.CompiledModel, prompt_ids: Sequence[int], *, eos: frozenset[int], max_new_tokens: int
) -> Generation:
    """Continue ``prompt_ids`` greedily on a fresh state.

    Args:
        compiled: A decoder, stateful or paged.
        prompt_ids: Token ids of the prompt.
        eos: Ids that end the text.
        max_new_tokens: At most this many tokens are generated.
    """
    generated: list[int] = []
    num_tokens = len(prompt_ids) + max_new_tokens
    for token in itertools.islice(next_tokens(compiled, prompt_ids, num_tokens=num_tokens), max_new_tokens):
        if token in eos:
            return Generation(tuple(generated), stopped=True)
        generated.append(token)
    return Generation(tuple(generated), stopped=False)


def next_tokens(
    compiled: ov.CompiledModel, prompt_ids: Sequence[int], choose: Choose = greedy, *, num_tokens: int = 0
) -> Iterator[int]:
    """The tokens after a prompt on a fresh state, each computed when it is asked for; there is no end.

    Args:
        num_tokens: Room in the cache of a paged decoder, prompt included; a stateful one grows by itself.
    """
    import numpy as np

    decoder = Decoder(compiled)
    decoder.begin(1, num_tokens)
    token_ids, past = list(prompt_ids), 0
    while True:
        end = past + 1 if decoder.recurrence else len(token_ids)
        decoder.run(decoder.tensors(np.array([token_ids[past:end]]), past))
        past = end
        if past < len(token_ids):
            continue
        logits = decoder.request.get_tensor("logits").data
        token_ids.append(choose(logits.reshape(-1, logits.shape[-1])[-1], token_ids))
        yield token_ids[-1]
