"""The windowing protocols against their sources, written out anew."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixture import encoder_of, windows_of

from llmcompress.data.documents import wikitext_pages
from llmcompress.data.protocols import evaluation_windows, windows_sha256
from llmcompress.data.tokens import TextEncoder, text_encoder
from llmcompress.errors import DataError, ModelError, UsageError
from llmcompress.loaders.source import Source
from llmcompress.spec import EvalSpec


def counting(*, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> TextEncoder:
    """Token n for the word ``n``."""

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        found = [[1 if word == "a" else int(word) for word in text.split()] for text in texts]
        return [[*before, *ids, *after] for ids in found] if special else found

    return TextEncoder(encode, Path("nowhere"))


def numbers(count: int, first: int = 10) -> str:
    return " ".join(map(str, range(first, first + count)))


def spec(**options: object) -> EvalSpec:
    return EvalSpec.model_validate({"dataset": "text.txt", "precision": "pinned", **options})


def test_llama_cpp_scores_second_halves_after_the_beginning_of_text() -> None:
    made = evaluation_windows([numbers(21)], spec(seq_len=8), counting(before=(7,), after=(8,)))
    # 22 tokens with the first one; the last 6 fill no window. Of each 8 tokens the last 3 are scored: those predicted
    # at positions 4, 5 and 6.
    assert [window.token_ids.tolist() for window in made.windows] == [
        [7, 10, 11, 12, 13, 14, 15, 16],
        [7, 18, 19, 20, 21, 22, 23, 24],
    ]
    assert [window.first_scored for window in made.windows] == [5, 5]
    assert (made.record.num_windows, made.record.num_scored_tokens, made.record.num_clusters) == (2, 6, 2)
    without = evaluation_windows([numbers(21)], spec(seq_len=8), counting())
    assert without.windows[1].token_ids[0] == 18


@pytest.mark.parametrize(("num_tokens", "seq_len", "stride"), [(50, 16, 8), (51, 16, 5), (16, 16, 8), (33, 16, 15)])
def test_sliding_scores_every_token_once_as_the_guide_does(num_tokens: int, seq_len: int, stride: int) -> None:
    made = evaluation_windows(
        [numbers(num_tokens)], spec(protocol="sliding", seq_len=seq_len, stride=stride), counting()
    )
    expected = []
    previous_end = 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + seq_len, num_tokens)
        target_len = end - previous_end
        expected.append((begin + 10, end - begin, max(1, end - begin - target_len)))
        previous_end = end
        if end == num_tokens:
            break
    assert [(w.token_ids[0], len(w.token_ids), w.first_scored) for w in made.windows] == expected
    scored = list(itertools.chain.from_iterable(w.token_ids[w.first_scored :].tolist() for w in made.windows))
    assert scored == list(range(11, 10 + num_tokens))
    assert all(w.first_scored >= seq_len - stride for w in made.windows[1:])


@pytest.mark.parametrize("num_tokens", [1, 8, 9, 16, 21])
def test_rolling_equals_the_harness(num_tokens: int) -> None:
    """``get_rolling_token_windows`` with ``context_len=1`` and ``make_disjoint_window``, as documented there."""
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    text = numbers(num_tokens)
    made = evaluation_windows([text], spec(protocol="rolling", seq_len=8), encoder)
    ids = list(range(10, 10 + num_tokens))
    expected = [([3, *ids[:7]][: min(8, num_tokens)], ids[:8])]
    predicted = min(8, num_tokens)
    while predicted < num_tokens:
        count = min(num_tokens - predicted, 8)
        end = predicted + count
        expected.append((([3, *ids])[end - 8 : end], ids[end - count : end]))
        predicted += count
    got = [(w.token_ids[:-1].tolist(), w.token_ids[w.first_scored :].tolist()) for w in made.windows]
    assert got == expected


def test_rolling_counts_words_and_bytes_by_document() -> None:
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    texts = ["10 11\n12 ", "", "13"]
    made = evaluation_windows(texts, spec(protocol="rolling", seq_len=8), encoder)
    assert made.num_words is not None
    assert made.num_bytes is not None
    assert made.num_words.tolist() == [len(re.split(r"\s+", text)) for text in (texts[0], texts[2])] == [4, 1]
    assert made.num_bytes.tolist() == [9, 2]
    assert (made.record.num_documents, made.record.num_clusters, made.record.num_scored_tokens) == (2, 2, 4)
    one = evaluation_windows(texts, spec(protocol="rolling", seq_len=8, num_windows=1), encoder)
    assert one.record.num_documents == 1


def test_the_windows_of_one_document_are_its_clusters() -> None:
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    made = evaluation_windows([numbers(20)], spec(protocol="rolling", seq_len=8), encoder)
    assert made.record.num_clusters == 3
    assert made.num_words is not None
    assert made.num_words.tolist() == [8, 8, 4]


def test_rows_of_wikitext_become_pages() -> None:
    rows = ["", " = One = \n", "", " a = b = c \n", " = = Part = = \n", " text \n", " = Two = \n", " more \n", ""]
    assert wikitext_pages(rows) == [
        " = One = \n a = b = c \n = = Part = = \n text \n",
        " = Two = \n more \n",
    ]


def test_few_windows_of_many_documents_need_no_more_of_them() -> None:
    lengths: list[int] = []

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        lengths.extend(len(text.split()) for text in texts)
        return [[int(word) for word in text.replace("a", "1").split()] for text in texts]

    documents = [numbers(10)] * 1000
    encoder = TextEncoder(encode, Path())
    few = evaluation_windows(documents, spec(seq_len=8, num_windows=3), encoder)
    assert max(lengths) < 200
    whole = evaluation_windows(documents, spec(seq_len=8), encoder)
    assert [w.token_ids.tolist() for w in few.windows] == [w.token_ids.tolist() for w in whole.windows[:3]]


def test_documents_are_joined_by_an_empty_line() -> None:
    seen: list[str] = []

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        seen.extend(texts)
        return [list(range(20)) for _ in texts]

    evaluation_windows(["one", "two"], spec(seq_len=8), TextEncoder(encode, Path()))
    assert "one\n\ntwo" in seen


def test_text_that_is_too_short_is_refused() -> None:
    for protocol in ("llama.cpp", "sliding"):
        with pytest.raises(DataError, match="the text has 7 tokens, one window needs 8"):
            evaluation_windows([numbers(7)], spec(protocol=protocol, seq_len=8), counting())
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    with pytest.raises(DataError, match="the text has 0 tokens"):
        evaluation_windows([" "], spec(protocol="rolling", seq_len=8), encoder)


def test_rolling_needs_a_token_to_begin_with_and_whole_documents() -> None:
    with pytest.raises(UsageError, match="the tokenizer has neither bos_token nor eos_token"):
        evaluation_windows([numbers(7)], spec(protocol="rolling"), counting())
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    with pytest.raises(UsageError, match="the first document has 3 windows, num_windows is 2"):
        evaluation_windows([numbers(20)], spec(protocol="rolling", seq_len=8, num_windows=2), encoder)


def test_the_default_scores_at_most_16384_tokens_and_says_of_how_many_windows() -> None:
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    text = [numbers(40_000)]
    some = evaluation_windows(text, spec(seq_len=512), encoder).record
    # Each window of 512 tokens scores its last 255.
    assert (some.num_windows, some.num_scored_tokens) == (64, 64 * 255)
    assert some.num_windows_in_text == 40_000 // 512
    every = evaluation_windows(text, spec(seq_len=512, num_windows="all"), encoder).record
    assert (every.num_windows, every.num_windows_in_text) == (78, 78)
    asked = evaluation_windows(text, spec(seq_len=512, num_windows=70), encoder).record
    assert (asked.num_windows, asked.num_windows_in_text) == (70, None)
    # A window of more than that is scored whole.
    assert evaluation_windows(text, spec(seq_len=39_000), encoder).record.num_scored_tokens == 39_000 // 2 - 1


def test_the_default_takes_whole_documents_under_rolling_and_cuts_the_first_alone() -> None:
    encoder = counting()
    encoder.__dict__["prefix_id"] = 3
    texts = [numbers(10_000), numbers(5_000), numbers(5_000)]
    some = evaluation_windows(texts, spec(protocol="rolling", seq_len=500), encoder)
    assert (some.record.num_documents, some.record.num_scored_tokens) == (2, 15_000)
    assert (some.record.num_windows, some.record.num_windows_in_text) == (30, 40)
    every = evaluation_windows(texts, spec(protocol="rolling", seq_len=500, num_windows="all"), encoder)
    assert every.record.num_scored_tokens == 20_000
    cut = evaluation_windows([numbers(20_000)], spec(protocol="rolling", seq_len=512), encoder)
    assert (cut.record.num_windows, cut.record.num_scored_tokens) == (32, 16_384)
    assert cut.num_words is not None
    # As many words as tokens: numbers with spaces between.
    assert cut.num_words.sum() == pytest.approx(16_384)


def test_the_hash_sees_ids_and_what_is_scored() -> None:
    def of(first: int, scored: int) -> str:
        made = evaluation_windows([numbers(8, first)], spec(seq_len=8), counting())
        return windows_sha256([made.windows[0]._replace(first_scored=scored)])

    assert len({of(10, 5), of(11, 5), of(10, 4)}) == 3


TEXTS = ("", "Hello, world! ", "naïve  «text»\n\n\tdef f(x): return 1\n", "日本語 😀", "<|endoftext|> inside <s>")


def test_ids_equal_those_of_transformers(ref_model: Path, demo_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    for model in (ref_model, demo_checkpoint):
        encoder, tokenizer = encoder_of(model), AutoTokenizer.from_pretrained(model)
        for text, special in itertools.product(TEXTS, (True, False)):
            assert encoder.ids(text, special=special) == tokenizer(text, add_special_tokens=special)["input_ids"]
        assert encoder.frame.before == (tokenizer.bos_token_id,)
        assert encoder.prefix_id == tokenizer.bos_token_id


def test_ids_of_the_converted_tokenizer_and_of_transformers_itself(ref_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from llmcompress.loaders.tokenizer import save_tokenizer

    save_tokenizer(AutoTokenizer.from_pretrained(ref_model), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    encoder = text_encoder(Source(kind="ir", layout="ir", path=tmp_path, config={}))
    expected = encoder_of(ref_model)
    for text, special in itertools.product(TEXTS[1:], (True, False)):
        assert encoder.ids(text, special=special) == expected.ids(text, special=special), text


def test_the_prefix_is_the_tokenizers_own(ref_model: Path, tmp_path: Path) -> None:
    """A tokenizer without a beginning of text takes its end, whatever the model's configuration names."""
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((ref_model / name).read_bytes())
    source = Source(kind="ir", layout="ir", path=tmp_path, config={})
    assert text_encoder(source).prefix_id == 1
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "<|endoftext|>"}')
    assert text_encoder(source).prefix_id == 0
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert text_encoder(source).prefix_id is None


def test_a_conversion_that_puts_tokens_at_both_ends(ref_model: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    from llmcompress.loaders.tokenizer import save_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(ref_model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", 1), ("<|endoftext|>", 0)]
    )
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    encoder = text_encoder(Source(kind="ir", layout="ir", path=tmp_path, config={}))
    bare = encoder_of(ref_model).ids("Hello world", special=False)
    assert encoder.ids("Hello world", special=False) == bare
    assert encoder.ids("Hello world", special=True) == [1, *bare, 0]


def test_no_tokenizer_and_a_broken_one(tmp_path: Path) -> None:
    source = Source(kind="ir", layout="ir", path=tmp_path, config={})
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor openvino_tokenizer\.xml"):
        text_encoder(source)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="it cannot be read"):
        text_encoder(source)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "openvino_tokenizer.xml").write_text("<net/>")
    with pytest.raises(ModelError, match="it cannot be compiled"):
        text_encoder(source)


def test_windows_of_real_text(ref_model: Path, wikitext: Path) -> None:
    made = windows_of(ref_model, wikitext, seq_len=128, num_windows=3)
    assert all(window.token_ids[0] == encoder_of(ref_model).frame.before[0] for window in made.windows)
    assert np.concatenate([window.token_ids for window in made.windows]).max() < 4096
