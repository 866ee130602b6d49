"""The last steps of a job: the model card and the Hub. Other rooms do the work; this is the one door to them."""

from __future__ import annotations

from pathlib import Path

from llmcompress.errors import GateError
from llmcompress.runner.state import gate_failures, remember_push


def write_card(directory: Path, repo_id: str | None) -> None:
    """Write an artifact's ``README.md``.

    Raises: what ``llmcompress.publishing.card.write_card`` raises.
    """
    from llmcompress.publishing import card as cards

    cards.write_card(directory, repo_id=repo_id)


def push(directory: Path, repo_id: str, private: bool) -> None:
    """Put an artifact on the Hub, and note what was put there.

    Raises: what ``llmcompress.publishing.push_to_hub`` raises.
    """
    from llmcompress import publishing

    publishing.push_to_hub(directory, repo_id, private=private)
    remember_push(directory, repo_id, private=private)


def require_gate(directory: Path) -> None:
    """Refuse to go on with an artifact that did not pass.

    Raises:
        GateError: Names the checks that failed, or could not be decided.
    """
    if failed := gate_failures(directory):
        raise GateError(
            "the gate is not passed: " + "; ".join(failed),
            where=str(directory),
            hint="take a recipe that loses less, or set other thresholds",
        )
