"""Text -> token ids as the model's own tokenizer makes them, without torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from llmcompress.errors import ModelError, last_line
from llmcompress.loaders.source import Source
from llmcompress.system.json_file import read_json

TOKENIZER_JSON = "tokenizer.json"
CONVERTED = "openvino_tokenizer.xml"


class Frame(NamedTuple):
    """The special tokens that the tokenizer itself puts around a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class TextEncoder:
    """Encodes text; knows the special tokens that the evaluation protocols put in."""

    def __init__(self, encode: Callable[[str, bool], list[int]], directory: Path) -> None:
        self._encode, self._directory = encode, directory

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, with or without the special tokens that the tokenizer puts around it."""
        return self._encode(text, special)

    @cached_property
    def frame(self) -> Frame:
        """What stands around a text that is encoded with special tokens."""
        bare, framed = self.ids("a", special=False), self.ids("a", special=True)
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return Frame(tuple(framed[:start]), tuple(framed[start + len(bare) :]))
        return Frame((), ())

    @cached_property
    def prefix_id(self) -> int | None:
        """The token before a document under ``rolling``: beginning-of-text, else end-of-text, as lm-eval has it."""
        # What the tokenizer's own configuration leaves out, it has not: the model's may name another one's token.
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
    directory = source.path
    if (directory / TOKENIZER_JSON).is_file():
        return TextEncoder(_fast(directory / TOKENIZER_JSON), directory)
    if (directory / CONVERTED).is_file():
        return TextEncoder(_converted(directory), directory)
    if source.layout == "checkpoint":
        from llmcompress.loaders.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(directory, trust_remote_code=source.trust_remote_code)

        def encode(text: str, special: bool) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
            return ids

        return TextEncoder(encode, directory)
    raise ModelError(
        f"there is no tokenizer: neither {TOKENIZER_JSON} nor {CONVERTED}",
        where=str(directory),
        hint="put the model's tokenizer files beside it",
    )


def _fast(path: Path) -> Callable[[str, bool], list[int]]:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare exceptions
        raise ModelError(f"it cannot be read: {error}", where=str(path), hint="download the file again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    return encode


def _converted(directory: Path) -> Callable[[str, bool], list[int]]:
    import openvino as ov
    import openvino_tokenizers  # noqa: F401 - makes ov.Core know the tokenizer's operations

    try:
        compiled = ov.Core().compile_model(directory / CONVERTED, "CPU")
    except RuntimeError as error:
        raise ModelError(f"it cannot be compiled: {last_line(error)}", where=str(directory / CONVERTED)) from None

    def framed(text: str) -> list[int]:
        return [int(token) for token in compiled([text])["input_ids"][0]]

    # Special tokens are part of the conversion; those around an empty text are those around every text.
    around, text = framed(""), framed("a")
    before = next((n for n in range(len(around)) if around[n] != text[n]), len(around))
    after = len(around) - before

    def encode(text: str, special: bool) -> list[int]:
        ids = framed(text)
        return ids if special else ids[before : len(ids) - after]

    return encode
