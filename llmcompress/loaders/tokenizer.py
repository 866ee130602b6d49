"""The tokenizer next to the model: loaded, saved with its OpenVINO conversion, and the conversion compared with it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmcompress.errors import ModelError, SecurityError, one_line
from llmcompress.graph.model import number_nodes
from llmcompress.loaders.exporter import installed_transformers
from llmcompress.loaders.quantized.gguf.source import require_gguf_tokenizer
from llmcompress.loaders.source import Source
from llmcompress.loaders.token_ids import check_token_ids
from llmcompress.loaders.tokenizer_files import (
    TOKENIZER_CONFIG,
    VOCABULARIES,
    require_readers,
    without_tiktoken_cache,
    write_own_files,
)
from llmcompress.report.file_names import MODEL_BIN, MODEL_XML
from llmcompress.system.environment import allow_sklearn
from llmcompress.system.json_file import read_json
from llmcompress.system.patching import replaced
from llmcompress.system.standard_output import without_lines

TOKENIZER_XML = "openvino_tokenizer.xml"
DETOKENIZER_XML = "openvino_detokenizer.xml"
CONVERTED_FILES = (TOKENIZER_XML, "openvino_tokenizer.bin", DETOKENIZER_XML, "openvino_detokenizer.bin")

_MODEL_FILES = (MODEL_XML, MODEL_BIN, "config.json", "generation_config.json")
REQUIRED_FILES: dict[str, tuple[str, ...]] = {
    "optimum": (*_MODEL_FILES, TOKENIZER_CONFIG),
    "genai": (*_MODEL_FILES, *CONVERTED_FILES),
    "ovms": (*_MODEL_FILES, *CONVERTED_FILES, TOKENIZER_CONFIG),
}
"""What each runtime opens; ``chat_template.jinja`` comes with it where the tokenizer has a chat template."""

# The tokenizers library writes this line each time it serializes a vocabulary whose ids have gaps; they do no harm.
_GAPS = b"The OrderedVocab you are attempting to save contains holes"

_HINT = "convert with `tokenizer=False` to ship the model without it"

CHECK_TEXTS = (
    "",
    " ",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "two  spaces,   three",
    "line\nbreak\n\nparagraph\r\ncrlf\ttab\n",
    "def f(x):\n    return {'k': x[0] ** 2}  # note\n",
    "It's what we'll do; they DON'T.",
    "naïve café — “quotes” … Straße ﬁn",
    "e\u0301 (combining), \u00a0no-break, \u3000ideographic, \u200bzero width",
    "日本語のテキスト、你好，世界。한국어",
    "😀 👨‍👩‍👧 🏳️‍🌈",
    "مرحبا بالعالم 123 עברית हिन्दी ไทย Привет",
    "3.14159 1,000,000 0x1F 2026-01-31",
    "https://example.org/a_b?c=d&e=f#g <b>html</b> &amp; [INST] <|x|>",
    "a . b , c ! d ?",
    "x" * 200,
)


def source_tokenizer(source: Source) -> Any:
    """Load the tokenizer of a source whose files are there; raises as ``load_tokenizer`` and ``check_token_ids``."""
    if source.is_gguf:
        require_gguf_tokenizer(source.path)
    tokenizer = load_tokenizer(source.text_path, trust_remote_code=source.trust_remote_code)
    check_token_ids(source, tokenizer)
    return tokenizer


def require_tokenizer(source: Source, *, needed: bool) -> Any | None:
    """Load the tokenizer where it is needed, and look at the configurations' token ids where it is not.

    Returns:
        The tokenizer, or None.

    Raises: as ``source_tokenizer``.
    """
    if needed:
        return source_tokenizer(source)
    check_token_ids(source, None)
    return None


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the transformers tokenizer of a local directory.

    Raises:
        ModelError: there is no tokenizer, or it is broken.
        ResourceError: the library that reads its vocabulary is not installed.
        SecurityError: it needs Python code that came with the model.
    """
    if trust_remote_code:
        allow_sklearn()
    where = path.name
    if not trust_remote_code and not any(any(path.glob(name)) for name in VOCABULARIES):
        raise ModelError(
            f"no tokenizer: none of {', '.join(VOCABULARIES)} is there",
            where=where,
            hint=f"put the model's tokenizer files beside its weights, or {_HINT}",
        )
    require_readers(path, has_code=trust_remote_code)
    try:
        with without_tiktoken_cache(), without_lines(_GAPS):
            opener, settings = _opener(path)
            tokenizer = opener.from_pretrained(
                str(path), trust_remote_code=trust_remote_code, local_files_only=True, **settings
            )
            # What a setting breaks shows with the first text only.
            tokenizer("a")
    except Exception as error:  # noqa: BLE001 - transformers raises whatever the broken file provokes
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise SecurityError(
                "the tokenizer is Python code that came with the model, and would be run",
                where=where,
                hint="read that code, then pass `trust_remote_code`",
            ) from None
        raise ModelError(f"the tokenizer cannot be loaded: {_told(error)}", where=where, hint=_HINT) from None
    if len(tokenizer) == 0:
        raise ModelError("the tokenizer's vocabulary is empty", where=where, hint=_HINT)
    return tokenizer


def _opener(path: Path) -> tuple[Any, dict[str, Any]]:
    """The class that opens a tokenizer, and what it is told in place of what the files say.

    transformers 4 does not know the class that transformers 5 names where no other one is needed.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = read_json(path / TOKENIZER_CONFIG) if (path / TOKENIZER_CONFIG).is_file() else {}
    if config.get("tokenizer_class") != "TokenizersBackend" or not installed_transformers().startswith("4."):
        return AutoTokenizer, {}
    others = config.get("extra_special_tokens")
    if not isinstance(others, list):
        return PreTrainedTokenizerFast, {}
    return PreTrainedTokenizerFast, {"additional_special_tokens": others, "extra_special_tokens": {}}


def save_tokenizer(tokenizer: Any, output_dir: Path, source: Source | None = None) -> None:
    """Write the tokenizer's own files and its OpenVINO tokenizer and detokenizer into an existing directory.

    As ``optimum-cli export openvino`` does, the converted tokenizer pads on the left. The bytes depend on the
    tokenizer and the libraries' versions alone: not on where it was loaded from, what it was used for before, or what
    else was converted in this process.

    Args:
        tokenizer: As ``load_tokenizer`` gives it.
        output_dir: An existing directory.
        source: Where it was loaded from: its files are copied. None: transformers writes them.

    Raises:
        ModelError: openvino-tokenizers cannot convert it.
    """
    with without_lines(_GAPS):
        _save(copy.deepcopy(tokenizer), output_dir, source)


def _save(tokenizer: Any, output_dir: Path, source: Source | None) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # An earlier call with padding or truncation stays in the backend and would be saved with it.
        backend.no_padding()
        backend.no_truncation()
    write_own_files(tokenizer, output_dir, source)
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"

    import openvino as ov
    from openvino_tokenizers import convert_tokenizer

    try:
        # The converter saves the tokenizer to a temporary directory to read it back: keep that inside the output.
        with replaced(tempfile, "tempdir", str(output_dir)):
            converted = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # noqa: BLE001 - the converter raises what it stumbles over
        raise ModelError(
            f"openvino-tokenizers cannot convert {type(tokenizer).__name__}: {_told(error)}",
            where="tokenizer",
            hint=_HINT,
        ) from None
    if not isinstance(converted, tuple):
        raise ModelError(
            f"openvino-tokenizers made no detokenizer for {type(tokenizer).__name__}", where="tokenizer", hint=_HINT
        )
    for model, name in zip(converted, (TOKENIZER_XML, DETOKENIZER_XML), strict=True):
        number_nodes(model)
        ov.save_model(model, output_dir / name)


def check_tokenizer(tokenizer: Any, output_dir: Path, texts: Sequence[str] = CHECK_TEXTS) -> None:
    """Compare the converted tokenizer and detokenizer in ``output_dir`` with the original, text by text.

    Every text, also with each special token inside, must give the same ids; the ids must decode to the same string
    (special tokens skipped on both sides). Nothing is tolerated: openvino-tokenizers is exact for byte-level and
    SentencePiece-style BPE and WordPiece; a Unigram vocabulary without whitespace folding is known to differ.

    Raises:
        ModelError: they differ or cannot be run; names the text and both results.
    """
    import numpy as np
    import openvino as ov
    import openvino_tokenizers  # noqa: F401 - makes ov.Core know the tokenizers' operations

    core = ov.Core()
    try:
        encode = core.compile_model(output_dir / TOKENIZER_XML, "CPU")
        decode = core.compile_model(output_dir / DETOKENIZER_XML, "CPU")
    except RuntimeError as error:
        raise ModelError(f"cannot be compiled: {_told(error)}", where=TOKENIZER_XML, hint=_HINT) from None
    for text in (*texts, *(f"a{token}b {token} c" for token in tokenizer.all_special_tokens)):
        expected = tokenizer(text, padding=False, truncation=False)["input_ids"]
        got = [int(token) for token in np.ravel(encode([text])["input_ids"])]
        if got != expected:
            raise _differs(TOKENIZER_XML, f"the text {text!r}", expected, got)
        if not expected:
            continue
        original = tokenizer.decode(expected, skip_special_tokens=True)
        decoded = str(decode(np.array([expected], dtype=np.int64))["string_output"][0])
        if decoded != original:
            raise _differs(DETOKENIZER_XML, f"the ids {expected} of {text!r}", original, decoded)


def _differs(where: str, what: str, expected: object, got: object) -> ModelError:
    return ModelError(
        f"differs from the original tokenizer: {what} gives {got!r}, the original gives {expected!r}",
        where=where,
        hint=f"OpenVINO would read or write other text than the model was made with; {_HINT}",
    )


def _told(error: BaseException) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)
