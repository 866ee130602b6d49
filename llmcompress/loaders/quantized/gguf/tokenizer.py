"""The tokenizer in GGUF's metadata, as ``tokenizer.json`` and ``tokenizer_config.json``.

The metadata holds the vocabulary, the merges of a byte-level BPE or the scores of SentencePiece's, and the name of what
splits a text before: ``tokenizer.ggml.pre``. What that name stands for is in llama.cpp's code,
https://github.com/ggml-org/llama.cpp, ``src/llama-vocab.cpp``, and in the published tokenizers that it was taken from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llmcompress.errors import ModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


class _Splits(NamedTuple):
    """How a text is split before pairs are merged."""

    patterns: tuple[str, ...]
    """What stays together, one pattern after the other on what the one before has left whole."""
    whole_words: bool = False
    """A word that is a token is taken so, whatever the merges make of it."""
    adds_bos: bool = False
    """Where the metadata does not say it."""
    composes: bool = False
    """The published tokenizer composes characters and their accents first."""


_DIGITS = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
_LLAMA3 = _Splits((_WORDS % "{1,3}",), whole_words=True, adds_bos=True)
_SPLITS: Mapping[str, _Splits] = {
    "default": _Splits(_DEFAULT),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Splits((_WORDS % "{1,3}",))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _Splits((_WORDS % "",), composes=True)),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open"), _Splits((_WORDS % "",))),
    **dict.fromkeys(
        ("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe", "granite-docling", "exaone4"),
        _Splits((_GPT2,)),
    ),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), _Splits((_DIGITS, _GPT2))),
    "falcon": _Splits(_FALCON),
    "tekken": _Splits((_CASED % ("", "", ""),), whole_words=True, adds_bos=True),
    **dict.fromkeys(
        ("gpt-4o", "llama4"), _Splits((_CASED % (_CONTRACTIONS, _CONTRACTIONS, "{1,3}"),), whole_words=False)
    ),
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_MOST_TOKENS = 4_000_000
_WITHOUT = "convert with `tokenizer=False` to ship the model without it"
_END_IDS = ("eos", "eot", "eom")


class GgufTokenizer(NamedTuple):
    """The files of a tokenizer."""

    tokenizer: str
    """``tokenizer.json``."""
    config: dict[str, Any]
    """``tokenizer_config.json``."""


def token_ids(metadata: Mapping[str, Any], num_embeddings: int) -> dict[str, Any]:
    """The ids of special tokens that the metadata gives: ``bos_token_id``, ``pad_token_id``, and all that end a text.

    Raises:
        ModelError: An id that has no embedding.
    """
    found: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("pad", "padding")):
        if (number := _id(metadata, key, num_embeddings)) is not None:
            found[f"{name}_token_id"] = number
    ends = [number for key in _END_IDS if (number := _id(metadata, key, num_embeddings)) is not None]
    if ends:
        unique = list(dict.fromkeys(ends))
        found["eos_token_id"] = unique[0] if len(unique) == 1 else unique
    return found


def _id(metadata: Mapping[str, Any], key: str, count: int) -> int | None:
    number = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if number is None or number in (-1, (1 << 32) - 1):
        return None
    if type(number) is not int or not 0 <= number < count:
        raise _wrong(f"{key}_token_id", f"is {number!r}, and there are {count:,} tokens")
    return number


def _wrong(key: str, problem: str, hint: str = "download the file again") -> ModelError:
    return ModelError(f"tokenizer.ggml.{key} {problem}", where="metadata", hint=hint)


def gguf_tokenizer(metadata: Mapping[str, Any], max_length: int) -> GgufTokenizer:
    """Build the tokenizer that a file's metadata describes.

    Args:
        metadata: Of the file.
        max_length: The model's context.

    Raises:
        ModelError: A kind of tokenizer or a way to split text that is not read, or metadata that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens, kinds = _tokens(metadata)
    if kind == "gpt2":
        name = metadata.get("tokenizer.ggml.pre", "default")
        splits = _SPLITS.get(name) if isinstance(name, str) else None
        if splits is None:
            raise _wrong("pre", f"is {name!r}; accepted: {', '.join(_SPLITS)}", _WITHOUT)
        made, adds_bos, prefix = _byte_level(tokens, metadata, splits), splits.adds_bos, False
    elif kind == "llama":
        prefix = _flag(metadata, "add_space_prefix", True)
        made, adds_bos = _sentencepiece(tokens, kinds, metadata, prefix), True
    else:
        raise _wrong("model", f"is {kind!r}; gpt2 and llama are read", _WITHOUT)
    _add_tokens(made, tokens, kinds)
    ids = {name: _id(metadata, key, len(tokens)) for name, key in
           (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}  # fmt: skip
    bos = ids["bos"] if _flag(metadata, "add_bos_token", adds_bos) else None
    eos = ids["eos"] if _flag(metadata, "add_eos_token", False) else None
    if bos is not None or eos is not None:
        made.post_processor = _around(tokens, bos, eos)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **{f"{name}_token": tokens[number] for name, number in ids.items() if number is not None},
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        config["chat_template"] = template
    return GgufTokenizer(made.to_str(), config)


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise _wrong(key, f"is {value!r}; true or false is needed")
    return value


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Every token's text, once each, and its kind."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= _MOST_TOKENS or not isinstance(tokens[0], str):
        raise _wrong("tokens", "is no list of texts")
    kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise _wrong("token_type", f"has not one kind for each of {len(tokens):,} tokens")
    unique, seen = list(tokens), set[str]()
    for number, token in enumerate(tokens):
        if token in seen or not token:
            # llama.cpp never finds such a token, which only fills a place.
            unique[number] = f"[FILL{number}]"
        seen.add(unique[number])
    if len(seen) != len(unique):
        raise _wrong("tokens", "has a text twice")
    return unique, kinds


def _byte_level(tokens: Sequence[str], metadata: Mapping[str, Any], splits: _Splits) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    stated = metadata.get("tokenizer.ggml.merges")
    if not isinstance(stated, list) or not all(isinstance(merge, str) for merge in stated):
        raise _wrong("merges", "is no list of texts")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in stated]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise _wrong("merges", f"has {' '.join(merge)!r}, which is no pair of tokens that make one")
    made = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=splits.whole_words))
    if splits.composes:
        made.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splits.patterns]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([*parts, level])
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(tokens: Sequence[str], kinds: Sequence[int], metadata: Mapping[str, Any], prefix: bool) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not isinstance(scores[0], float):
        raise _wrong("scores", f"has not one number for each of {len(tokens):,} tokens")
    unknown = _id(metadata, "unknown", len(tokens))
    made = Tokenizer(
        BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=_merges(tokens, kinds, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    marked = normalizers.Replace(" ", _SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), marked]) if prefix else marked
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return made


def _merges(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose whole has the best score: all pairs, in this order."""
    usable = {
        token: score for token, kind, score in zip(tokens, kinds, scores, strict=True) if kind in (_NORMAL, _UNUSED)
    }
    pairs = []
    for token, score in usable.items():
        cuts = [cut for cut in range(1, len(token)) if token[:cut] in usable and token[cut:] in usable]
        pairs += [(-score, cut, token) for cut in cuts]
    pairs.sort(key=lambda pair: pair[:1])
    return [(token[:cut], token[cut:]) for _, cut, token in pairs]


def _add_tokens(made: Any, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that are found in a text as they are, before it is split."""
    from tokenizers import AddedToken

    for is_special, wanted in ((True, (_CONTROL, _UNKNOWN)), (False, (_USER_DEFINED,))):
        found = [token for token, kind in zip(tokens, kinds, strict=True) if kind in wanted]
        added = [AddedToken(token, special=is_special, normalized=False) for token in found]
        if is_special:
            made.add_special_tokens(added)
        else:
            made.add_tokens(added)


def _around(tokens: Sequence[str], bos: int | None, eos: int | None) -> Any:
    from tokenizers import processors

    before = [tokens[bos]] if bos is not None else []
    after = [tokens[eos]] if eos is not None else []
    second = [f"{token}:1" for token in (*before, "$B", *after)]
    special = [(tokens[number], number) for number in dict.fromkeys((bos, eos)) if number is not None]
    single = [*before, "$A", *after]
    return processors.TemplateProcessing(single=single, pair=[*single, *second], special_tokens=special)
