"""What the parts of a vision-language model become that are not its language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator

from llmcompress.spec.validation import Refusal, StrictModel
from llmcompress.spec.weights import WeightCompression

INT8 = WeightCompression(mode="int8_sym")
"""What Optimum gives the parts next to a language model that it compresses."""


def _kept(value: object) -> object:
    return None if value == "none" else value


Part = Annotated[WeightCompression | None, BeforeValidator(_kept)]
"""``none`` keeps the checkpoint's precision; else options as of ``weights``, of those that need no data."""


class Parts(StrictModel):
    """Formats by the exporter's names of the parts, those of their files: ``openvino_vision_embeddings_model.xml``."""

    text_embeddings_model: Part = INT8
    """The table of embeddings of text."""
    text_embeddings_per_layer_model: Part = INT8
    vision_embeddings_model: Part = INT8
    """What makes embeddings of a picture; where a merger, a projector or a resampler follows, its first half."""
    vision_embeddings_merger_model: Part = INT8
    vision_embeddings_pos_model: Part = INT8
    vision_projection_model: Part = INT8
    vision_resampler_model: Part = INT8
    multi_modal_projector_model: Part = INT8
    resampler_model: Part = INT8
    audio_embeddings_model: Part = INT8
    """What hears, of which the exporter makes five parts."""
    audio_forward_embeddings_model: Part = INT8
    audio_encoder_model: Part = INT8
    audio_vision_projection_model: Part = INT8
    audio_speech_projection_model: Part = INT8
    mtp_model: Part = INT8
    """Predicts further tokens; where it is not named it takes ``weights``, as Optimum does."""

    def _refusals(self) -> Iterator[Refusal]:
        for name in type(self).model_fields:
            weights: WeightCompression | None = getattr(self, name)
            if weights is not None and weights.needs_data:
                yield Refusal(name, "needs data, and only weights are compressed with it", "take what needs none")
