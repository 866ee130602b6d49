"""Who is logged in, and may they write there: asked before anything is hashed or sent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from llmcompress.errors import HubError
from llmcompress.hub.client import HubClient
from llmcompress.hub.failures import OFFLINE, translated_errors
from llmcompress.system.patching import replaced

_TOKENS = "https://huggingface.co/settings/tokens"


class Account(NamedTuple):
    """The account that a token belongs to."""

    name: str
    organizations: dict[str, str]
    """The account's role in each: admin, write, contributor, read or no_access."""
    role: str
    """Of the token: read, write, fineGrained; empty where the Hub does not say."""
    token_permissions: frozenset[str]
    """What a fine-grained token may do anywhere, such as ``repo.write``."""


def current_token() -> str | None:
    """The token of the environment or of the login; it is never taken from anywhere else."""
    from huggingface_hub import get_token

    return get_token()


@contextlib.contextmanager
def staying_offline() -> Iterator[None]:
    """Keep what other libraries ask the Hub, such as whose the token is, on this machine."""
    from huggingface_hub import constants

    with replaced(constants, "HF_HUB_OFFLINE", True):
        yield


def find_account(client: HubClient) -> Account:
    """Ask the Hub whose the token is.

    Raises:
        HubError: this run is offline, nobody is logged in, the token is not valid, or the Hub does not answer.
    """
    from huggingface_hub import constants

    login = "run `hf auth login`, or set HF_TOKEN, with a token that may write"
    if constants.HF_HUB_OFFLINE:
        message, hint = OFFLINE
        raise HubError(message, hint=hint)
    if current_token() is None:
        raise HubError("nobody is logged in to the Hub", hint=login)
    with translated_errors("the account", "", writing=True):
        answer = client.call(lambda api: api.whoami())
    try:
        token = answer.get("auth", {}).get("accessToken") or {}
        return Account(
            str(answer["name"]),
            {str(org["name"]): str(org.get("roleInOrg") or "") for org in answer.get("orgs", ())},
            str(token.get("role") or ""),
            frozenset(_permissions(token.get("fineGrained") or {})),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise HubError("the Hub's answer about the account has another form than it documents", hint=login) from error


def _permissions(fine_grained: dict[str, Any]) -> set[str]:
    scopes = [scope.get("permissions", ()) for scope in fine_grained.get("scoped", ())]
    return {str(name) for names in (*scopes, fine_grained.get("global", ())) for name in names}


def require_rights(who: Account, repo_id: str, *, create_pr: bool) -> None:
    """Refuse where it is known that a push to ``repo_id`` must fail; a pull request needs no rights there.

    Raises:
        HubError: the token only reads, or the account is not in that namespace or may only read there.
    """
    namespace = repo_id.partition("/")[0]
    if who.role == "read":
        raise HubError(
            f"the token of {who.name} may only read", where=repo_id, hint=f"make one that may write at {_TOKENS}"
        )
    # Where such a token may write is decided by the Hub: its scopes name repositories and organizations by number too.
    if who.role == "fineGrained" and not who.token_permissions & {"repo.write", "repo.content.write"} and not create_pr:
        raise HubError(
            f"the token of {who.name} has no permission to write repositories",
            where=repo_id,
            hint=f"edit its permissions at {_TOKENS}",
        )
    if create_pr or namespace == who.name:
        return
    role = who.organizations.get(namespace)
    if role is None or role in ("read", "no_access"):
        may = f"may only read in {namespace}" if role == "read" else f"is no member of {namespace}"
        mine = ", ".join([who.name, *(n for n, r in who.organizations.items() if r not in ("read", "no_access"))])
        raise HubError(
            f"the account {who.name} {may}",
            where=repo_id,
            hint=f"push to one of {mine}, or propose it with `create_pr`",
        )
