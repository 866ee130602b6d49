"""How a source is opened."""

from __future__ import annotations

from typing import NamedTuple


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

    def at(self, revision: str | None) -> Access:
        """Return the same for another source, of which this is the revision."""
        return self._replace(revision=revision)
