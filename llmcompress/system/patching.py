"""Replacing one attribute of a foreign library for the time of one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Set ``owner.name`` to ``value`` and put the original back, also after an error.

    Raises:
        KeyError: ``owner`` itself defines no ``name``: the library has moved it.
    """
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
