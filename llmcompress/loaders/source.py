"""What a person names as a model: a Hub id, a directory, a GGUF or ONNX file, checked before any weight is read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llmcompress.errors import LlmcompressError, ModelError, UsageError
from llmcompress.loaders.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Adapter,
    read_adapter,
    require_adapter,
)
from llmcompress.loaders.exporter import VISION_TASK, task_of
from llmcompress.loaders.layout import (
    IR_SIDE_FILES,
    TEMPLATES,
    TOKENIZERS,
    VISION_XML,
    Layout,
    check_links,
    ir_files,
    is_side_file,
    is_whole,
    layout_of,
    names_in,
    refuse_cache_folder,
)
from llmcompress.loaders.quantized.gguf.source import GgufModel, gguf_names, hub_gguf, is_gguf, local_gguf
from llmcompress.loaders.quantized.onnx.source import (
    ONNX_FOLDER,
    config_folder,
    hub_onnx,
    is_onnx,
    local_onnx,
    onnx_name,
)
from llmcompress.loaders.remote_code import check_tokenizer
from llmcompress.loaders.tensors import (
    INDEX,
    Checkpoint,
    choose_weights,
    is_pickled_weight,
    read_checkpoint,
    read_index,
)
from llmcompress.loaders.text_config import text_config
from llmcompress.report.file_names import CARD, MODEL_XML, RECIPE
from llmcompress.spec.access import Access, check_repo_id
from llmcompress.system.cache import hold_if_kept
from llmcompress.system.files import is_utf8
from llmcompress.system.json_file import read_json
from llmcompress.system.progress import Reporter, silent

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing

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
    max_context: int | None = None
    """As in ``Access``."""
    adapter: Adapter | None = None
    """What is merged into the model when it is loaded."""
    container: Checkpoint | None = None
    """The headers of GGUF or ONNX files that hold the model; of GGUF ``path`` is a directory made of their metadata."""
    folder: str = ""
    """Of a Hub source: the folder of its repository that ``path`` is; empty: all of it."""
    text_only: bool = False
    """It is the language model of the vision-language checkpoint there; ``config`` is its own."""

    @property
    def name(self) -> str:
        """For people: the Hub id, or the directory's name."""
        return self.id or self.path.name

    @property
    def sees(self) -> bool:
        """Whether it is a vision-language model."""
        if self.layout == "checkpoint":
            return task_of(self.config) == VISION_TASK
        return VISION_XML in file_names(self)

    @property
    def runs_code(self) -> bool:
        """Whether the model's class is code of its repository, which may run."""
        return self.trust_remote_code and bool(self.config.get("auto_map"))

    @property
    def is_gguf(self) -> bool:
        """Whether GGUF files hold the model."""
        return self.container is not None and is_gguf(self.container.files[0])

    @property
    def text_path(self) -> Path:
        """The directory with the tokenizer and its chat template: the adapter's where it brings them."""
        own = self.adapter.path if self.adapter else self.path
        return own if any((own / name).is_file() for name in TOKENIZERS) else self.path


def resolve(source: str | Path, access: Access = Access(), *, vision: bool = False) -> Source:
    """Find a model by Hub id or path; of a Hub model only the file list and ``config.json`` are fetched.

    Of GGUF files the headers are read, from which the configuration and the tokenizer are made, of ONNX files the
    graph, to which the ``config.json`` next to it belongs. An existing path goes before a Hub id of the same spelling.
    A directory that holds a checkpoint and an OpenVINO IR is taken as the checkpoint, which is the more exact of both.

    Args:
        source: Hub id or path.
        access: How it is read.
        vision: Take the checkpoint of a vision-language model too.

    Raises:
        UsageError: neither an existing path nor a Hub id, a revision with a path, several GGUF or ONNX models, or
            the language model alone of what is no vision-language checkpoint.
        ModelError: no readable ``config.json``, nothing that can be loaded, a vision-language model that is not
            asked for, or one whose language model is not exported alone.
        HubError: no such repository, no access, no network, or not cached.
        SecurityError: a file name or link that leaves the model's directory.
    """
    found = _found(source, access)
    if access.text_only:
        return _language_model_of(found)
    if not vision and found.sees:
        raise ModelError(
            f"{found.config.get('model_type')} is a vision-language model, which this cannot take yet",
            where=found.name,
            hint="llmcompress compress makes an OpenVINO model of its checkpoint, which openvino_genai.VLMPipeline and "
            "Optimum's OVModelForVisualCausalLM run; llmcompress eval measures it on text, chat shows it pictures",
        )
    return found


def _language_model_of(found: Source) -> Source:
    if found.layout == "ir" or found.adapter is not None or found.container is not None:
        raise UsageError(
            "`text_only` takes the language model of a vision-language checkpoint, and this is none",
            where=found.name,
            hint="give the checkpoint, or leave it out",
        )
    return found._replace(config=text_config(found.config, found.name), text_only=True)


def _found(source: str | Path, access: Access) -> Source:
    text = os.fspath(source)
    if "\0" in text or not text.strip():
        raise UsageError(f"{text!r} is neither a path nor a Hub id", hint="give 'namespace/name' or a directory")
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - the method raises for an unknown user
    if not is_utf8(Path(os.path.realpath(path))):
        raise UsageError(
            f"the path {text!r} is no text in UTF-8, and the libraries take no other",
            hint="rename it or a directory above it, or what it links to",
        )
    if not os.path.lexists(path):
        if isinstance(source, Path) or _looks_like_path(text):
            raise UsageError(
                f"the path {text!r} does not exist",
                hint="give an existing directory, or a Hub id in the form namespace/name",
            )
        if access.revision is None and text.count("/") == 1 and path.parent.is_dir():
            raise UsageError(
                f"looks like a path, and the directory {str(path.parent)!r} holds no {path.name!r}",
                where=text,
                hint="check the path; for the Hub's model of this name give `revision`, for example main",
            )
        return _from_hub(text, access)
    if access.revision is not None:
        raise UsageError(
            f"`revision={access.revision}` has no effect on a directory",
            where=text,
            hint="leave it out, or give the Hub id; a local path of the same spelling goes first",
        )
    if path.is_file() and (is_gguf(path.name) or is_onnx(path.name)):
        if access.file is not None:
            raise UsageError("`file` has no effect on a single file", where=text, hint="leave it out")
        found = _from_gguf if is_gguf(path.name) else _from_onnx
        return found(path.parent, path.name, access)
    return _from_directory(path, access)


def file_names(source: Source) -> list[str]:
    """Names of a directory's files, or of those that the Hub lists."""
    if source.files is None:
        return names_in(source.path)
    return [name for file in source.files.files if (name := _below(file.path, source.folder)) is not None]


def _below(name: str, folder: str) -> str | None:
    """A file's name within a folder; None: it is not in it."""
    if not folder:
        return name
    return name.removeprefix(f"{folder}/") if name.startswith(f"{folder}/") else None


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


def identity(source: Source) -> list[object]:
    """What tells a source from others without reading its weights: a Hub source's commit, a directory's files.

    Of the files of a directory: names, sizes and times of change.
    """
    adapter = source.adapter
    if source.container is not None:
        held = source.container
        stats = [(held.path / name).stat() for name in held.files if source.id is None]
        files = [*held.files, *([stat.st_size, stat.st_mtime_ns] for stat in stats)]
        others = [] if source.is_gguf else _identity(source.id, source.revision, source.path)
        return [source.id, source.revision, str(held.path) if source.id is None else None, files, *others]
    merged = [] if adapter is None else _identity(adapter.id, adapter.revision, adapter.path)
    alone = ["text_only"] if source.text_only else []
    return [*_identity(source.id, source.revision, source.path), *merged, *alone]


def _identity(hub_id: str | None, revision: str | None, directory: Path) -> list[object]:
    if hub_id is not None:
        return [hub_id, revision]
    stats = sorted((path.name, path.stat()) for path in directory.iterdir() if path.is_file())
    known = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return [hub_id, revision, str(directory), known]


def text_files(source: Source) -> tuple[str, ...]:
    """As ``side_files``, of the directory with the tokenizer."""
    return side_files(source._replace(path=source.text_path))


def side_files(source: Source) -> tuple[str, ...]:
    """Paths of the configuration and tokenizer files next to the weights, sorted."""
    templates = [path.relative_to(source.path).as_posix() for path in source.path.glob(TEMPLATES) if path.is_file()]
    names = (*names_in(source.path), *templates)
    return tuple(sorted(name for name in names if is_side_file(name, with_code=source.trust_remote_code)))


def save_code(source: Source, output_dir: Path) -> None:
    """Copy the Python files of a source whose code may run, with which Optimum's class opens the output."""
    for name in side_files(source):
        if name.endswith(".py") and "/" not in name:
            shutil.copyfile(source.path / name, output_dir / name)


def _looks_like_path(text: str) -> bool:
    odd = "\\" in text or text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1
    return odd or ".." in text.split("/") or bool(re.match(r"[A-Za-z]:", text))


def _from_hub(repo_id: str, access: Access) -> Source:
    from llmcompress.hub.download import fetch
    from llmcompress.hub.listing import listing

    check_repo_id(repo_id)
    files = listing(repo_id, access.revision, offline=access.offline)
    names = [file.path for file in files.files]
    if _is_meant(is_onnx, names, access):
        return _of_hub_onnx(files, names, access)
    if access.file is not None or _is_meant(is_gguf, names, access):
        chosen = gguf_names(names, access.file, repo_id)
        source = _of_gguf(hub_gguf(files, chosen), access, where=repo_id)
        return source._replace(kind="hub", id=repo_id, revision=files.commit, files=files)
    adapter = None
    if access.merge_adapter:
        require_adapter(names, repo_id)
        adapter = read_adapter(fetch(files, [ADAPTER_CONFIG]).path, where=repo_id)
        adapter = adapter._replace(id=repo_id, revision=files.commit, files=files)
        if not is_whole(names):
            return _base_of(adapter, access)
    layout = layout_of(names, repo_id)
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
        max_context=access.max_context,
        adapter=adapter,
    )


def _from_directory(path: Path, access: Access) -> Source:
    if not path.is_dir():
        raise UsageError(
            "a directory is needed, and this is none" if path.exists() else "the link leads nowhere",
            where=str(path),
            hint="give the directory that holds config.json and the weights",
        )
    names = names_in(path)
    with_onnx = [*names, *_onnx_below(path, access.file)]
    if _is_meant(is_onnx, with_onnx, access):
        hold_if_kept(path)
        return _from_onnx(path, onnx_name(with_onnx, access.file, str(path)), access)
    if access.file is not None or _is_meant(is_gguf, names, access):
        hold_if_kept(path)
        check_links(path, allow_links=access.allow_links)
        return _from_gguf(path, access.file, access)
    if "config.json" not in names:
        refuse_cache_folder(path)
    hold_if_kept(path)
    adapter = None
    if access.merge_adapter:
        check_links(path, allow_links=access.allow_links)
        require_adapter(names, str(path))
        adapter = read_adapter(path.resolve(), where=path.name)
        if not is_whole(names):
            return _base_of(adapter, access)
    if os.path.lexists(path / "config.json"):
        check_links(path, allow_links=access.allow_links)
    layout = layout_of(names, str(path))
    return Source(
        kind=layout,
        layout=layout,
        path=path.resolve(),
        config=read_json(path / "config.json"),
        trust_remote_code=access.trust_remote_code,
        max_context=access.max_context,
        adapter=adapter,
    )


def _is_meant(is_such: Callable[[str], bool], names: Collection[str], access: Access) -> bool:
    """Whether a file of a kind is asked for, or such files are the only weights that are there."""
    if access.file is not None:
        return is_such(access.file)
    others = is_whole(names) or MODEL_XML in names or ADAPTER_CONFIG in names or any(map(is_pickled_weight, names))
    return (
        not others
        and not access.merge_adapter
        and any(map(is_such, names))
        and not (is_such is is_onnx and any(map(is_gguf, names)))
    )


def _onnx_below(directory: Path, chosen: str | None) -> list[str]:
    """Names of ONNX files in the folder for them, and what is chosen in another one."""
    folder = directory / ONNX_FOLDER
    names = [f"{ONNX_FOLDER}/{name}" for name in names_in(folder)] if folder.is_dir() else []
    if chosen is not None and "/" in chosen and ".." not in chosen.split("/") and not chosen.startswith("/"):
        names += [chosen] if chosen not in names and (directory / chosen).is_file() else []
    return [name for name in names if is_onnx(name)]


def _from_onnx(directory: Path, name: str, access: Access) -> Source:
    """A model in an ONNX file of a directory, or in a folder of it."""
    _refuse_adapter("an ONNX file", access, str(directory))
    directory = directory.resolve()
    place = directory / name
    # Where the folder for such files is given, the configuration may lie above it.
    whole = f"{directory.name}/{name}" if "/" not in name else name
    root = directory.parent if "/" not in name else directory
    folder = root / config_folder(whole, lambda each: (root / each / "config.json").is_file())
    check_links(folder, allow_links=access.allow_links)
    found = local_onnx(place, read_json(folder / "config.json"), allow_links=access.allow_links)
    return Source(
        kind="checkpoint",
        layout="checkpoint",
        path=folder,
        config=found.config,
        max_context=access.max_context,
        container=found.checkpoint,
    )


def _of_hub_onnx(files: HubListing, names: Collection[str], access: Access) -> Source:
    from llmcompress.hub.download import fetch

    _refuse_adapter("an ONNX file", access, files.repo_id)
    name = onnx_name(names, access.file, files.repo_id)
    folder = config_folder(name, lambda each: f"{each}/config.json".lstrip("/") in names)
    path = fetch(files, [f"{folder}/config.json".lstrip("/")]).path / folder
    found = hub_onnx(files, name, read_json(path / "config.json"))
    return Source(
        kind="hub",
        layout="checkpoint",
        path=path,
        config=found.config,
        id=files.repo_id,
        revision=files.commit,
        files=files,
        max_context=access.max_context,
        container=found.checkpoint,
        folder=folder,
    )


def _refuse_adapter(kind: str, access: Access, where: str) -> None:
    if access.merge_adapter:
        raise UsageError(
            f"`merge_adapter` has no effect on {kind}",
            where=where,
            hint="give the adapter's directory, and its base model as transformers saves it",
        )


def _from_gguf(directory: Path, chosen: str | None, access: Access) -> Source:
    directory = directory.resolve()
    names = gguf_names(names_in(directory), chosen, str(directory))
    return _of_gguf(local_gguf(directory, names), access, where=str(directory))


def _of_gguf(found: GgufModel, access: Access, *, where: str) -> Source:
    _refuse_adapter("a GGUF file", access, where)
    return Source(
        kind="checkpoint",
        layout="checkpoint",
        path=found.directory,
        config=found.config,
        max_context=access.max_context,
        container=found.checkpoint,
    )


def source_checkpoint(source: Source) -> Checkpoint:
    """The headers of a source's weights, which are here: as ``read_checkpoint``, or those of its GGUF or ONNX files."""
    return read_checkpoint(source.path) if source.container is None else source.container


def _base_of(adapter: Adapter, access: Access) -> Source:
    """Find the model that an adapter was trained on."""
    try:
        base = resolve(adapter.base, access._replace(revision=adapter.base_revision, merge_adapter=False))
    except LlmcompressError as error:
        error.hint = f"{ADAPTER_CONFIG} of {adapter.name} names {adapter.base} as its base model; {error.hint}"
        raise
    if base.layout == "ir":
        raise ModelError(
            f"its base model {adapter.base} is an OpenVINO IR; an adapter is merged into a checkpoint",
            where=adapter.name,
            hint=f"write the checkpoint that it was trained on into base_model_name_or_path of {ADAPTER_CONFIG}",
        )
    return base._replace(adapter=adapter)
