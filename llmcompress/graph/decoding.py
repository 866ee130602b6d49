"""Greedy generation through the OpenVINO runtime: what an artifact says, with nothing but its own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.graph.device import decoder_inputs, input_names
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
    import numpy as np

    names = input_names(compiled)
    request = compiled.create_infer_request()
    past, pending = 0, list(prompt_ids)
    generated: list[int] = []
    while len(generated) < max_new_tokens:
        request.infer(decoder_inputs(np.array([pending]), past, names))
        token = int(request.get_tensor("logits").data[0, -1].argmax())
        if token in eos:
            return Generation(tuple(generated), stopped=True)
        generated.append(token)
        past, pending = past + len(pending), [token]
    return Generation(tuple(generated), stopped=False)
