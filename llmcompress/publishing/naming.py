"""The repository's name: given, or made of the base model and the recipe."""

from __future__ import annotations

import re
from pathlib import Path

from llmcompress.errors import UsageError
from llmcompress.hub import check_repo_id
from llmcompress.report import CompressionReport

_LONGEST = 96


def repository_name(directory: Path, manifest: CompressionReport, given: str | None, account: str) -> str:
    """``NAMESPACE/NAME`` of what was given, or ``ACCOUNT/BASE-RECIPE-ov``, as models for OpenVINO are named.

    The base is the source's name on the Hub; of a local source it is the output directory's.

    Raises:
        UsageError: that is no Hub id.
    """
    if given is not None:
        return check_repo_id(given if "/" in given else f"{account}/{given}")
    ending = f"-{manifest.recipe.name}-ov"
    source = manifest.provenance.id
    base = source.rpartition("/")[2] if source else directory.resolve().name
    name = base if base.endswith(ending) else base + ending
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or len(name) > _LONGEST or ".." in name or "--" in name:
        raise UsageError(
            f"{name!r} cannot be the name of a repository", where=str(directory), hint="give one: NAMESPACE/NAME"
        )
    return check_repo_id(f"{account}/{name}")
