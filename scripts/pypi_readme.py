"""The README as PyPI shows it: hatchling calls this when it builds. Links into the repository lead nowhere there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class PypiReadme(MetadataHookInterface):
    """Gives the package its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description to the README without links and pictures of the repository's own."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_local_links(text)}


def without_local_links(text: str) -> str:
    """Replace links to files by what they say, and leave pictures out that are files."""
    text = re.sub(r'^<img src="(?!https?:)[^>]*>\n+', "", text, flags=re.MULTILINE)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)\s]+\)", r"\1", text)
