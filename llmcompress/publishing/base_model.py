"""What the base of an artifact is and states; from the manifest, whose texts are somebody else's."""

from __future__ import annotations

import re
from typing import NamedTuple

from markupsafe import Markup

from llmcompress.errors import UsageError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.file_names import MODEL_BIN
from llmcompress.report.record import Provenance
from llmcompress.spec.access import check_repo_id

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WEIGHTS = (".safetensors", MODEL_BIN)


class BaseModel(NamedTuple):
    """The base model."""

    id: str | None
    """Hub id; None for a local directory."""
    revision: str | None
    link: Markup | None
    license: tuple[str, ...]
    license_name: str | None
    license_link: str | None
    """As the base states it."""
    license_url: str | None
    """The link where it leads somewhere from another repository, too."""
    language: tuple[str, ...]
    statement: str
    """``stated``, ``no card``, ``not stated``, or why the card could not be read."""
    weight_bytes: int
    """Of the base's weight files."""


def hub_name(provenance: Provenance) -> tuple[str | None, str | None]:
    """Hub id and commit, if they can be such: a manifest may come from anywhere."""
    hub_id = provenance.id if provenance.id and _is_id(provenance.id) else None
    pinned = hub_id and provenance.revision and _COMMIT.fullmatch(provenance.revision)
    return hub_id, provenance.revision if pinned else None


def base_model(manifest: CompressionReport) -> BaseModel:
    """Take from a manifest what its source is and states."""
    hub_id, revision = hub_name(manifest.provenance)
    card = manifest.provenance.card
    stated = card.license if card else ()
    link = card.license_link if card else None
    return BaseModel(
        id=hub_id,
        revision=revision,
        link=Markup(f"[{hub_id}](https://huggingface.co/{hub_id})") if hub_id else None,
        license=stated,
        license_name=card.license_name if card else None,
        license_link=link,
        license_url=_url(link, hub_id, revision),
        language=card.language if card else (),
        statement=_statement(manifest),
        weight_bytes=manifest.provenance.weight_bytes,
    )


def is_base(manifest: CompressionReport, evaluation: EvalReport) -> bool:
    """Whether an evaluation compared with the very files that the artifact was made from."""
    if evaluation.reference is None:
        return False
    ours, theirs = (
        {file.sha256 for file in files if file.path.endswith(_WEIGHTS)}
        for files in (manifest.provenance.files, evaluation.reference.provenance.files)
    )
    return bool(ours) and ours == theirs


def _is_id(text: str) -> bool:
    try:
        return check_repo_id(text) == text
    except UsageError:
        return False


def _url(link: str | None, hub_id: str | None, revision: str | None) -> str | None:
    if link is None or link.startswith(("https://", "http://")):
        return link
    if hub_id is not None and _FILE.fullmatch(link):
        return f"https://huggingface.co/{hub_id}/blob/{revision or 'main'}/{link}"
    return None


def _statement(manifest: CompressionReport) -> str:
    card = manifest.provenance.card
    if card is None:
        return "no card"
    if card.problem is not None:
        return f"its model card could not be read: {card.problem}"
    return "stated" if card.license else "not stated"
