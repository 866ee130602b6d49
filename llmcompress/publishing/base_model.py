"""What the base of an artifact is and states; from the manifest, whose texts are somebody else's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from llmcompress.errors import UsageError
from llmcompress.report.compression import CompressionReport
from llmcompress.report.evaluation import EvalReport
from llmcompress.report.record import Provenance
from llmcompress.spec.access import check_repo_id
from llmcompress.system.json_file import noted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_HUB_PAGE = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/?")


class Stated(NamedTuple):
    """What a person says of the base, instead of the files."""

    base_model: str | None = None
    """Hub id."""
    license: str | None = None
    """The Hub's id of a license."""

    def checked(self) -> Stated:
        """Itself. Raises UsageError where it cannot be."""
        if self.base_model is not None:
            check_repo_id(self.base_model)
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise UsageError(
                f"got {self.license!r}; accepted: the Hub's id of a license, such as apache-2.0, mit or other",
                where="`license`",
                hint="https://huggingface.co/docs/hub/repositories-licenses lists them",
            )
        return self


class BaseModel(NamedTuple):
    """The base model."""

    id: str | None
    """Hub id; None for a local directory."""
    revision: str | None
    name: str | None
    """Hub id that the card names: as a person states it, else ``id``, else what config.json calls the checkpoint."""
    link: Markup | None
    license: tuple[str, ...]
    license_name: str | None
    license_link: str | None
    """As the base states it."""
    license_url: str | None
    """The link where it leads somewhere from another repository, too."""
    language: tuple[str, ...]
    statement: str
    """``given`` by a person, ``stated``, ``no card``, ``not stated``, or why the card could not be read."""
    weight_bytes: int
    """Of the base's weight files."""


def hub_name(provenance: Provenance) -> tuple[str | None, str | None]:
    """Hub id and commit, if they can be such: a manifest may come from anywhere."""
    hub_id = provenance.id if provenance.id and _is_id(provenance.id) else None
    pinned = hub_id and provenance.revision and _COMMIT.fullmatch(provenance.revision)
    return hub_id, provenance.revision if pinned else None


def find_base(manifest: CompressionReport, stated: Stated, directory: Path) -> BaseModel:
    """Take from a person, a manifest and the config.json next to it what the source is and states."""
    hub_id, revision = hub_name(manifest.provenance)
    name = stated.base_model or hub_id or _recorded_name(directory) or _base_of_gguf(manifest.provenance)
    card = manifest.provenance.card if stated.license is None else None
    link = card.license_link if card else None
    return BaseModel(
        id=hub_id,
        revision=revision,
        name=name,
        link=Markup(f"[{name}](https://huggingface.co/{name})") if name else None,
        license=(stated.license,) if stated.license else card.license if card else (),
        license_name=card.license_name if card else None,
        license_link=link,
        license_url=_url(link, hub_id, revision),
        language=manifest.provenance.card.language if manifest.provenance.card else (),
        statement="given" if stated.license else _statement(manifest),
        weight_bytes=manifest.provenance.weight_bytes,
    )


def is_base(manifest: CompressionReport, evaluation: EvalReport) -> bool:
    """Whether an evaluation compared with the very files that the artifact was made from."""
    if evaluation.reference is None:
        return False
    ours, theirs = (
        {file.sha256 for file in provenance.weight_files}
        for provenance in (manifest.provenance, evaluation.reference.provenance)
    )
    return bool(ours) and ours == theirs


def _recorded_name(directory: Path) -> str | None:
    """What transformers wrote down when the checkpoint was loaded by a Hub id; a local path is none."""
    name = noted(directory / "config.json").get("_name_or_path")
    return name if isinstance(name, str) and name.count("/") == 1 and _is_id(name) else None


def _base_of_gguf(provenance: Provenance) -> str | None:
    """What a GGUF file says that it was made from."""
    told = provenance.quantization.settings.get("general") if provenance.quantization else None
    if not isinstance(told, dict):
        return None
    url = told.get("base_model.0.repo_url") or told.get("source.repo_url")
    found = _HUB_PAGE.fullmatch(url) if isinstance(url, str) else None
    return found[1] if found and _is_id(found[1]) else None


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
