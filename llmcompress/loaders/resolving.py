"""What a person names as a model: a Hub id, a directory, a GGUF or ONNX file, checked before any weight is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompress.errors import LlmcompressError, ModelError, UsageError
from llmcompress.loaders.adapter import ADAPTER_CONFIG, Adapter, read_adapter, require_adapter
from llmcompress.loaders.layout import check_links, is_whole, layout_of, names_in, refuse_cache_folder
from llmcompress.loaders.quantized.gguf.source import GgufModel, gguf_names, hub_gguf, is_gguf, local_gguf
from llmcompress.loaders.quantized.onnx.source import (
    ONNX_FOLDER,
    config_folder,
    hub_onnx,
    is_onnx,
    local_onnx,
    onnx_name,
)
from llmcompress.loaders.source import Source
from llmcompress.loaders.tensors import is_pickled_weight
from llmcompress.loaders.text_config import text_config
from llmcompress.report.file_names import MODEL_XML
from llmcompress.spec.access import Access, check_repo_id
from llmcompress.system.cache import hold_if_kept
from llmcompress.system.files import is_utf8
from llmcompress.system.json_file import read_json

if TYPE_CHECKING:
    from llmcompress.hub.listing import HubListing


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
