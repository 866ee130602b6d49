"""How a source is opened, and names that reach the Hub or come from it: an id, a revision, a file in a repository."""

from __future__ import annotations

import re
from typing import NamedTuple

from llmcompress.errors import SecurityError, UsageError

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+/-]{0,199}")


class Access(NamedTuple):
    """Which version of a source is opened, and what that may do; the same wherever a source is named."""

    revision: str | None = None
    """Branch, tag or commit of a Hub source."""
    trust_remote_code: bool = False
    """Run Python code that the source brings."""
    offline: bool = False
    """Use local files and caches only."""
    allow_nonfinite: bool = False
    """Go on when a weight is NaN or infinite."""
    allow_links: bool = False
    """Follow links that leave a source's directory."""
    merge_adapter: bool = False
    """Of an adapter's directory: load its base model and merge the adapter into it."""
    max_context: int | None = None
    """Tokens that the model's positions reach, in place of what its configuration states."""
    requantize: bool = False
    """Compress a checkpoint again that is quantized already."""
    file: str | None = None
    """The GGUF or ONNX file that is meant, of a directory or repository that holds several; of a split one any part."""
    text_only: bool = False
    """Take the language model of a vision-language checkpoint alone."""

    def of_candidate(self) -> Access:
        """Return how the model is opened whose reference is opened so: the rest is for checkpoints."""
        return Access(allow_links=self.allow_links, max_context=self.max_context)

    def at(self, revision: str | None) -> Access:
        """Return the same for another source, of which this is the revision."""
        return self._replace(revision=revision)


def check_repo_id(repo_id: str) -> str:
    """Return ``repo_id`` if it has the form of a Hub id, ``namespace/name`` or ``name``.

    Raises:
        UsageError: it does not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        # The validator's \w and $ also let other alphabets and a trailing newline through.
        valid = re.fullmatch(r"[A-Za-z0-9_.\-/]+", repo_id) is not None
    except HFValidationError:
        valid = False
    if not valid:
        raise UsageError(
            f"{repo_id!r} is neither an existing path nor a Hub id: an id is 'namespace/name' or 'name' of ASCII "
            "letters, digits, '-', '_' and '.', at most 96 in the name, without '..' or '--'",
            hint="copy the id from the model's page, or give an existing directory",
        )
    return repo_id


def check_revision(revision: str) -> str:
    """Return ``revision`` if it can be the name of a branch, a tag or a commit.

    The name becomes part of a path in the cache, so it is checked before it is used.

    Raises:
        UsageError: it cannot.
    """
    misplaced = any(not part or part.startswith(".") for part in revision.split("/"))
    if not _REVISION.fullmatch(revision) or misplaced or ".." in revision or revision.endswith(".lock"):
        raise UsageError(
            f"{revision!r} is not a revision: a branch, a tag or a commit hash is accepted",
            hint="the repository's 'Files' page shows its branches, tags and commits",
        )
    return revision


def check_name(name: str, *, where: str) -> str:
    """Return ``name`` if it is a relative path that stays inside its directory on every operating system.

    Raises:
        SecurityError: it is not.
    """
    outside = {"", ".", ".."} & set(name.split("/")) or "\\" in name or ":" in name
    if outside or any(ord(character) < 32 for character in name):
        raise SecurityError(
            f"the file name {name!r} leaves the model's directory or cannot be a file in it",
            where=where,
            hint="do not use this model; nothing was read or written under that name",
        )
    return name
