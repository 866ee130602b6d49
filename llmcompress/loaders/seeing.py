"""A vision-language model that is asked about pictures: its graphs, fed by Optimum's ``OVModelForVisualCausalLM``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from llmcompress.errors import ModelError, one_line
from llmcompress.graph.decoding import eos_ids
from llmcompress.graph.joining import TEXT
from llmcompress.loaders.chat import render, wants_parts
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.loaders.processor import open_processor
from llmcompress.loaders.source import Source

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray

_VISION = "vision_embeddings_model"
_NO_OTHER = "check the model in Optimum's OVModelForVisualCausalLM"


class Sight(NamedTuple):
    """A vision-language model that is compiled, and what makes its prompts."""

    model: Any
    """Of Optimum's class for its type."""
    processor: Any
    eos: frozenset[int]
    where: str
    """For people."""


class Reply(NamedTuple):
    """What a model said about a picture."""

    token_ids: NDArray[np.int64]
    """``[tokens]``, with the token that ends it."""
    logits: NDArray[np.float32]
    """``[tokens, vocabulary]``, of each token."""
    seen: NDArray[np.float32]
    """``[embeddings, width]``: what its language model was given of the picture."""


def open_sight(loaded: LoadedModel, device: str, properties: Mapping[str, str]) -> Sight:
    """Compile the graphs of a vision-language model for a device, as Optimum's class runs them.

    Args:
        loaded: With its parts; its graphs are copied.
        device: OpenVINO's name.
        properties: By OpenVINO's names.

    Raises:
        ModelError: Optimum has no class for its type or cannot run it, or there is no processor.
    """
    from transformers import GenerationConfig

    source = loaded.source
    processor = open_processor(source.path, source.trust_remote_code)
    with _plain_words(source.name, "run"):
        kind, config = _class_of(source)
        # What the exporter writes into a configuration, such as the embedding of a new line in pictures.
        for name, value in loaded.config.items():
            if getattr(config, name, None) is None:
                setattr(config, name, value)
        copies = loaded.clone()
        stated = (loaded.generation_config, loaded.config, loaded.config.get("text_config"))
        eos = frozenset[int]().union(*(eos_ids(each) for each in stated if each))
        model = kind(
            language_model=copies.model,
            text_embeddings=copies.parts[TEXT],
            vision_embeddings=copies.parts[_VISION],
            config=config,
            device=device,
            ov_config=dict(properties),
            model_save_dir=source.path,
            # Greedy, whatever the model's own configuration says of sampling and of repetition.
            generation_config=GenerationConfig(eos_token_id=sorted(eos) or None, pad_token_id=min(eos, default=0)),
            **{part: copies.parts.get(f"{part}_model") for part in kind.additional_parts},
        )
    # Views of the source's files.
    model._llmcompress_graphs = copies
    return Sight(model, processor, eos, source.name)


def open_prompts(source: Source) -> Sight:
    """What makes prompts as the model of a source would: a sight that cannot answer.

    Raises:
        ModelError: Optimum has no class for its type, or there is no processor.
    """
    processor = open_processor(source.path, source.trust_remote_code)
    with _plain_words(source.name, "asked about a picture"):
        kind, config = _class_of(source)
        model = SimpleNamespace(preprocess_inputs=kind.preprocess_inputs, config=config)
    return Sight(model, processor, frozenset(), source.name)


def _class_of(source: Source) -> tuple[Any, Any]:
    """Optimum's class for a source, and its configuration."""
    from optimum.intel.openvino.modeling_visual_language import MODEL_TYPE_TO_CLS_MAPPING
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=source.trust_remote_code)
    return MODEL_TYPE_TO_CLS_MAPPING[config.model_type], config


def encoder_of(model: Any) -> str:
    """The name of the method of Optimum's class that makes embeddings of a picture."""
    return "image_embed" if _sees_inside(model) else "get_vision_embeddings"


def _sees_inside(model: Any) -> bool:
    """Whether a class puts a picture's embeddings among those of the text itself, as that of Phi-4-multimodal."""
    return hasattr(model, "image_embed")


def picture_prompt(sight: Sight, question: str, picture: PIL.Image.Image) -> dict[str, torch.Tensor]:
    """What the model's processor makes of a picture and a question behind it, by the chat template, as Optimum does.

    Raises:
        ModelError: The template or the processor refuses them.
        SecurityError: The template breaks out of its bounds.
    """
    tokenizer = sight.processor.tokenizer
    writers = [each for each in (sight.processor, tokenizer) if getattr(each, "chat_template", None) is not None]
    for writer in writers[:1]:
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        content = parts if wants_parts(writer) else question
        render(writer, [{"role": "user", "content": content}], add_generation_prompt=True)
    with _plain_words(sight.where, "asked about a picture"):
        made = sight.model.preprocess_inputs(
            text=question,
            image=picture,
            processor=sight.processor,
            tokenizer=tokenizer,
            config=sight.model.config,
        )
        return dict(made)


def answer(
    sight: Sight, prompt: Mapping[str, torch.Tensor], max_new_tokens: int, given: Sequence[int] | None = None
) -> Reply:
    """Let a model answer greedily, a token at a time after its prompt.

    Args:
        sight: The model.
        prompt: As ``picture_prompt`` makes it.
        max_new_tokens: At most so many; one that ends the answer is among them.
        given: The tokens that it says whatever it would say, for the logits of each.

    Raises:
        ModelError: It cannot run.
    """
    import numpy as np
    from transformers import LogitsProcessorList

    start, seen = prompt["input_ids"].shape[1], list[Any]()
    say = LogitsProcessorList([] if given is None else [_saying(start, given)])
    sees = "vision_projection" if _sees_inside(sight.model) else "get_vision_embeddings"
    with _plain_words(sight.where, "asked about a picture"), _heard(sight.model, sees, seen.append):
        found = sight.model.generate(
            **prompt,
            do_sample=False,
            max_new_tokens=max_new_tokens if given is None else len(given),
            logits_processor=say,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rows = np.concatenate([_rows(each) for each in seen if each is not None])
    logits = np.concatenate([step.numpy() for step in found.logits])
    return Reply(found.sequences[0, start:].numpy(), logits, rows)


def language_inputs(sight: Sight, prompt: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """What the language model is fed of a prompt in its first call, by the names of its inputs; it does not run.

    Raises:
        ModelError: Another part cannot run.
    """
    import numpy as np

    taken: dict[str, NDArray[Any]] = {}

    def take(inputs: Mapping[str, Any]) -> None:
        taken.update({name: np.asarray(value) for name, value in inputs.items()})
        raise _Taken

    heard = _heard(sight.model.language_model, "prepare_inputs", take)
    with _plain_words(sight.where, "asked about a picture"), contextlib.suppress(_Taken), heard:
        sight.model.generate(**prompt, do_sample=False, max_new_tokens=1)
    return taken


class _Taken(BaseException):
    """Ends a call when what it was made for is in hand."""


def _saying(start: int, given: Sequence[int]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Scores of which the next given token alone can be chosen."""

    def choose(token_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = scores.new_full(scores.shape, float("-inf"))
        chosen[:, given[token_ids.shape[1] - start]] = 0
        return chosen

    return choose


def _rows(found: Any) -> NDArray[np.float32]:
    """What a part gives, an embedding a row; some give those of several layers too."""
    import numpy as np

    each = [np.asarray(one, dtype=np.float32) for one in (found if isinstance(found, tuple | list) else [found])]
    return np.concatenate([one.reshape(-1, one.shape[-1]) for one in each])


@contextlib.contextmanager
def _heard(owner: Any, name: str, hear: Callable[[Any], None]) -> Iterator[None]:
    """Have a method or a part of one object tell what it returns."""
    method, own = getattr(owner, name), vars(owner).get(name)

    def telling(*args: Any, **kwargs: Any) -> Any:
        found = method(*args, **kwargs)
        hear(found)
        return found

    setattr(owner, name, telling)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextlib.contextmanager
def _plain_words(where: str, what: str) -> Iterator[None]:
    """Say what Optimum's class, the processor or the plugin raises, which can be anything."""
    try:
        yield
    except Exception as error:
        raise ModelError(
            f"it cannot be {what}: {type(error).__name__}: {one_line(str(error), 200)}", where=where, hint=_NO_OTHER
        ) from error
