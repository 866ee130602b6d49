"""Greedy continuations of the same text by both models: where they part."""

from __future__ import annotations

from llmcompress.data.protocols import EvaluationWindows
from llmcompress.evaluation.measurement import ModelOnDevice
from llmcompress.graph.decoding import generate
from llmcompress.report.evaluation import GenerationRecord
from llmcompress.system.progress import Progress, Reporter

PROMPT_TOKENS = 32
MAX_NEW_TOKENS = 64


def compare_generations(
    candidate: ModelOnDevice,
    reference: ModelOnDevice,
    windows: EvaluationWindows,
    num_prompts: int,
    progress: Reporter,
) -> GenerationRecord:
    """Continue the beginnings of evenly spread windows with both models, 64 tokens each, no end-of-text."""
    texts: list[list[tuple[int, ...]]] = []
    step = max(1, len(windows.windows) // num_prompts)
    chosen = windows.windows[::step][:num_prompts]
    for model in (reference, candidate):
        compiled = model.compiled()
        made = []
        for number, window in enumerate(chosen):
            progress(Progress("generate", len(texts) * len(chosen) + number, 2 * len(chosen), "texts"))
            prompt = window.token_ids[:PROMPT_TOKENS].tolist()
            made.append(generate(compiled, prompt, eos=frozenset(), max_new_tokens=MAX_NEW_TOKENS).token_ids)
        texts.append(made)
        # Before the other model is compiled.
        del compiled
    progress(Progress("generate", 2 * len(chosen), 2 * len(chosen), "texts"))
    parted = [first_difference(mine, theirs) for theirs, mine in zip(*texts, strict=True)]
    return GenerationRecord(
        num_prompts=len(chosen),
        max_new_tokens=MAX_NEW_TOKENS,
        identical_share=sum(position is None for position in parted) / len(parted),
        equal_prefix_share=sum(1.0 if position is None else position / MAX_NEW_TOKENS for position in parted)
        / len(parted),
        first_divergent_token=tuple(parted),
    )


def first_difference(first: tuple[int, ...], second: tuple[int, ...]) -> int | None:
    """Position of the first token that differs, or None."""
    for position, (one, other) in enumerate(zip(first, second, strict=True)):
        if one != other:
            return position
    return None
