"""A model to talk to: through the pipeline that serves it, or by our own decoder where GenAI is not installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llmcompress.errors import ModelError, ResourceError, UsageError, last_line
from llmcompress.report.record import Record

Message = Mapping[str, str]
Heard = Callable[[str], bool]
"""Takes the answer piece by piece; True: stop here."""


class Answer(Record):
    """What a model said, and how fast."""

    model: str
    text: str
    num_tokens: int
    first_token_s: float
    """From the question to the first token."""
    decode_tokens_per_s: float | None
    """Of the tokens after the first; None where there is none."""
    ended: Literal["stop", "length", "interrupted"]
    """By a token that ends the turn, by ``max_new_tokens``, or by whoever listened."""


Talk = Callable[[Sequence[Message], Heard], Answer]
"""A conversation whose last turn is the user's -> the answer."""


class TalkSpec(NamedTuple):
    """How a model talks. What is not here, its generation_config.json says."""

    device: str = "CPU"
    max_new_tokens: int | None = None
    """None: the generation config's, else 512."""
    seed: int = 0
    pictures: tuple[Path, ...] = ()
    """Shown with the first question."""


DEFAULT_MAX_NEW_TOKENS = 512


def open_model(directory: Path, spec: TalkSpec) -> Talk:
    """Open an OpenVINO model with its tokenizer to talk to.

    Raises:
        UsageError: the device refuses it, a picture cannot be read, or the model sees none.
        ModelError: there is no tokenizer, or it has no chat template that takes the conversation (when it talks).
        ResourceError: it is a vision-language model, and OpenVINO GenAI is not installed.
    """
    from llmcompress.graph.model import read_ir
    from llmcompress.graph.recurrence import find_recurrence
    from llmcompress.loaders.layout import VISION_XML

    if (directory / VISION_XML).is_file():
        return _vision_talk(directory, spec)
    if spec.pictures:
        raise UsageError("a text model sees no pictures", where=str(directory), hint="leave `image` out")
    installed = importlib.util.find_spec("openvino_genai") is not None
    # GenAI opens a recurrent graph that reads a prompt in one call, and fails at its first token.
    by_genai = installed and find_recurrence(read_ir(directory)) is None
    return (_genai_talk if by_genai else decoder_talk)(directory, spec)


def _genai_talk(directory: Path, spec: TalkSpec) -> Talk:
    import openvino_genai

    pipeline = _opened(openvino_genai.LLMPipeline, directory, spec)

    def generate(messages: Sequence[Message], config: Any, hear: Callable[[str], Any]) -> Any:
        return pipeline.generate(openvino_genai.ChatHistory([dict(message) for message in messages]), config, hear)

    return _talk(directory, spec, pipeline, generate)


def _vision_talk(directory: Path, spec: TalkSpec) -> Talk:
    """A conversation that begins with pictures; the pipeline holds them in its history."""
    if importlib.util.find_spec("openvino_genai") is None:
        raise ResourceError(
            "a vision-language model is talked to by OpenVINO GenAI, which is not installed",
            where=str(directory),
            hint="pip install 'llmcompress[genai]'",
        )
    import openvino_genai

    pictures = [_picture(path) for path in spec.pictures]
    pipeline = _opened(openvino_genai.VLMPipeline, directory, spec)
    history, known = openvino_genai.ChatHistory(), list[Message]()

    def generate(messages: Sequence[Message], config: Any, hear: Callable[[str], Any]) -> Any:
        nonlocal history, known
        shown = []
        if not known or list(messages[: len(known)]) != known:
            history, known, shown = openvino_genai.ChatHistory(), [], pictures
        for message in messages[len(known) :]:
            history.append(dict(message))
        known = list(messages)
        return pipeline.generate(history, images=shown, generation_config=config, streamer=hear)

    return _talk(directory, spec, pipeline, generate)


def _picture(path: Path) -> Any:
    """A picture as GenAI takes it: bytes of red, green and blue, ``[height, width, 3]``."""
    import numpy as np
    import openvino as ov
    from PIL import Image

    try:
        with Image.open(path) as image:
            return ov.Tensor(np.array(image.convert("RGB")))
    except OSError as error:
        raise UsageError(
            f"the picture cannot be read: {last_line(error)}", where=str(path), hint="give a PNG or JPEG file"
        ) from None


def _opened(kind: Any, directory: Path, spec: TalkSpec) -> Any:
    try:
        return kind(str(directory), spec.device)
    except RuntimeError as error:
        raise UsageError(
            f"OpenVINO GenAI cannot open it: {last_line(error)}", where=str(directory), hint="llmcompress doctor"
        ) from None


def _talk(directory: Path, spec: TalkSpec, pipeline: Any, generate: Callable[..., Any]) -> Talk:
    """The conversation with a pipeline of GenAI; ``generate`` takes turns, settings and what hears each piece."""
    import openvino_genai

    config = pipeline.get_generation_config()
    config.max_new_tokens = spec.max_new_tokens or _max_new_tokens({"max_new_tokens": config.max_new_tokens})
    config.rng_seed = spec.seed
    running, stopping = openvino_genai.StreamingStatus.RUNNING, openvino_genai.StreamingStatus.STOP

    def talk(messages: Sequence[Message], heard: Heard) -> Answer:
        interrupted = False

        def hear(text: str) -> Any:
            nonlocal interrupted
            interrupted = interrupted or heard(text)
            return stopping if interrupted else running

        try:
            result = generate(messages, config, hear)
        except RuntimeError as error:
            raise _no_answer(directory, last_line(error)) from None
        metrics, reason = result.perf_metrics, result.finish_reasons[0]
        num_tokens = int(metrics.get_num_generated_tokens())
        at_length = reason == openvino_genai.GenerationFinishReason.LENGTH
        return Answer(
            model=directory.name,
            text=str(result.texts[0]),
            num_tokens=num_tokens,
            first_token_s=metrics.get_ttft().mean / 1e3,
            decode_tokens_per_s=1e3 / metrics.get_tpot().mean if num_tokens > 1 else None,
            ended="interrupted" if interrupted else "length" if at_length else "stop",
        )

    return talk


def decoder_talk(directory: Path, spec: TalkSpec) -> Talk:
    """As ``open_model``, by our own decoder."""
    from llmcompress.data.tokens import text_decoder, text_encoder
    from llmcompress.evaluation.conversation import chat_template
    from llmcompress.graph.decoding import compile_decoder, eos_ids, next_tokens
    from llmcompress.graph.sampling import chooser
    from llmcompress.loaders.chat import render
    from llmcompress.loaders.resolving import resolve
    from llmcompress.spec import Access
    from llmcompress.system.json_file import read_json

    template, encoder = chat_template(directory), text_encoder(resolve(directory, Access()))
    if template is None:
        raise _no_answer(directory, "there is no chat template")
    decode = text_decoder(directory)
    file = directory / "generation_config.json"
    config = read_json(file) if file.is_file() else {}
    limit, ends = spec.max_new_tokens or _max_new_tokens(config), eos_ids(config)
    compiled = compile_decoder(directory, spec.device)

    def talk(messages: Sequence[Message], heard: Heard) -> Answer:
        prompt_ids = encoder.ids(render(template, messages, add_generation_prompt=True), special=False)
        began = time.perf_counter()
        moments: list[float] = []
        token_ids: list[int] = []
        text, ended = "", "length"
        for token in next_tokens(compiled, prompt_ids, chooser(config, spec.seed)):
            moments.append(time.perf_counter())
            if token in ends:
                ended = "stop"
                break
            token_ids.append(token)
            whole = decode(token_ids)
            # A character can take several tokens; until the last of them it reads as a replacement.
            if not whole.endswith("\ufffd"):
                text, piece = whole, whole[len(text) :]
                if heard(piece):
                    ended = "interrupted"
                    break
            if len(token_ids) == limit:
                break
        after_first = moments[-1] - moments[0]
        return Answer(
            model=directory.name,
            text=text,
            num_tokens=len(token_ids),
            first_token_s=moments[0] - began,
            decode_tokens_per_s=(len(moments) - 1) / after_first if len(moments) > 1 else None,
            ended=ended,  # type: ignore[arg-type]
        )

    return talk


def _max_new_tokens(config: Mapping[str, Any]) -> int:
    """The config's limit where it sets one; GenAI reads a missing one as the largest number there is."""
    wanted = config.get("max_new_tokens")
    return wanted if isinstance(wanted, int) and 0 < wanted < 1 << 31 else DEFAULT_MAX_NEW_TOKENS


def _no_answer(directory: Path, problem: str) -> ModelError:
    return ModelError(
        f"it cannot be talked to: {problem}",
        where=str(directory),
        hint="a conversation needs a chat template: take the instruct variant of the model",
    )
