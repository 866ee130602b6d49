"""The way back: a pushed artifact, brought from the Hub."""

from __future__ import annotations

from pathlib import Path

from llmcompress.artifact import MANIFEST, REPORTS, read_manifest
from llmcompress.errors import ArtifactError
from llmcompress.hub.download import fetch
from llmcompress.hub.listing import listing
from llmcompress.system.progress import Reporter, silent


def fetch_artifact(
    repo_id: str, *, revision: str | None = None, offline: bool = False, progress: Reporter = silent
) -> Path:
    """Bring the files of a pushed artifact and its reports into the Hugging Face cache; files of others stay there.

    Returns:
        The snapshot's directory, of one commit.

    Raises:
        ArtifactError: there is no manifest of ours, or a file that it lists is not there.
        UsageError, HubError, SecurityError: as ``hub.listing`` and ``hub.fetch``.
    """
    found = listing(repo_id, revision, offline=offline)
    names = {file.path for file in found.files}
    if MANIFEST not in names:
        raise ArtifactError(
            f"is no llmcompress artifact: it has no {MANIFEST}",
            where=repo_id,
            hint="give the id of one that was pushed",
        )
    directory = fetch(found, [MANIFEST]).path
    listed = [record.path for record in read_manifest(directory).files]
    missing = [name for name in listed if name not in names]
    if missing:
        raise ArtifactError(
            f"files of its manifest are not there: {', '.join(missing[:5])}",
            where=repo_id,
            hint="push it again, or take another revision",
        )
    fetch(found, [*listed, *sorted(REPORTS & names)], progress=progress)
    return directory
