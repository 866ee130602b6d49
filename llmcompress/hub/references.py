"""What points to a repository's commit: tags, and collections that list the repository."""

from __future__ import annotations

from collections.abc import Sequence

from llmcompress.errors import HubError
from llmcompress.hub.client import HubClient
from llmcompress.hub.explain import explained
from llmcompress.hub.lending import lent


def tags_of(client: HubClient, repo_id: str) -> dict[str, str]:
    """The tags of a repository, each with its commit. Raises HubError."""
    with explained(repo_id, "main", writing=True), lent(client) as api:
        return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}


def add_tags(client: HubClient, repo_id: str, commit: str, tags: Sequence[str]) -> None:
    """Name a commit. Raises HubError."""
    for tag in tags:
        with explained(repo_id, commit, writing=True), lent(client) as api:
            api.create_tag(repo_id, tag=tag, revision=commit)


def require_collection(client: HubClient, slug: str) -> None:
    """Refuse a collection that is not there, before anything is sent. Raises HubError."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    with explained(slug, "main", writing=True):
        try:
            client.json(f"{constants.ENDPOINT}/api/collections/{slug}")
        except HfHubHTTPError as error:
            if error.response.status_code not in (400, 404):
                raise
            raise HubError(
                f"there is no collection {slug!r}, or it is not this account's to see",
                hint="the slug is the end of its address: huggingface.co/collections/NAMESPACE/TITLE-NUMBER",
            ) from None


def add_to_collection(client: HubClient, slug: str, repo_id: str) -> None:
    """Put a model on a collection's list, unless it is there already. Raises HubError."""
    with explained(repo_id, "main", writing=True), lent(client) as api:
        api.add_collection_item(slug, repo_id, item_type="model", exists_ok=True)
