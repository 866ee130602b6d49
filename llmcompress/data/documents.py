"""What an evaluation reads: the texts of a dataset, or its conversations as the model writes them out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmcompress.data.conversations import Conversations, conversation_columns
from llmcompress.data.texts import Columns, Rows, read_rows, texts_of
from llmcompress.loaders.source import Source
from llmcompress.loaders.tokenizer import load_tokenizer
from llmcompress.spec import EvalSpec

Texts = Sequence[str] | Conversations


def read_documents(spec: EvalSpec, *, offline: bool = False) -> Sequence[str] | Rows:
    """Read the documents that a spec names; conversations as rows. Errors as in ``read_texts``."""
    columns = conversation_columns(spec.text_field) if spec.chat_template else Columns((spec.text_field,))
    rows = read_rows(spec.dataset, columns, subset=spec.subset, split=spec.split, offline=offline)
    if spec.chat_template:
        return rows
    texts = list(texts_of(rows))
    return wikitext_pages(texts) if (spec.dataset, spec.protocol) == ("wikitext2", "rolling") else texts


def texts_for(documents: Sequence[str] | Rows, source: Source) -> Texts:
    """What a model is scored on, and its reference as well: conversations as its own chat template writes them.

    Raises:
        UsageError: The model has no chat template for them.
        ModelError: Its tokenizer cannot be loaded; further errors as in ``load_tokenizer``.
    """
    if not isinstance(documents, Rows):
        return documents
    tokenizer = load_tokenizer(source.path, trust_remote_code=source.trust_remote_code)
    return Conversations(documents, tokenizer, "`chat_template`")


def wikitext_pages(rows: Sequence[str]) -> list[str]:
    """Join WikiText's rows, a line each, to its pages, which begin with a heading of the first level."""
    pages: list[list[str]] = []
    for row in rows:
        if not pages or re.fullmatch(r" = [^=].* = \n?", row):
            pages.append([])
        pages[-1].append(row)
    return [text for page in pages if (text := "".join(page)).strip()]
