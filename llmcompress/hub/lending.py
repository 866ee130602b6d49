"""huggingface_hub's own API, carried out by our client."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from llmcompress.hub.client import HubClient
from llmcompress.patching import replaced

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def lent(client: HubClient) -> Iterator[HfApi]:
    """The API with our time limits and patience; its bars, logs and warnings, which repeat a server's words, are off.

    Large files go by the Git LFS protocol over HTTP: what the Xet library sends cannot be bounded or watched from here.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import _http

    logger = logging.getLogger("huggingface_hub")
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(replaced(_http, "_GLOBAL_CLIENT", client))
        stack.enter_context(replaced(constants, "HF_HUB_DISABLE_XET", True))
        stack.enter_context(replaced(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True))
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield HfApi()
