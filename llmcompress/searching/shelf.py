"""Finished weights on disk, each in each format, kept for plans to come and for the next search of the same model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llmcompress.compression.nncf.statistics import VERSIONED
from llmcompress.graph.integer_weights import IntegerWeight, codes_of, num_bits_of, packed
from llmcompress.loaders.loaded_model import LoadedModel
from llmcompress.report.record import CalibrationRecord
from llmcompress.spec.search import Format
from llmcompress.system.arrays import read_arrays
from llmcompress.system.cache import cache_dir, content_key, hold
from llmcompress.system.environment import installed_versions
from llmcompress.system.files import replace_file

KIND = "candidates"
"""Of entries in the cache."""


class Shelf(NamedTuple):
    """Weights that GPTQ made by one text, a file for each and format."""

    directory: Path

    def keep(self, name: str, wanted: Format, weight: IntegerWeight) -> None:
        """Put a weight there, whole or not at all."""
        import numpy as np

        content = io.BytesIO()
        zeros = weight.zero_points
        np.savez(
            content,
            codes=packed(weight.codes, num_bits_of(weight.element)),
            shape=np.array(weight.codes.shape),
            scales=weight.scales,
            element=np.array(weight.element),
            zero_points=np.empty(0, np.int16) if zeros is None else zeros,
        )
        replace_file(self._path(name, wanted), content.getvalue(), durable=False)

    def get(self, name: str, wanted: Format) -> IntegerWeight | None:
        """A weight, by its name in the checkpoint; None: it is not there, or damaged."""
        try:
            found = read_arrays(self._path(name, wanted))
            element, shape = str(found["element"]), tuple(map(int, found["shape"]))
            codes = codes_of(found["codes"], element, shape)
            zeros = found["zero_points"] if found["zero_points"].size else None
            return IntegerWeight(codes, found["scales"], zeros, element)
        except (OSError, ValueError, KeyError):
            return None

    def has(self, name: str, wanted: Format) -> bool:
        """Whether a weight is there."""
        return self._path(name, wanted).is_file()

    def lend(self, name: str, wanted: Format, to: Path) -> None:
        """Put a copy of a weight that is there into another directory, whole or not at all."""
        there = self._path(name, wanted)
        if there.is_file() and to != self.directory:
            replace_file(to / there.name, there.read_bytes(), durable=False)

    def take(self, directory: Path) -> None:
        """Move weights here that were lent to a directory."""
        for there in directory.glob("*.npz"):
            replace_file(self.directory / there.name, there.read_bytes(), durable=False)
            there.unlink()

    def note_whole(self, wanted: Format) -> None:
        """Note that all weights that take a format are there."""
        (self.directory / f"{wanted}.whole".replace(":", "-")).touch()

    def is_whole(self, wanted: Format) -> bool:
        """Whether they are."""
        return (self.directory / f"{wanted}.whole".replace(":", "-")).is_file()

    def _path(self, name: str, wanted: Format) -> Path:
        return self.directory / f"{hashlib.sha256(f'{name} {wanted}'.encode()).hexdigest()}.npz"


class OnShelf(Mapping[str, IntegerWeight]):
    """Weights of a shelf by their constants' names, each read when it is asked for."""

    def __init__(self, shelf: Shelf, formats: Mapping[str, tuple[str, Format]]) -> None:
        """Take the names in the checkpoint and the formats, by the constants' names."""
        self._shelf, self._formats = shelf, formats

    def __getitem__(self, constant: str) -> IntegerWeight:
        found = self._shelf.get(*self._formats[constant])
        if found is None:
            raise KeyError(constant)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._formats)

    def __len__(self) -> int:
        return len(self._formats)


def deciding_versions() -> dict[str, str]:
    """Of what decides how weights by GPTQ come out."""
    return installed_versions((*VERSIONED, "llmcompress"))


def shelf_of(loaded: LoadedModel, calibration: CalibrationRecord, otherwise: Path) -> Shelf:
    """The shelf of a model and a text in the cache, or at another place where the cache cannot be written."""
    key = {
        "files": [file.sha256 for file in loaded.provenance.files],
        "model_type": loaded.provenance.model_type,
        "token_ids": calibration.token_ids_sha256,
        "seed": calibration.seed,
        "versions": deciding_versions(),
    }
    directory = cache_dir() / KIND / content_key(key)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (probe := directory / ".writable").touch()
        probe.unlink()
    except OSError:
        otherwise.mkdir(parents=True, exist_ok=True)
        return Shelf(otherwise)
    hold(directory)
    return Shelf(directory)
