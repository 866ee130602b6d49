"""How an evaluation is described: defaults, and refusals of what would have no effect."""

from __future__ import annotations

from typing import Any

import pytest

from llmcompress.errors import UsageError
from llmcompress.spec import EvalSpec
from llmcompress.spec.validation import from_options

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_defaults() -> None:
    spec = EvalSpec(dataset="text.txt")
    assert (spec.protocol, spec.seq_len, spec.precision, spec.device) == ("llama.cpp", 512, "as_used", "CPU")
    assert (spec.kl_margin, spec.perplexity_margin, spec.confidence) == (0.01, 0.01, 0.95)
    assert spec.effective_chunk == 64
    assert spec.model_copy(update={"precision": "pinned"}).effective_chunk == 512
    assert EvalSpec(dataset="text.txt", seq_len=32).effective_chunk == 32
    assert EvalSpec(dataset="text.txt", protocol="sliding").effective_stride == 256
    assert from_options(EvalSpec, {"dataset": "text.txt", "stride": None}) == spec


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        ({"stride": 8}, "stride", "has no effect on protocol llama.cpp"),
        ({"stride": 8, "protocol": "rolling"}, "stride", "has no effect on protocol rolling"),
        ({"stride": 512, "protocol": "sliding"}, "stride", "512 leaves no context in windows of 512"),
        ({"chunk": 513}, "chunk", "513 is more than a window of 512"),
        ({"seq_len": 3}, "seq_len", "got 3"),
        ({"num_windows": 0}, "num_windows", "got 0"),
        ({"precision": "f32"}, "precision", "accepted: as_used, pinned"),
        ({"kl_margin": 0.0}, "kl_margin", "got 0.0"),
        ({"windows": 3}, "windows", "unknown key 'windows'"),
        ({"split": "test"}, "split", "has no effect with a local file"),
        ({"dataset": "c4", "subset": "en"}, "subset", "has no effect with the known name c4"),
        ({"chat_template": True}, "chat_template", "text.txt holds running text, conversations are needed"),
        ({"dataset": "c4", "chat_template": True}, "chat_template", "c4 holds running text"),
        ({"dataset": "wikitext"}, "dataset", "without a namespace"),
        ({"dataset": f"a/b@{COMMIT}"}, "split", "a Hub dataset needs it"),
        ({"dataset": "https://x/y.txt"}, "dataset", "a URL is not read"),
    ],
)
def test_what_is_refused(values: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_options(EvalSpec, {"dataset": "text.txt", **values})
    assert caught.value.where == where
    assert message in caught.value.message
    assert caught.value.hint
