"""Text -> token ids as the model's own tokenizer makes them, without torch wherever that is possible.

Calibration and every protocol of evaluation go through ``TextEncoder``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.errors import ModelError, last_line
from llmcompress.loaders.source import Source
from llmcompress.loaders.token_ids import num_embeddings, require_embeddings
from llmcompress.loaders.tokenizer import DETOKENIZER_XML, TOKENIZER_XML, load_tokenizer
from llmcompress.system.json_file import read_json

TOKENIZER_JSON = "tokenizer.json"

Encode = Callable[[list[str], bool], list[list[int]]]
"""Texts, and whether special tokens go around each -> the ids of each."""


class Frame(NamedTuple):
    """The special tokens that the tokenizer itself puts around a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class TextEncoder:
    """Encodes text; knows the special tokens that the evaluation protocols put in."""

    def __init__(self, encode: Encode, directory: Path | None = None, num_embeddings: int | None = None) -> None:
        """Encode with a function.

        Args:
            directory: The tokenizer's, whose configuration names the token before a document.
            num_embeddings: The model's, where known: ids beyond them are refused.
        """
        self._encode_all, self._directory, self._num_embeddings = encode, directory, num_embeddings

    def _encode(self, texts: list[str], special: bool) -> list[list[int]]:
        found = self._encode_all(texts, special)
        where = "tokenizer" if self._directory is None else str(self._directory)
        for ids in found:
            require_embeddings(ids, self._num_embeddings, what="the tokenizer", where=where)
        return found

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, with or without the special tokens that the tokenizer puts around it.

        Raises:
            ModelError: The model has no embedding for one.
        """
        return self._encode([text], special)[0]

    def batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of several texts, without special tokens; raises as ``ids``."""
        return self._encode(texts, False)

    @cached_property
    def frame(self) -> Frame:
        """What stands around a text that is encoded with special tokens."""
        bare, framed = self.ids("a", special=False), self.ids("a", special=True)
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return Frame(tuple(framed[:start]), tuple(framed[start + len(bare) :]))
        return Frame()

    @cached_property
    def prefix_id(self) -> int | None:
        """The token before a document under ``rolling``: beginning-of-text, else end-of-text, as lm-eval has it."""
        if self._directory is None:
            return None
        # A token that the tokenizer's own configuration leaves out does not exist: the model's may be of another one.
        files = [self._directory / name for name in ("tokenizer_config.json", "config.json")]
        config = next((read_json(path) for path in files if path.is_file()), {})
        for name in ("bos_token", "eos_token"):
            found = self._token_id(config, name)
            if found is not None:
                return found
        return None

    def _token_id(self, config: dict[str, Any], name: str) -> int | None:
        token, number = config.get(name), config.get(f"{name}_id")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            ids = self.ids(token, special=False)
            return ids[0] if len(ids) == 1 else None
        return number if isinstance(number, int) else None


def text_encoder(source: Source) -> TextEncoder:
    """Return the tokenizer of a model's directory.

    It is ``tokenizer.json`` where there is one, else the converted OpenVINO tokenizer, else, for a checkpoint, what
    transformers makes of its other files.

    Raises:
        ModelError: There is no tokenizer, or it cannot be used.
    """
    directory, size = source.text_path, num_embeddings(source.config)
    if (directory / TOKENIZER_JSON).is_file():
        return TextEncoder(_by_tokenizers(directory / TOKENIZER_JSON), directory, size)
    if (directory / TOKENIZER_XML).is_file():
        return TextEncoder(_by_openvino(directory / TOKENIZER_XML), directory, size)
    if source.layout == "checkpoint":
        tokenizer = load_tokenizer(directory, trust_remote_code=source.trust_remote_code)
        return TextEncoder(by_transformers(tokenizer), directory, size)
    raise ModelError(
        f"there is no tokenizer: neither {TOKENIZER_JSON} nor {TOKENIZER_XML}",
        where=str(directory),
        hint="put the model's tokenizer files next to it",
    )


def text_decoder(directory: Path) -> Callable[[list[int]], str]:
    """Return what turns ids into text, without special tokens: ``tokenizer.json``, else the converted detokenizer.

    Raises:
        ModelError: There is neither, or it cannot be used.
    """
    if (directory / TOKENIZER_JSON).is_file():
        tokenizer = _read_tokenizer(directory / TOKENIZER_JSON)
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
    compiled = _compile_tokenizer(directory / DETOKENIZER_XML)
    return lambda ids: str(compiled([[ids]])["string_output"][0])


def by_transformers(tokenizer: Any) -> Encode:
    """Encode with a tokenizer of transformers."""

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        encoded = tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    return encode


def _read_tokenizer(path: Path) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare exceptions
        raise ModelError(f"it cannot be read: {error}", where=str(path), hint="download the file again") from None


def _by_tokenizers(path: Path) -> Encode:
    tokenizer = _read_tokenizer(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=special).ids for text in texts]

    return encode


def _compile_tokenizer(path: Path) -> Any:
    import openvino as ov
    import openvino_tokenizers  # noqa: F401 - makes ov.Core know the tokenizer's operations

    try:
        return ov.Core().compile_model(path, "CPU")
    except RuntimeError as error:
        raise ModelError(f"it cannot be compiled: {last_line(error)}", where=str(path)) from None


def _by_openvino(path: Path) -> Encode:
    compiled = _compile_tokenizer(path)

    def framed(text: str) -> list[int]:
        return [int(token) for token in compiled([text])["input_ids"][0]]

    # Special tokens are part of the conversion; those around an empty text are those around every text.
    around, text = framed(""), framed("a")
    before = next((n for n in range(len(around)) if around[n] != text[n]), len(around))
    after = len(around) - before

    def encode(texts: list[str], special: bool) -> list[list[int]]:
        found = [framed(text) for text in texts]
        return found if special else [ids[before : len(ids) - after] for ids in found]

    return encode
