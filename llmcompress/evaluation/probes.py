"""Smoke probes: what no average shows and every user sees at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from llmcompress.evaluation.conversation import prompts
from llmcompress.evaluation.gate import finite_check
from llmcompress.evaluation.measurement import ModelOnDevice
from llmcompress.evaluation.preparation import Prepared
from llmcompress.evaluation.scoring import Batch, Scorer, calls
from llmcompress.evaluation.served import served_check
from llmcompress.evaluation.statistics import TokenScores
from llmcompress.graph.decoding import Generation, eos_ids, generate
from llmcompress.graph.recurrence import recurrence
from llmcompress.report.evaluation import Check
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_NEW_TOKENS = 96
LOOP_TOKENS = 16
CALL_TOKENS = 512


class Answers(NamedTuple):
    """Greedy answers to ``QUESTIONS``."""

    generations: tuple[Generation, ...]

    @property
    def num_stopped(self) -> int:
        """How many ended by themselves."""
        return sum(generation.stopped for generation in self.generations)

    @property
    def num_loops(self) -> int:
        """How many end in one token again and again."""
        return sum(is_loop(generation.token_ids) for generation in self.generations)


def probe(prepared: Prepared, scores: Sequence[TokenScores], context: int, progress: Reporter) -> tuple[Check, ...]:
    """Look at the scores, at the logits after ``context`` tokens, and at answers to plain questions.

    Args:
        scores: Of each form of the model.
    """
    import numpy as np

    candidate, encoder = prepared.candidate, prepared.encoder
    configs = (candidate.loaded.generation_config, candidate.loaded.config)
    eos = frozenset[int]().union(*(eos_ids(config) for config in configs if config is not None))
    asked = prompts(candidate.loaded.source.text_path, encoder)
    mine = None if asked is None else answers(candidate, asked, eos, progress, "probe")
    theirs = None
    as_served: tuple[Check, ...] = ()
    original = prepared.reference
    asked_of_it = None if original is None else prompts(original.loaded.source.text_path, encoder)
    if original is not None and asked is not None and asked_of_it is not None:
        theirs = answers(original, asked_of_it, eos, progress, "probe the reference")
        as_served = (served_check(prepared.candidates, asked, theirs.generations, eos, progress),)
    nll = np.concatenate([each.values["nll"] for each in scores])
    stream = np.concatenate([window.token_ids for window in prepared.feed.windows.windows[:64]])
    stages = ["long context", *(f"long context, {model.backend}" for model in prepared.candidates[1:])]
    long_context = [
        long_context_check(model, stream, context, progress, stage)
        for stage, model in zip(stages, prepared.candidates, strict=True)
    ]
    return (
        finite_check(int((~np.isfinite(nll)).sum()), len(nll)),
        min(long_context, key=lambda check: check.passed is True),
        *answer_checks(mine, theirs),
        *as_served,
    )


def answers(
    model: ModelOnDevice, asked: Sequence[Sequence[int]], eos: frozenset[int], progress: Reporter, stage: str
) -> Answers:
    """Let a model answer prompts of token ids greedily."""
    compiled = model.compiled()
    generations = []
    for number, prompt in enumerate(asked):
        progress(Progress(stage, number, len(asked), "answers"))
        generations.append(generate(compiled, prompt, eos=eos, max_new_tokens=MAX_NEW_TOKENS))
    progress(Progress(stage, len(asked), len(asked), "answers"))
    return Answers(tuple(generations))


def is_loop(token_ids: Sequence[int]) -> bool:
    """Whether a text ends in one token repeated."""
    return len(token_ids) >= LOOP_TOKENS and len(set(token_ids[-LOOP_TOKENS:])) == 1


def answer_checks(candidate: Answers | None, reference: Answers | None) -> tuple[Check, ...]:
    """Judge the answers: what the reference does as well is no damage, and without a reference only loops count."""
    required = {"stops_at_eos": "at least one answer ends by itself", "no_token_loop": "no answer ends in a loop"}
    if candidate is None:
        detail = "no chat template that takes a plain question"
        return tuple(
            Check(name=name, passed=None, value=None, required=text, detail=detail) for name, text in required.items()
        )
    num = len(candidate.generations)
    stops = Check(
        name="stops_at_eos",
        passed=True if candidate.num_stopped else (None if reference is None else not reference.num_stopped),
        value=f"{candidate.num_stopped} of {num}",
        required=required["stops_at_eos"],
        detail="" if reference is None else f"reference: {reference.num_stopped} of {num}",
    )
    tolerated = 0 if reference is None else reference.num_loops
    loops = Check(
        name="no_token_loop",
        passed=candidate.num_loops <= tolerated,
        value=f"{candidate.num_loops} of {num}",
        required=required["no_token_loop"],
        detail="" if reference is None else f"reference: {reference.num_loops} of {num}",
    )
    return (stops, loops)


def long_context_check(
    model: ModelOnDevice, token_ids: NDArray[np.int64], num_tokens: int, progress: Reporter, stage: str
) -> Check:
    """Feed ``num_tokens`` tokens of text, repeated where it is shorter, and look at the logits after the last one."""
    import numpy as np

    compiled, _ = model.scorer("logits")
    scorer = Scorer(compiled)
    # The token after the last is a target only, and not looked at.
    batch = Batch((0,), np.resize(token_ids, num_tokens + 1)[None], num_tokens)
    scorer.begin(batch)
    logits = np.empty(0)
    # A recurrent graph that reads a prompt in one call can take no pieces of it.
    for call in calls(batch, CALL_TOKENS if recurrence(compiled) is None else num_tokens):
        progress(Progress(stage, call.start, num_tokens, "tokens"))
        scorer.start(batch, call)
        logits = scorer.finish()["logits"]
    progress(Progress(stage, num_tokens, num_tokens, "tokens"))
    finite = bool(np.isfinite(logits).all())
    return Check(
        name="finite_logits",
        passed=finite,
        value="finite" if finite else "NaN or infinite",
        required=f"finite after {num_tokens} tokens",
        detail="" if finite or model.backend == "stateful" else "the paged graph",
    )
