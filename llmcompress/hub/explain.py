"""What huggingface_hub and the network raise, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmcompress.errors import HubError, LlmcompressError, WriteError

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


@contextmanager
def explained(repo_id: str, revision: str, repo_type: str = "model") -> Iterator[None]:
    """Turn an error of the Hub, the network or the cache into a HubError or WriteError.

    A server's own words are never repeated: they can echo the token that was sent.
    """
    try:
        yield
    except LlmcompressError:
        raise
    except Exception as error:
        raise _explain(error, repo_id, revision, repo_type) from error


def _explain(error: Exception, repo_id: str, revision: str, repo_type: str) -> LlmcompressError:
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"

    def hub(message: str, hint: str) -> HubError:
        return HubError(message, where=repo_id, hint=hint)

    chain = _chain(error)
    for link in chain:
        if isinstance(link, errors.GatedRepoError):
            return hub(
                "the model is gated: its owner wants its terms accepted first, and this account has no access yet",
                f"open {page}, accept the terms, then {_LOGIN}",
            )
        if isinstance(link, errors.DisabledRepoError):
            return hub("the Hub has disabled this repository", f"see {page}")
        if isinstance(link, errors.RevisionNotFoundError):
            return hub(f"it has no revision {revision!r}", f"{page}/tree/main shows branches, tags and commits")
        if isinstance(link, errors.RepositoryNotFoundError):
            return hub(
                f"the Hub shows no {repo_type} of this name: it is absent, misspelt, or private",
                f"check the name at {page}; if it is private, {_LOGIN}",
            )
        if isinstance(link, errors.RemoteEntryNotFoundError):
            return hub(f"a file is not there at revision {revision!r}", f"{page}/tree/{revision} shows the files")
        if isinstance(link, errors.HfHubHTTPError):
            return _http(link, hub, page)
    for link in chain:
        if isinstance(link, OSError) and link.errno in _DISK_ERRORS:
            return WriteError(
                f"the Hugging Face cache {constants.HF_HUB_CACHE} cannot be written: {link.strerror}",
                where=repo_id,
                hint="make room or permission there, or set HF_HOME to another disk",
            )
    kinds = {type(link).__name__ for link in chain}
    alone = isinstance(error, errors.LocalEntryNotFoundError) and len(chain) == 1
    if alone or "OfflineModeIsEnabled" in kinds:
        return hub(
            f"revision {revision!r} is not in the local cache {constants.HF_HUB_CACHE}, and this run is offline",
            "run it once without --offline (and without HF_HUB_OFFLINE)",
        )
    if any("Timeout" in kind for kind in kinds):
        return hub(f"{constants.ENDPOINT} did not answer in time", "try again, or use --offline if it is cached")
    if any("Consistency check" in str(link) for link in chain):
        return hub("the download ended early: fewer bytes came than the Hub announced", "run it again")
    # After a refused connection huggingface_hub closes its client and then tries again with the closed one.
    closed = any("client has been closed" in str(link) for link in chain)
    if closed or any(word in kind for kind in kinds for word in ("Connect", "Protocol", "Network", "ReadError")):
        return hub(f"no connection to {constants.ENDPOINT}", "check the network, or use --offline if it is cached")
    return hub(f"the Hub could not be used ({', '.join(sorted(kinds))})", f"see whether {page} opens, and try again")


def _http(error: Any, hub: Any, page: str) -> HubError:
    response = error.response
    status = response.status_code
    if status == 401:
        answer = hub("the Hub wants a valid access token (401): none was sent, or it has expired", _LOGIN)
    elif status == 403:
        answer = hub("this account or token may not read it (403)", f"see {page}, and the permissions of the token")
    elif status == 429:
        seconds = str(response.headers.get("Retry-After", ""))
        wait = f"in {seconds} seconds" if seconds.isdigit() else "later"
        answer = hub(f"too many requests (429): the Hub asks to come back {wait}", f"wait; {_LOGIN} for a higher limit")
    elif status >= 500:
        answer = hub(f"the Hub has a fault ({status})", "try again later, or use --offline if it is cached")
    else:
        answer = hub(f"the Hub answered {status}", f"see whether {page} opens")
    assert isinstance(answer, HubError)
    return answer


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what caused it: huggingface_hub hides a status behind a 'not in the cache' of its own."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain
