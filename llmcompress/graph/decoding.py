"""Generation through the OpenVINO runtime: what an artifact says, with nothing but its own files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.device import decoder_inputs, input_names
from llmcompress.graph.sampling import Choose, greedy
from llmcompress.report.file_names import MODEL_XML
from llmcompress.system.json_file import read_json

if TYPE_CHECKING:
    import openvino as ov


class Generation(NamedTuple):
    """The tokens after a prompt."""

    token_ids: tuple[int, ...]
    """Without the eos token."""
    stopped: bool
    """True when an eos token ended it, False when ``max_new_tokens`` did."""


def compile_decoder(
    directory: Path, device: str = "CPU", properties: Mapping[str, str] | None = None
) -> ov.CompiledModel:
    """Compile ``openvino_model.xml`` of an artifact for a device, with runtime properties by OpenVINO's names."""
    import openvino as ov

    return ov.Core().compile_model(directory / MODEL_XML, device, dict(properties or {}))


def eos_token_ids(directory: Path) -> frozenset[int]:
    """The ids that end a text, from the artifact's generation config."""
    return eos_ids(read_json(directory / "generation_config.json"))


def eos_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end a text, from a generation config or a model's configuration."""
    eos = config.get("eos_token_id")
    return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])


def generate(
    compiled: ov.CompiledModel, prompt_ids: Sequence[int], *, eos: frozenset[int], max_new_tokens: int
) -> Generation:
    """Continue ``prompt_ids`` greedily on a fresh state.

    Args:
        compiled: A stateful decoder.
        prompt_ids: Token ids of the prompt.
        eos: Ids that end the text.
        max_new_tokens: At most this many tokens are generated.
    """
    generated: list[int] = []
    for token in itertools.islice(next_tokens(compiled, prompt_ids), max_new_tokens):
        if token in eos:
            return Generation(tuple(generated), stopped=True)
        generated.append(token)
    return Generation(tuple(generated), stopped=False)


def next_tokens(compiled: ov.CompiledModel, prompt_ids: Sequence[int], choose: Choose = greedy) -> Iterator[int]:
    """The tokens after a prompt on a fresh state, each computed when it is asked for; there is no end."""
    import numpy as np

    names = input_names(compiled)
    request = compiled.create_infer_request()
    token_ids, past = list(prompt_ids), 0
    while True:
        request.infer(decoder_inputs(np.array([token_ids[past:]]), past, names))
        past = len(token_ids)
        token_ids.append(choose(request.get_tensor("logits").data[0, -1], token_ids))
        yield token_ids[-1]
