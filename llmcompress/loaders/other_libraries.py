"""Models of other libraries around a causal language model's checkpoint, known by the files that they leave."""

from __future__ import annotations

from llmcompress.errors import ModelError
from llmcompress.loaders.architecture import EMBEDDING, EXPORT_EMBEDDINGS
from llmcompress.loaders.fetching import SENTENCE_TRANSFORMERS
from llmcompress.loaders.source import Source, file_names

_MAX_BYTES = 1_000_000
_VALUE_HEADS = ("value_head.safetensors", "value_head.bin", "v_head.safetensors", "v_head.bin")
_KINDS = (
    (("crossencoder", "cross_encoder", "logitscore", "logit_score", "causalscorehead"), "a rerank model"),
    (("sparse", "splade"), "a sparse embedding model"),
)


def refuse_other_libraries(source: Source) -> None:
    """Refuse models of sentence-transformers, and value heads that lie in a file of their own.

    Raises:
        ModelError: Names the kind of model, and the file that says so.
    """
    names = file_names(source)
    for name in SENTENCE_TRANSFORMERS:
        if name not in names or not (source.path / name).is_file():
            continue
        text = _text(source, names)
        if name == "modules.json" and "sentence_transformers" not in text:
            continue
        kind = next((kind for words, kind in _KINDS if any(word in text for word in words)), EMBEDDING)
        raise ModelError(
            f"it is no causal language model but {kind} of sentence-transformers ({name})",
            where=source.name,
            hint="llmcompress takes decoder-only text models"
            + ("" if kind == "a rerank model" else f"; {EXPORT_EMBEDDINGS}"),
        )
    for name in _VALUE_HEADS:
        if name in names:
            raise ModelError(
                f"it is a reward model or another one with a value head, which lies in {name}",
                where=source.name,
                hint=f"remove {name} to convert the language model without it",
            )


def _text(source: Source, names: list[str]) -> str:
    """What the library's files say, in lower case."""
    found = [source.path / name for name in SENTENCE_TRANSFORMERS if name in names]
    texts = [path.open("rb").read(_MAX_BYTES) for path in found if path.is_file()]
    return b" ".join(texts).decode("utf-8", "replace").lower()
