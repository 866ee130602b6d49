"""What an evaluation reads: the texts of a dataset, or its conversations as the model writes them out."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

from llmcompress.data.conversations import Conversations, conversation_columns
from llmcompress.data.texts import Columns, Rows, read_rows, texts_of
from llmcompress.errors import HubError
from llmcompress.loaders.source import Source
from llmcompress.loaders.tokenizer import load_tokenizer
from llmcompress.spec import EvalSpec
from llmcompress.spec.dataset import AUTO, BUNDLED, WIKITEXT

_log = logging.getLogger(__name__)

Texts = Sequence[str] | Conversations


class Documents(NamedTuple):
    """What a spec names, as it was read."""

    content: Sequence[str] | Rows
    """Conversations are rows."""
    spec: EvalSpec
    """With the name of the dataset that was read."""
    fallback: str | None = None
    """Why the bundled text was read where no dataset was named."""


def read_documents(spec: EvalSpec, *, offline: bool = False) -> Documents:
    """Read the documents that a spec names; where it names none and WikiText cannot be had, the bundled text.

    Errors as in ``read_texts``.
    """
    if spec.dataset != AUTO:
        return Documents(_read(spec, offline), spec)
    wikitext = spec.model_copy(update={"dataset": WIKITEXT})
    try:
        return Documents(_read(wikitext, offline), wikitext)
    except HubError as error:
        fallback = f"{error.where}: {error.message}"
    _log.warning("the bundled text is read, as no dataset was named and %s cannot be had: %s", WIKITEXT, fallback)
    bundled = spec.model_copy(update={"dataset": BUNDLED})
    return Documents(_read(bundled, offline), bundled, fallback)


def _read(spec: EvalSpec, offline: bool) -> Sequence[str] | Rows:
    columns = conversation_columns(spec.text_field) if spec.chat_template else Columns((spec.text_field,))
    rows = read_rows(spec.dataset, columns, subset=spec.subset, split=spec.split, offline=offline)
    if spec.chat_template:
        return rows
    texts = list(texts_of(rows))
    return wikitext_pages(texts) if (spec.dataset, spec.protocol) == (WIKITEXT, "rolling") else texts


def texts_for(documents: Documents, source: Source) -> Texts:
    """What a model is scored on, and its reference as well: conversations as its own chat template writes them.

    Raises:
        UsageError: The model has no chat template for them.
        ModelError: Its tokenizer cannot be loaded; further errors as in ``load_tokenizer``.
    """
    if not isinstance(documents.content, Rows):
        return documents.content
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    return Conversations(documents.content, tokenizer, "`chat_template`")


def wikitext_pages(rows: Sequence[str]) -> list[str]:
    """Join WikiText's rows, a line each, to its pages, which begin with a heading of the first level."""
    pages: list[list[str]] = []
    for row in rows:
        if not pages or re.fullmatch(r" = [^=].* = \n?", row):
            pages.append([])
        pages[-1].append(row)
    return [text for page in pages if (text := "".join(page)).strip()]
