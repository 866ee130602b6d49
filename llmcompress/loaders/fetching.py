"""The files of a Hub source, brought into the user's cache: only what the next step needs, checked by their hashes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from llmcompress.loaders.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from llmcompress.loaders.layout import IR_SIDE_FILES, check_links, ir_files, is_side_file
from llmcompress.loaders.remote_code import check_tokenizer
from llmcompress.loaders.source import Source, file_names
from llmcompress.loaders.tensors import INDEX, Checkpoint, choose_weights, read_index
from llmcompress.report.file_names import CARD, RECIPE
from llmcompress.system.json_file import read_json
from llmcompress.system.progress import Reporter, silent

_CODE_CONFIGS = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
SENTENCE_TRANSFORMERS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""What sentence-transformers writes next to a model."""


def fetch_listed(source: Source) -> Source:
    """Bring the small files of a Hub source that say what it is into the user's cache: a few kilobytes.

    Raises:
        HubError: A download failed or is not what the Hub states.
    """
    if source.files is None or source.is_gguf:
        return source
    from llmcompress.hub.download import fetch

    wanted = [name for name in file_names(source) if name in (*_CODE_CONFIGS, *SENTENCE_TRANSFORMERS)]
    names = [f"{source.folder}/{name}".lstrip("/") for name in ("config.json", *wanted)]
    return source._replace(path=fetch(source.files, names).path / source.folder)


def check_code(source: Source) -> None:
    """Refuse a tokenizer or processor that asks for code from its repository; its files must be there.

    Raises:
        SecurityError: It needs that code, which is not allowed.
    """
    for path in (directory / name for directory in {source.path, source.text_path} for name in _CODE_CONFIGS):
        if path.is_file():
            check_tokenizer(
                read_json(path),
                model_type=str(source.config.get("model_type")),
                trust_remote_code=source.trust_remote_code,
                where=path.name,
            )


def fetch_side_files(source: Source) -> Source:
    """Bring a Hub source's tokenizer and configuration files into the user's cache, and no weights.

    Raises:
        SecurityError: the tokenizer needs code.
        HubError: a download failed or is not what the Hub states.
    """
    source = source._replace(adapter=_fetch_adapter(source))
    if source.files is not None and not source.is_gguf:
        from llmcompress.hub.download import fetch

        names = [f"{source.folder}/{name}".lstrip("/") for name in _side_files(source, file_names(source))]
        source = source._replace(path=fetch(source.files, names).path / source.folder)
    check_code(source)
    return source


def fetch_weights(source: Source, *, progress: Reporter = silent) -> Source:
    """Bring a Hub source's weights and tokenizer into the user's cache; check that a directory's are there.

    Only what loading needs is fetched, pickle files never, Python files only with ``trust_remote_code``.

    Raises:
        SecurityError: the weights are pickle files only, an index names foreign files, or the tokenizer needs code.
        ModelError: there are no weights.
        HubError: a download failed or is not what the Hub states.
    """
    where = source.id or str(source.path)
    if source.container is not None:
        return _fetch_container(source, source.container, progress)
    source = source._replace(adapter=_fetch_adapter(source, with_weights=True))
    listed = file_names(source)
    main = "" if source.layout == "ir" else choose_weights(listed, where=where)
    if source.files is None:
        check_code(source)
        return source
    from llmcompress.hub.download import fetch

    snapshot = fetch(source.files, [*_side_files(source, listed), *([main] if main == INDEX else [])])
    check_code(source._replace(path=snapshot.path))
    weights = sorted(set(read_index(snapshot.path / INDEX).values())) if main == INDEX else [main]
    if source.layout == "ir":
        # An artifact of ours lists its recipe too, and is complete only with it.
        weights = [*ir_files(listed), *(name for name in (*IR_SIDE_FILES, RECIPE) if name in listed)]
    weighed = fetch(source.files, weights, progress=progress)
    check_links(snapshot.path)
    return source._replace(path=snapshot.path, expected_sha256={**snapshot.sha256, **weighed.sha256})


def _fetch_container(source: Source, container: Checkpoint, progress: Reporter) -> Source:
    if not source.is_gguf:
        source = fetch_side_files(source)
    if source.files is None:
        return source
    from llmcompress.hub.download import fetch

    folder = "" if source.is_gguf else container.path.relative_to(_root(source)).as_posix() + "/"
    folder = folder.removeprefix("./")
    fetched = fetch(source.files, [folder + name for name in container.files], progress=progress)
    expected = {name.removeprefix(folder): digest for name, digest in fetched.sha256.items()}
    return source._replace(container=container._replace(path=fetched.path / folder), expected_sha256=expected)


def _root(source: Source) -> Path:
    """The directory that the repository's names start from."""
    return source.path.parents[source.folder.count("/")] if source.folder else source.path


def _side_files(source: Source, listed: Collection[str]) -> list[str]:
    """The files next to the weights, and the page, which states the license and on which no byte depends."""
    return [name for name in listed if name == CARD or is_side_file(name, with_code=source.trust_remote_code)]


def _fetch_adapter(source: Source, *, with_weights: bool = False) -> Adapter | None:
    """Bring a Hub adapter's tokenizer and, if asked for, its weights into the user's cache."""
    adapter = source.adapter
    if adapter is None or adapter.files is None:
        return adapter
    from llmcompress.hub.download import fetch

    listed = [file.path for file in adapter.files.files]
    names = [ADAPTER_CONFIG, *_side_files(source, listed), *([ADAPTER_WEIGHTS] if with_weights else [])]
    return adapter._replace(path=fetch(adapter.files, names).path)
