"""The conversion check: the uncompressed model must be right in OpenVINO before it is made smaller."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompress.data.tokens import TextEncoder, text_encoder
from llmcompress.errors import UsageError
from llmcompress.graph.decoding import Decoder
from llmcompress.graph.device import compile_model, properties_of
from llmcompress.loaders.adapter import adapters_left_out, merge
from llmcompress.loaders.context import ChangingRope, changing_rope
from llmcompress.loaders.environments import needed_layer, on_layer
from llmcompress.loaders.exporter import dtype_argument
from llmcompress.loaders.fetching import fetch_weights
from llmcompress.loaders.loaded_model import LoadedModel, load
from llmcompress.loaders.quantized.declaration import is_repacked
from llmcompress.loaders.resolving import resolve
from llmcompress.loaders.source import Source
from llmcompress.report.evaluation import ConversionRecord
from llmcompress.spec.access import Access
from llmcompress.system.environment import quiet_libraries
from llmcompress.system.library_call import ProgressOption, library_call, reporter
from llmcompress.system.progress import Progress, Reporter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROMPTS = (
    "The quick brown fox jumps over the lazy dog, and then",
    "In the year 1969 two people walked on the Moon for the first time. They",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Es war einmal ein König, der hatte drei Töchter; die jüngste",
    "1 + 1 = 2, 2 + 2 = 4, 3 + 3 =",
)
MAX_NEW_TOKENS = 32
MAX_MEAN_KL = 1e-4
NEAR_TIE_NATS = 1e-2
"""Two tokens whose log-probabilities differ by less are a tie that rounding decides."""
LONGEST_PROMPT = 8192
"""Of a model whose positions change with the length; what changes beyond it takes too much memory to compare."""
_MORE_TOKENS = 8
_MAX_ROWS = 512

_log = logging.getLogger(__name__)


@library_call
def check_conversion(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    allow_nonfinite: bool = False,
    allow_links: bool = False,
    merge_adapter: bool = False,
    progress: ProgressOption = "auto",
) -> ConversionRecord:
    """Compare PyTorch with OpenVINO on an uncompressed checkpoint; ``passed`` says whether the conversion is right.

    Both run in f32. PyTorch continues each of ``PROMPTS`` greedily by 32 tokens; OpenVINO reads the prompt in one call
    and those tokens one by one, through its key-value cache. Where the frequencies of a model's positions depend on the
    length (LongRoPE, dynamic NTK), one more prompt goes beyond the length at which they change.

    Raises:
        UsageError: The source is no checkpoint.
        ModelError: It cannot be loaded.
        HubError: The Hub could not give it.
        SecurityError: The source would need pickle files or foreign code.
    """
    progress = reporter(progress)
    quiet_libraries()
    access = Access(revision, trust_remote_code, offline, allow_nonfinite, allow_links, merge_adapter)
    found = resolve(source, access)
    if found.layout != "checkpoint":
        raise UsageError(
            "`check_conversion` compares with PyTorch and needs the checkpoint; this is an OpenVINO IR",
            where=found.id or str(found.path),
            hint="give the Hub id or the checkpoint's directory",
        )
    if is_repacked(found.config):
        raise UsageError(
            "`check_conversion` compares with PyTorch, where this quantized checkpoint cannot be opened",
            where=found.id or str(found.path),
            hint="compare the output with the floats that its codes stand for: llmcompress eval DIR --reference SOURCE",
        )
    layer = needed_layer(found)
    if layer is not None:
        how = {"allow_nonfinite": allow_nonfinite}
        return on_layer(layer, check_source, found, how, offline=offline, progress=progress)
    return check_source(found, allow_nonfinite=allow_nonfinite, progress=progress)


def check_source(source: Source, *, allow_nonfinite: bool, progress: Reporter) -> ConversionRecord:
    """The check of a checkpoint that was found; raises as ``check_conversion``."""
    source = fetch_weights(source, progress=progress)
    loaded = load(source, tokenizer=False, allow_nonfinite=allow_nonfinite, progress=progress)
    return compare_with_torch(loaded, text_encoder(source), progress)


def compare_with_torch(loaded: LoadedModel, encoder: TextEncoder, progress: Reporter) -> ConversionRecord:
    """The comparison itself, of a converted model with the checkpoint it was loaded from."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    source, rope = loaded.source, changing_rope(loaded.source.config)

    prompts = [*(encoder.ids(prompt, special=True) for prompt in PROMPTS), *_long_prompt(rope, encoder, source.name)]
    progress(Progress("PyTorch", 0, len(prompts), "prompts"))
    with adapters_left_out():
        module = AutoModelForCausalLM.from_pretrained(
            source.path,
            **{dtype_argument(): torch.float32},
            trust_remote_code=source.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
        )
    module = (module if source.adapter is None else merge(module, source.adapter)).eval()
    expected = []
    for number, prompt in enumerate(prompts):
        expected.append(_by_torch(module, prompt, MAX_NEW_TOKENS if number < len(PROMPTS) else 2))
        progress(Progress("PyTorch", number + 1, len(prompts), "prompts"))
    del module
    compiled = compile_model(loaded.clone().model, "CPU", properties_of("CPU", "pinned"))
    divergences, disagreements, near_ties = [], 0, 0
    for number, (prompt, (ids, logits)) in enumerate(zip(prompts, expected, strict=True)):
        progress(Progress("OpenVINO", number, len(prompts), "prompts"))
        # PyTorch's frequencies are those of the whole: what goes beyond their change token by token has both.
        crosses = rope is not None and rope.kind == "longrope" and len(prompt) <= rope.length < len(ids)
        got = _by_openvino(compiled, ids, len(ids) - 1 if crosses else len(prompt))
        first, second = _log_probabilities(logits), _log_probabilities(got)
        divergences.append((np.exp(first) * (first - second)).sum(axis=1))
        rows = np.arange(len(first))
        chosen, other = first.argmax(axis=1), second.argmax(axis=1)
        differs = chosen != other
        tie = first[rows, chosen] - first[rows, other] < NEAR_TIE_NATS
        disagreements += int(differs.sum())
        near_ties += int((differs & tie).sum())
    progress(Progress("OpenVINO", len(prompts), len(prompts), "prompts"))
    kl = np.concatenate(divergences)
    # What is not a number is no agreement.
    passed = bool(np.nan_to_num(kl, nan=np.inf).mean() <= MAX_MEAN_KL and disagreements == near_ties)
    return ConversionRecord(
        num_prompts=len(prompts),
        num_tokens=len(kl),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        num_greedy_disagreements=disagreements,
        num_near_ties=near_ties,
        passed=passed,
    )


def _long_prompt(rope: ChangingRope | None, encoder: TextEncoder, where: str) -> list[list[int]]:
    """A prompt beyond the length at which the frequencies of positions change; none where they do not."""
    if rope is None:
        return []
    if rope.length > LONGEST_PROMPT:
        _log.warning("%s: not compared beyond %s tokens, where its positions change", where, f"{rope.length:,}")
        return []
    num_tokens = rope.length + _MORE_TOKENS
    text = "\n".join(PROMPTS)
    repeats = num_tokens // max(1, len(encoder.ids(text, special=False))) + 1
    return [encoder.ids("\n".join([text] * repeats), special=True)[:num_tokens]]


def _by_torch(module: Any, prompt: list[int], num_new: int) -> tuple[list[int], NDArray[np.float64]]:
    """The prompt with its greedy continuation, and the logits at the last positions but the very last."""
    import numpy as np
    import torch

    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_new):
            ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
        logits = module(torch.tensor([ids[:-1]])).logits[0, -_MAX_ROWS:]
    return ids, logits.numpy().astype(np.float64)


def _by_openvino(compiled: Any, ids: list[int], num_prompt: int) -> NDArray[np.float64]:
    import numpy as np

    decoder = Decoder(compiled)
    found = []

    def read(starts: Iterable[int], ends: Iterable[int]) -> None:
        decoder.begin(1, len(ids))
        for start, end in zip(starts, ends, strict=True):
            decoder.run(decoder.tensors(np.array([ids[start:end]]), start))
            found.append(decoder.request.get_tensor("logits").data[0][-_MAX_ROWS:].astype(np.float64))

    if decoder.recurrence is not None:
        # Of a prompt in one call such a graph is right in the last row, which is all that a reader of it takes.
        read(range(num_prompt - 1), range(1, num_prompt))
    ends = range(num_prompt, len(ids))
    read((0, *ends[:-1]), ends)
    if decoder.recurrence is not None:
        found[num_prompt - 1] = found[num_prompt - 1][-1:]
    return np.concatenate(found)[-_MAX_ROWS:]


def _log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
