"""Answers as a server gives them: through OpenVINO GenAI where it is installed, on each form of the graph."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.evaluation.conversation import QUESTIONS
from llmcompress.evaluation.measurement import ModelOnDevice
from llmcompress.graph.decoding import Generation, generate
from llmcompress.report.evaluation import Check
from llmcompress.spec.evaluation import Backend
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import openvino_genai

MAX_NEW_TOKENS = 192
"""Twice what the original is given: an answer that needs so much more does not stop."""
MAX_PHRASE_TOKENS = 32
REPEATS = 3
_ATTENTION = {"stateful": "SDPA", "paged": "PA"}
_NAME = "answers_when_served"
_REQUIRED = "every question that the original answers to its end"

Decode = Callable[[Sequence[int]], str]


class Served(NamedTuple):
    """The answers of one form of the graph, a generation for each question that was asked."""

    generations: tuple[Generation, ...]
    by_genai: bool
    """Otherwise by our own loop."""
    decode: Decode | None = None
    """Token ids -> text; None where that cannot be had."""


def served_check(
    candidates: Sequence[ModelOnDevice],
    asked: Sequence[Sequence[int]],
    original: Sequence[Generation],
    eos: frozenset[int],
    progress: Reporter,
) -> Check:
    """Ask each form of a model what the original answered, and look for loops, for no end, and for another script.

    Args:
        candidates: One model, in each form of its graph.
        asked: Token ids of each of ``QUESTIONS``.
        original: The original's answers to them.
        eos: Ids that end a text.
    """
    kept = [number for number, answer in enumerate(original) if answer.stopped]
    if not kept:
        detail = "the original answers none to its end"
        return Check(name=_NAME, passed=None, value=None, required=_REQUIRED, detail=detail)
    served: dict[Backend, Served] = {}
    for number, model in enumerate(candidates):
        progress(Progress("probe as served", number, len(candidates), "backends"))
        served[model.backend] = _answers(model, [asked[number] for number in kept], eos)
    progress(Progress("probe as served", len(candidates), len(candidates), "backends"))
    return judge_served(served, {QUESTIONS[number]: original[number] for number in kept})


def judge_served(served: Mapping[Backend, Served], original: Mapping[str, Generation]) -> Check:
    """Compare answers with the original's, which all ended by themselves.

    Args:
        served: By backend, in the order of the questions.
        original: By question.
    """
    good: dict[Backend, int] = {}
    faults = []
    for backend, found in served.items():
        problems = [
            fault(mine, theirs, found.decode) for mine, theirs in zip(found.generations, original.values(), strict=True)
        ]
        good[backend] = problems.count(None)
        faults += [f"{backend}: {question!r} {text}" for question, text in zip(original, problems, strict=True) if text]
    maker = "by OpenVINO GenAI" if all(found.by_genai for found in served.values()) else "by our own loop"
    return Check(
        name=_NAME,
        passed=not faults,
        value=", ".join(f"{count} of {len(original)} {backend}" for backend, count in good.items()),
        required=_REQUIRED,
        detail="; ".join([maker, *faults]),
    )


def fault(answer: Generation, original: Generation, decode: Decode | None) -> str | None:
    """What is wrong with an answer to a question that the original answers to its end; None: nothing."""
    if not answer.stopped:
        return "loops" if ends_in_a_loop(answer.token_ids) else f"does not end in {len(answer.token_ids)} tokens"
    if decode is not None:
        mine, theirs = script(decode(answer.token_ids)), script(decode(original.token_ids))
        if mine is not None and theirs is not None and mine != theirs:
            return f"is answered in {mine} letters, not {theirs} ones"
    return None


def ends_in_a_loop(token_ids: Sequence[int]) -> bool:
    """Whether a text ends in a phrase of at most 32 tokens three times over."""
    for length in range(1, min(MAX_PHRASE_TOKENS, len(token_ids) // REPEATS) + 1):
        end = list(token_ids[-length * REPEATS :])
        if end == end[:length] * REPEATS:
            return True
    return False


def script(text: str) -> str | None:
    """The writing that most letters of a text are of, as Unicode names them (LATIN, CJK); None without letters."""
    names = (unicodedata.name(each, "").partition(" ")[0] for each in text if each.isalpha())
    # Japanese is written in all three.
    letters = Counter("CJK" if name in ("HIRAGANA", "KATAKANA") else name for name in names)
    return letters.most_common(1)[0][0] if letters else None


def _answers(model: ModelOnDevice, asked: Sequence[Sequence[int]], eos: frozenset[int]) -> Served:
    if importlib.util.find_spec("openvino_genai") is not None and model.loaded.source.layout == "ir":
        try:
            return _by_genai(model, asked, eos)
        except (RuntimeError, ValueError):
            # It does not read every model.
            pass
    compiled = model.compiled()
    made = [generate(compiled, prompt, eos=eos, max_new_tokens=MAX_NEW_TOKENS) for prompt in asked]
    return Served(tuple(made), by_genai=False)


def _by_genai(model: ModelOnDevice, asked: Sequence[Sequence[int]], eos: frozenset[int]) -> Served:
    import numpy as np
    import openvino as ov
    import openvino_genai

    path, attention = str(model.loaded.source.path), _ATTENTION[model.backend]
    pipeline = openvino_genai.LLMPipeline(path, model.device, ATTENTION_BACKEND=attention, **model.properties)
    # Plain greedy decoding, as the original's; not what the model's own configuration would sample.
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.stop_token_ids = MAX_NEW_TOKENS, False, set(eos)
    made = []
    for prompt in asked:
        ids = np.array([prompt], dtype=np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        made.append(_generation(pipeline.generate(inputs, config), eos))
    return Served(tuple(made), by_genai=True, decode=_decode(pipeline))


def _decode(pipeline: openvino_genai.LLMPipeline) -> Decode | None:
    tokenizer = pipeline.get_tokenizer()
    try:
        tokenizer.decode([0])
    except RuntimeError:
        # There is no converted tokenizer.
        return None
    return lambda ids: str(tokenizer.decode(list(ids)))


def _generation(results: openvino_genai.EncodedResults, eos: frozenset[int]) -> Generation:
    import openvino_genai

    token_ids = tuple(results.tokens[0])
    stopped = results.finish_reasons[0] == openvino_genai.GenerationFinishReason.STOP
    while token_ids and token_ids[-1] in eos:
        token_ids, stopped = token_ids[:-1], True
    return Generation(token_ids, stopped)
