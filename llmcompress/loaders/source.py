"""What a person names as a model: a Hub id or a directory, pinned and checked before any weight is read."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import ModelError, SecurityError, UsageError
from llmcompress.loaders.remote_code import check_tokenizer
from llmcompress.loaders.tensors import INDEX, SINGLE, choose_weights, read_index
from llmcompress.report.file_names import BENCH_REPORT, CARD, EVAL_REPORT, MODEL_BIN, MODEL_XML, RECIPE, TUNE_REPORT
from llmcompress.spec.access import Access, check_repo_id
from llmcompress.system.cache import hold_if_kept
from llmcompress.system.json_file import read_json
from llmcompress.system.progress import Reporter, silent

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing

Layout = Literal["checkpoint", "ir"]

IR_FILES = (MODEL_XML, MODEL_BIN)

# Everything next to the weights that loading and tokenization read, as names in the top directory.
_SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*vocab*.txt", "merges.txt", "*.bpe")
_TEMPLATES = "additional_chat_templates/*.jinja"
_IR_SIDE_FILES = tuple(f"openvino_{part}.{end}" for part in ("tokenizer", "detokenizer") for end in ("xml", "bin"))
_SKIPPED = ("*.index.json", "trainer_state.json", "optimizer*.json", EVAL_REPORT, BENCH_REPORT, TUNE_REPORT)
_NEEDED = "give a Hugging Face checkpoint (config.json, safetensors) or an OpenVINO IR directory with its config.json"
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_CODE_CONFIGS = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
SENTENCE_TRANSFORMERS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""What sentence-transformers writes next to a model."""


class Source(NamedTuple):
    """A model that was found and whose ``config.json`` was read."""

    kind: Literal["hub", "checkpoint", "ir"]
    layout: Layout
    """What the directory holds; for a Hub source either is possible."""
    path: Path
    """The directory with ``config.json``; a Hub source's weights are in it only after ``fetch_weights``."""
    config: dict[str, Any]
    id: str | None = None
    """Hub id."""
    revision: str | None = None
    """The commit that a Hub source was resolved to."""
    trust_remote_code: bool = False
    files: HubListing | None = None
    """What the Hub lists at that commit."""
    expected_sha256: Mapping[str, str] = {}
    """Hashes that the Hub states, by file name; known after ``fetch_weights``."""

    @property
    def name(self) -> str:
        """For people: the Hub id, or the directory's name."""
        return self.id or self.path.name


def resolve(source: str | Path, access: Access = Access()) -> Source:
    """Find a model by Hub id or path; of a Hub model only the file list and ``config.json`` are fetched.

    An existing path goes before a Hub id of the same spelling. A directory that holds a checkpoint and an OpenVINO IR
    is taken as the checkpoint, which is the more exact of the two.

    Raises:
        UsageError: neither an existing path nor a Hub id, or a revision with a path.
        ModelError: no readable ``config.json``, or nothing that can be loaded.
        HubError: no such repository, no access, no network, or not cached.
        SecurityError: a file name or link that leaves the model's directory.
    """
    text = os.fspath(source)
    if "\0" in text or not text.strip():
        raise UsageError(f"{text!r} is neither a path nor a Hub id", hint="give 'namespace/name' or a directory")
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - the method raises for an unknown user
    if not os.path.lexists(path):
        if isinstance(source, Path) or _looks_like_path(text):
            raise UsageError(
                f"the path {text!r} does not exist",
                hint="give an existing directory, or a Hub id in the form namespace/name",
            )
        return _from_hub(text, access)
    if access.revision is not None:
        raise UsageError(
            f"`revision={access.revision}` has no effect on a directory",
            where=text,
            hint="leave it out, or give the Hub id; a local path of the same spelling goes first",
        )
    return _from_directory(path, access.trust_remote_code)


def file_names(source: Source) -> list[str]:
    """Names of a directory's files, or of those that the Hub lists."""
    return _names(source.path) if source.files is None else [file.path for file in source.files.files]


def fetch_listed(source: Source) -> Source:
    """Bring the small files of a Hub source that say what it is into the user's cache: a few kilobytes.

    Raises:
        HubError: A download failed or is not what the Hub states.
    """
    from llmcompress.hub.download import fetch

    if source.files is None:
        return source
    wanted = [name for name in file_names(source) if name in (*_CODE_CONFIGS, *SENTENCE_TRANSFORMERS)]
    return source._replace(path=fetch(source.files, ["config.json", *wanted]).path)


def check_code(source: Source) -> None:
    """Refuse a tokenizer or processor that asks for code from its repository; its files must be there.

    Raises:
        SecurityError: It needs that code, which is not allowed.
    """
    for name in _CODE_CONFIGS:
        if (source.path / name).is_file():
            check_tokenizer(
                read_json(source.path / name),
                model_type=str(source.config.get("model_type")),
                trust_remote_code=source.trust_remote_code,
                where=name,
            )


def fetch_side_files(source: Source) -> Source:
    """Bring a Hub source's tokenizer and configuration files into the user's cache, and no weights.

    Raises:
        SecurityError: the tokenizer needs code.
        HubError: a download failed or is not what the Hub states.
    """
    from llmcompress.hub.download import fetch

    if source.files is not None:
        names = [file.path for file in source.files.files if _is_side_file(file.path, source)]
        source = source._replace(path=fetch(source.files, [*names, *_readme(source.files)]).path)
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
    from llmcompress.hub.download import fetch

    where = source.id or str(source.path)
    if source.files is None:
        if source.layout == "checkpoint":
            choose_weights(_names(source.path), where=where)
        check_code(source)
        return source
    listed = file_names(source)
    main = MODEL_XML if source.layout == "ir" else choose_weights(listed, where=where)
    side = [name for name in listed if _is_side_file(name, source)]
    snapshot = fetch(source.files, [*side, *_readme(source.files), *([main] if main == INDEX else [])])
    check_code(source._replace(path=snapshot.path))
    weights = sorted(set(read_index(snapshot.path / INDEX).values())) if main == INDEX else [main]
    if source.layout == "ir":
        # An artifact of ours lists its recipe too, and is complete only with it.
        weights = [*IR_FILES, *(name for name in (*_IR_SIDE_FILES, RECIPE) if name in listed)]
    weighed = fetch(source.files, weights, progress=progress)
    _check_links(snapshot.path)
    return source._replace(path=snapshot.path, expected_sha256={**snapshot.sha256, **weighed.sha256})


def identity(source: Source) -> list[object]:
    """What tells a source from others without reading its weights: a Hub source's commit, a directory's files.

    Of the files of a directory: names, sizes and times of change.
    """
    if source.id is not None:
        return [source.id, source.revision]
    stats = sorted((path.name, path.stat()) for path in source.path.iterdir() if path.is_file())
    known = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return [source.id, source.revision, str(source.path), known]


def longest_context(source: Source) -> int | None:
    """Tokens that the model's positions reach, by the names configurations have for it; None where it states none."""
    found = (source.config.get(name) for name in _CONTEXT_KEYS)
    return next((value for value in found if isinstance(value, int)), None)


def require_context(source: Source, num_tokens: int, asked: str, *, field: str = "", hint: str = "take fewer") -> None:
    """Refuse more tokens at once than the model's positions reach.

    Args:
        asked: The message up to the comma, such as ``f"{num_tokens} tokens were asked for"``.
        field: What asks for them, where the model's name alone does not say it.
        hint: What to do; ``{longest}`` in it becomes the model's context.

    Raises:
        UsageError: ``num_tokens`` is more.
    """
    longest = longest_context(source)
    if longest is not None and num_tokens > longest:
        raise UsageError(
            f"{asked}, the model's context is {longest}",
            where=f"{source.name}: {field}" if field else source.name,
            hint=hint.format(longest=longest),
        )


def side_files(source: Source) -> tuple[str, ...]:
    """Paths of the configuration and tokenizer files next to the weights, sorted."""
    templates = [path.relative_to(source.path).as_posix() for path in source.path.glob(_TEMPLATES) if path.is_file()]
    return tuple(sorted(name for name in (*_names(source.path), *templates) if _is_side_file(name, source)))


def _looks_like_path(text: str) -> bool:
    odd = "\\" in text or text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1
    return odd or ".." in text.split("/") or bool(re.match(r"[A-Za-z]:", text))


def _from_hub(repo_id: str, access: Access) -> Source:
    from llmcompress.hub.download import fetch
    from llmcompress.hub.listing import listing

    check_repo_id(repo_id)
    files = listing(repo_id, access.revision, offline=access.offline)
    names = [file.path for file in files.files]
    layout = _layout(names, repo_id)
    path = fetch(files, ["config.json"]).path
    return Source(
        kind="hub",
        layout=layout,
        path=path,
        config=read_json(path / "config.json"),
        id=repo_id,
        revision=files.commit,
        trust_remote_code=access.trust_remote_code,
        files=files,
    )


def _from_directory(path: Path, trust_remote_code: bool) -> Source:
    if not path.is_dir():
        raise UsageError(
            "a directory is needed, and this is none" if path.exists() else "the link leads nowhere",
            where=str(path),
            hint="give the directory that holds config.json and the weights",
        )
    names = _names(path)
    if "config.json" not in names:
        _refuse_cache_folder(path)
    layout = _layout(names, str(path))
    hold_if_kept(path)
    _check_links(path)
    return Source(
        kind=layout,
        layout=layout,
        path=path.resolve(),
        config=read_json(path / "config.json"),
        trust_remote_code=trust_remote_code,
    )


def _refuse_cache_folder(path: Path) -> None:
    """Refuse what the Hub's cache keeps around a model's directory; names the directory itself."""
    path = path.resolve()
    if path.name == "snapshots":
        path = path.parent
    found = sorted(path.glob("snapshots/*/config.json"))
    if found:
        raise ModelError(
            "it is a folder of the Hub's cache, which keeps a model's files by commit",
            where=str(path),
            hint=f"give {found[0].parent}, or the Hub id {path.name.removeprefix('models--').replace('--', '/', 1)}",
        )
    if any(path.glob("models--*/snapshots")):
        raise ModelError(
            "it is the Hub's cache, which keeps many models",
            where=str(path),
            hint="give the Hub id of one of them, with `offline`",
        )


def _names(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.iterdir() if entry.is_file()]
    except OSError as error:
        raise ModelError(
            f"it cannot be read: {error.strerror}", where=str(path), hint="check its permissions"
        ) from error


def _layout(names: Collection[str], where: str) -> Layout:
    if "config.json" not in names:
        raise ModelError(f"there is no config.json{_instead(names)}", where=where, hint=_NEEDED)
    if SINGLE in names or INDEX in names or MODEL_XML not in names:
        return "checkpoint"
    if MODEL_BIN not in names:
        raise ModelError(f"{MODEL_XML} is there without {MODEL_BIN}", where=where, hint="export the model again")
    return "ir"


def _instead(names: Collection[str]) -> str:
    for pattern, found in (
        ("adapter_config.json", "it is an adapter, to be merged into its base model first"),
        ("model_index.json", "it is a diffusion pipeline"),
        ("*.gguf", "it holds GGUF files, which are not read"),
        ("openvino_language_model.xml", "it is an OpenVINO vision-language model"),
        ("consolidated*", "it is a checkpoint in its trainer's own layout"),
    ):
        if fnmatch.filter(names, pattern):
            return f": {found}"
    return ""


def _is_side_file(name: str, source: Source) -> bool:
    if name.endswith(".py"):
        return source.trust_remote_code
    if "/" in name:
        return fnmatch.fnmatchcase(name, _TEMPLATES)
    wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in _SIDE_FILES)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _SKIPPED)


def _readme(files: HubListing) -> list[str]:
    """The model's page, which states its license; it is no side file, as no byte of the output depends on it."""
    return [CARD] if any(file.path == CARD for file in files.files) else []


def _check_links(directory: Path) -> None:
    """Refuse links that leave the directory, apart from those that the Hub's cache is made of."""
    root = directory.resolve()
    blobs = root.parent.parent / "blobs"
    patterns = (*_SIDE_FILES, *_IR_SIDE_FILES, *IR_FILES, CARD, "*.safetensors", "*.py", "additional_chat_templates")
    for entry in [*root.iterdir(), *(root / "additional_chat_templates").glob("*")]:
        if not entry.is_symlink() or not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns):
            continue
        target = entry.resolve()
        if target.is_relative_to(root) or (root.parent.name == "snapshots" and target.is_relative_to(blobs)):
            if entry.name != CARD and not target.exists():
                raise ModelError(
                    f"{entry.name} is a link that leads nowhere: the model is there in part",
                    where=str(directory),
                    hint="fetch it again; the Hub id in place of the directory does",
                )
            continue
        raise SecurityError(
            f"{entry.name} is a link to {target}, outside the model's directory; it was not opened",
            where=str(directory),
            hint="replace the link by the file, if you know that it belongs there",
        )
