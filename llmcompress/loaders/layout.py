"""What lies in a model's directory, by the names of its files and where its links lead."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from llmcompress.errors import ModelError, SecurityError
from llmcompress.loaders.adapter import ADAPTER_CONFIG
from llmcompress.loaders.tensors import INDEX, SINGLE
from llmcompress.report.file_names import (
    BENCH_REPORT,
    CARD,
    EVAL_REPORT,
    LANGUAGE_MODEL,
    MODEL,
    MODEL_BIN,
    MODEL_XML,
    SEARCH_REPORT,
    TUNE_REPORT,
    model_files,
    part_of,
)

Layout = Literal["checkpoint", "ir"]

IR_FILES = (MODEL_XML, MODEL_BIN)
VISION_XML = model_files(LANGUAGE_MODEL)[0]
IR_SIDE_FILES = tuple(f"openvino_{part}.{end}" for part in ("tokenizer", "detokenizer") for end in ("xml", "bin"))
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Of these a tokenizer has at least one."""
TEMPLATES = "additional_chat_templates/*.jinja"

# Everything next to the weights that loading and tokenization read, as names in the top directory.
_SIDE_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*vocab*.txt", "merges.txt", "*.bpe")
_SKIPPED = (
    "*.index.json",
    "trainer_state.json",
    "optimizer*.json",
    ADAPTER_CONFIG,
    EVAL_REPORT,
    BENCH_REPORT,
    SEARCH_REPORT,
    TUNE_REPORT,
)
_NEEDED = "give a Hugging Face checkpoint (config.json, safetensors) or an OpenVINO IR directory with its config.json"


def names_in(path: Path) -> list[str]:
    """Names of a directory's files; ModelError where it cannot be read."""
    try:
        return [entry.name for entry in path.iterdir() if entry.is_file()]
    except OSError as error:
        raise ModelError(
            f"it cannot be read: {error.strerror}", where=str(path), hint="check its permissions"
        ) from error


def layout_of(names: Collection[str], where: str) -> Layout:
    """Say whether a checkpoint or an IR is there.

    Raises:
        ModelError: Neither; names what is there instead.
    """
    if "config.json" not in names:
        adapter = ADAPTER_CONFIG in names
        raise ModelError(
            f"there is no config.json{_instead(names)}",
            where=where,
            hint="`merge_adapter` merges it into the base model that it names" if adapter else _NEEDED,
        )
    if SINGLE in names or INDEX in names or not (MODEL_XML in names or VISION_XML in names):
        return "checkpoint"
    for xml, weights in zip(*[iter(ir_files(names))] * 2, strict=True):
        if weights not in names:
            raise ModelError(f"{xml} is there without {weights}", where=where, hint="export the model again")
    return "ir"


def ir_files(names: Collection[str]) -> tuple[str, ...]:
    """The files of an OpenVINO model, each ``.xml`` before its ``.bin``; of all parts where it has several."""
    if MODEL_XML in names or VISION_XML not in names:
        return IR_FILES
    parts = sorted(name for name in names if fnmatch.fnmatch(name, "openvino_*_model.xml"))
    return tuple(name for part in parts for name in model_files(part_of(part.removesuffix(".xml"))))


def decoder_part(names: Collection[str]) -> str:
    """The exporter's name of the part of an OpenVINO model that generates, by the names of its files."""
    return MODEL if MODEL_XML in names or VISION_XML not in names else LANGUAGE_MODEL


def weight_bytes(directory: Path) -> int:
    """Size of an OpenVINO model's weights on disk, of all parts where it has several."""
    return sum((directory / name).stat().st_size for name in ir_files(names_in(directory)) if name.endswith(".bin"))


def is_whole(names: Collection[str]) -> bool:
    """Whether a checkpoint's configuration and weights are there."""
    return "config.json" in names and (SINGLE in names or INDEX in names)


def _instead(names: Collection[str]) -> str:
    for pattern, found in (
        (ADAPTER_CONFIG, "it is an adapter, to be merged into its base model first"),
        ("model_index.json", "it is a diffusion pipeline"),
        (VISION_XML, "it is an OpenVINO vision-language model"),
        ("consolidated*", "it is a checkpoint in its trainer's own layout"),
    ):
        if fnmatch.filter(names, pattern):
            return f": {found}"
    return ""


def is_side_file(name: str, *, with_code: bool) -> bool:
    """Whether loading or tokenization reads a file that is no weights; ``with_code``: Python files too."""
    if name.endswith(".py"):
        return with_code
    if "/" in name:
        return fnmatch.fnmatchcase(name, TEMPLATES)
    wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in _SIDE_FILES)
    return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _SKIPPED)


def check_links(directory: Path, *, allow_links: bool = False) -> None:
    """Refuse links that lead nowhere and, unless they are allowed, those that leave the directory.

    Those that the Hub's cache is made of stay inside it.

    Raises:
        ModelError: A link leads nowhere.
        SecurityError: A link leaves the directory.
    """
    root = directory.resolve()
    blobs = root.parent.parent / "blobs"
    patterns = (
        *_SIDE_FILES,
        *IR_SIDE_FILES,
        *IR_FILES,
        "openvino_*_model.*",
        CARD,
        "*.safetensors",
        "*.gguf",
        "*.py",
        "additional_chat_templates",
    )
    for entry in [*root.iterdir(), *(root / "additional_chat_templates").glob("*")]:
        if not entry.is_symlink() or not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns):
            continue
        target = entry.resolve()
        if entry.name != CARD and not target.exists():
            raise ModelError(
                f"{entry.name} is a link that leads nowhere: the model is there in part",
                where=str(directory),
                hint="fetch it again; the Hub id in place of the directory does",
            )
        inside = target.is_relative_to(root) or (root.parent.name == "snapshots" and target.is_relative_to(blobs))
        if not inside and not allow_links:
            raise SecurityError(
                f"{entry.name} is a link to {target}, outside the model's directory; it was not opened",
                where=str(directory),
                hint="`allow_links` opens it, if you know that it belongs there",
            )


def refuse_cache_folder(path: Path) -> None:
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
