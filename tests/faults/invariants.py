"""What must hold after every fault, told from the files alone: nothing of the package is imported here.

A place has ``in`` (what a command reads), ``out`` (what it writes), ``cache``, ``home``, ``tmp`` and ``work``, where it
runs. What lies in ``out`` is taken apart into units, each of which appears whole: an artifact with what its manifest
lists, and every report beside or inside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from interception import Ended

MANIFEST = "llmcompress.json"
MEASURED = {"measured", "environment", "scored_tokens_per_s", "num_windows_resumed"}
"""Parts of a report that no two runs share, and how many windows an earlier run had left scored."""
TIMED = ("bench.json", "tune.json")
"""Reports of which no two runs share anything but that they are there, whole."""
FOREIGN_LINES = ("Traceback (most recent call last)", "Fatal Python error", "terminate called")


def digest(content: bytes) -> str:
    """The SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()


def tree(directory: Path) -> dict[str, str]:
    """Every file below a directory with its digest; links and what is no file with their kind."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = digest(path.read_bytes())
        else:
            found[name] = "directory"
    return found


def units(out: Path) -> dict[str, str]:
    """What is in ``out``, as it must be whole: the digest of each artifact and of each report.

    Raises:
        ValueError: An artifact is there that is not what its own manifest says, or a report that cannot be read.
    """
    found: dict[str, str] = {}
    listed: set[Path] = set()
    for manifest in sorted(out.rglob(MANIFEST)):
        if any(part.startswith(".") for part in manifest.relative_to(out).parts):
            continue  # Staged: not in place.
        directory = manifest.parent
        record = json.loads(manifest.read_bytes())
        for file in record["files"]:
            path = directory / file["path"]
            if digest(path.read_bytes()) != file["sha256"]:
                raise ValueError(f"{path} is not what the manifest says")
            listed.add(path)
        listed.add(manifest)
        files = sorted((file["path"], file["sha256"]) for file in record["files"])
        found[f"{directory.relative_to(out).as_posix()}/"] = digest(json.dumps([lasting(record), files]).encode())
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and path not in listed and not any(part.startswith(".") for part in Path(name).parts):
            found[name] = _report(path)
    return found


def _report(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".html" and not content.rstrip().endswith(b"</html>"):
        raise ValueError(f"{path} has no end")
    if path.suffix != ".json":
        return digest(content)
    record = json.loads(content)
    if path.name in TIMED:
        return "measured"
    manifest = path.with_name(MANIFEST)
    # The manifest says when it was written, so that its hash is another each time.
    of = record.pop("manifest_sha256", None) if manifest.is_file() else None
    if of is not None and of != digest(manifest.read_bytes()):
        raise ValueError(f"{path} is of another manifest")
    # Which run measured it is the only difference that two may have.
    return digest(json.dumps(lasting(record), sort_keys=True).encode())


def lasting(record: object) -> object:
    if isinstance(record, dict):
        return {name: lasting(value) for name, value in record.items() if name not in MEASURED}
    return [lasting(value) for value in record] if isinstance(record, list) else record


def said_badly(ended: Ended, codes: frozenset[int]) -> Iterator[str]:
    """What is wrong with how a run that failed said so."""
    if ended.outlived:
        yield "a process outlived its parent"
    if ended.returncode < 0:
        return  # It was killed and could say nothing.
    if ended.returncode not in codes:
        yield f"exit code {ended.returncode}, not one of {sorted(codes)}"
    text = ended.stderr + ended.stdout
    yield from (f"it printed {line!r}" for line in FOREIGN_LINES if line in text)
    if not re.search(r"^error: \S", ended.stderr, re.MULTILINE):
        yield "no line says what went wrong"
    if not re.search(r"^hint: \S", ended.stderr, re.MULTILINE):
        yield "no line says what to do next"


def leaks(place: Path, ended: Ended, secret: str) -> Iterator[str]:
    """Where a secret stands that nobody may see: whole, its first characters, or in base64."""
    forms = [secret.encode(), secret[:12].encode(), base64.b64encode(secret.encode())]
    for name, content in (("stdout", ended.stdout.encode()), ("stderr", ended.stderr.encode())):
        if any(form in content for form in forms):
            yield f"the token is in {name}"
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink() and any(form in path.read_bytes() for form in forms):
            yield f"the token is in {path.relative_to(place)}"
