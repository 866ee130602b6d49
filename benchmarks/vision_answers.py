"""Definite answers about pictures: a tiny model is fitted to some, and then asked by torch, stock Optimum and GenAI.

A random model has near ties everywhere, so that equal tokens would show little. Fitted to one question about three of
the packaged pictures, each with an answer of its own, it says what it says with a margin, and only the picture tells
which of the three it is: who takes one picture for another, or sees none, says other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

QUESTION = "What is it?"
ANSWERS = {"circle": "a circle", "board": "all squares", "house": "the house"}
"""By the names of packaged pictures; an answer ends with the token that ends a turn."""
MAX_NEW_TOKENS = 16
MAX_STEPS, LEARNING_RATE, ENOUGH = 400, 3e-3, 0.02
"""Of Adam; it ends when no token of an answer has a larger loss, in nats: the next one is 3.9 nats behind."""


class Asked(NamedTuple):
    """One picture with the question."""

    inputs: dict[str, Any]
    """As the processor makes them."""
    text: str
    """What the chat template makes of the question, with the mark of the picture that GenAI takes too."""
    points: Any
    """Of the picture, ``[height, width, 3]``."""
    answer: tuple[int, ...]
    """The tokens that the model is fitted to."""


def ask(checkpoint: Path, processor: Any, mark: str | None) -> list[Asked]:
    """The question about each picture, as a model's own processor and chat template write it.

    Args:
        checkpoint: Of the model.
        processor: That makes its prompts.
        mark: What stands for a picture before the question; None: the chat template takes a list of parts.
    """
    import numpy as np

    from llmcompress.data.pictures import read_pictures

    pictures = {each.name: each.picture for each in read_pictures("bundled").questions}
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}] if mark is None else f"{mark}{QUESTION}"
    turns = [{"role": "user", "content": content}]
    writer = processor if mark is None else processor.tokenizer
    text = writer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    asked = []
    for name, answer in ANSWERS.items():
        if mark is None:
            inputs = processor(images=[pictures[name]], text=[text], return_tensors="pt")
        else:
            inputs = _by_optimum(checkpoint, processor, content, pictures[name])
        ids = processor.tokenizer.encode(answer, add_special_tokens=False)
        asked.append(Asked(dict(inputs), text, np.asarray(pictures[name]), (*ids, processor.tokenizer.eos_token_id)))
    return asked


def _by_optimum(checkpoint: Path, processor: Any, content: str, picture: Any) -> Any:
    """As Optimum's class for a type puts its prompt together."""
    from optimum.intel.openvino.modeling_visual_language import MODEL_TYPE_TO_CLS_MAPPING
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    return MODEL_TYPE_TO_CLS_MAPPING[config.model_type].preprocess_inputs(
        text=content, image=picture, processor=processor, tokenizer=processor.tokenizer, config=config
    )


def fit(module: Any, asked: Sequence[Asked]) -> float:
    """Teach a torch model the answers, by Adam; returns the largest loss of a token at the end."""
    import torch

    torch.manual_seed(0)
    optimizer, worst = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE), float("inf")
    module.train()
    for _ in range(MAX_STEPS):
        losses = torch.cat([_losses(module, each) for each in asked])
        worst = float(losses.max())
        if worst < ENOUGH:
            break
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    module.eval()
    return worst


def _losses(module: Any, asked: Asked) -> Any:
    """Of each token of an answer."""
    import torch

    answer, start = torch.tensor([asked.answer]), asked.inputs["input_ids"].shape[1]
    more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    # What marks the tokens of pictures, an answer has none of.
    inputs = {
        name: torch.cat((value, more.get(name, torch.zeros_like(answer))), 1) if value.shape == (1, start) else value
        for name, value in asked.inputs.items()
    }
    logits = module(**inputs).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits.float(), answer[0], reduction="none")


def said_by(model: Any, asked: Sequence[Asked]) -> list[list[int]]:
    """What a model with transformers' ``generate`` answers: of torch, or of stock Optimum's class."""
    import torch

    found = []
    for each in asked:
        with torch.no_grad():
            tokens = model.generate(**each.inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        found.append(tokens[0, each.inputs["input_ids"].shape[1] :].tolist())
    return found


def said_by_genai(directory: Path, asked: Sequence[Asked]) -> list[list[int]]:
    """What ``openvino_genai.VLMPipeline`` answers to the same prompts, of the pictures as they are.

    Raises:
        RuntimeError: It has no pipeline for the model, or fails.
    """
    import openvino as ov
    import openvino_genai

    class Heard(openvino_genai.StreamerBase):  # type: ignore[misc]
        """Keeps the tokens of an answer."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens: list[int] = []

        def write(self, token: int | list[int]) -> Any:
            self.tokens += token if isinstance(token, list) else [token]
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is left to do."""

    pipeline, found = openvino_genai.VLMPipeline(str(directory), "CPU"), []
    for each in asked:
        heard = Heard()
        how = {"max_new_tokens": MAX_NEW_TOKENS, "apply_chat_template": False, "streamer": heard}
        pipeline.generate(each.text, images=[ov.Tensor(each.points[None])], **how)
        found.append(heard.tokens)
    return found


def equal_tokens(said: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> int:
    """How many tokens stand at their place."""
    return sum(
        one == other
        for mine, theirs in zip(said, expected, strict=True)
        for one, other in zip(mine, theirs, strict=False)
    )
