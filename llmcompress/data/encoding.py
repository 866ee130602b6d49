"""Bytes of a text file -> text: UTF-8, or what its mark says; every other encoding is refused with its conversion."""

from __future__ import annotations

import codecs
import shlex
from pathlib import Path

from llmcompress.errors import DataError
from llmcompress.system.command_line import command_line

_MARKS = (
    # UTF-32's mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
_WIDE = {"utf_16_le": "UTF-16LE", "utf_16_be": "UTF-16BE", "utf_32_le": "UTF-32LE", "utf_32_be": "UTF-32BE"}
_LEGACY = {
    "cp1252": "CP1252",
    "cp932": "CP932",
    "euc_jp": "EUC-JP",
    "gb18030": "GB18030",
    "big5": "BIG5",
    "cp949": "CP949",
    "iso8859_2": "ISO-8859-2",
    "cp1250": "CP1250",
    "cp1251": "CP1251",
    "koi8_r": "KOI8-R",
    "koi8_u": "KOI8-U",
    "iso8859_5": "ISO-8859-5",
    "cp866": "CP866",
    "cp1253": "CP1253",
    "cp1254": "CP1254",
    "cp1255": "CP1255",
    "cp1256": "CP1256",
    "cp874": "CP874",
    "cp850": "CP850",
    "mac_roman": "MACINTOSH",
}
"""Python's names -> iconv's; of several that read a text as well, the first is taken."""
_NOISE = {"cp932": 0.05, "euc_jp": 0.05}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\f\r"))
_SAMPLE_BYTES = 1 << 16


def decode(raw: bytes, path: Path) -> str:
    """Return the text of a file without its mark.

    Args:
        path: Named in messages.

    Raises:
        DataError: It is in another encoding, damaged, or holds NUL characters; the hint has the command that converts.
    """
    codec = next((name for mark, name in _MARKS if raw.startswith(mark)), None)
    try:
        text = raw.decode(codec or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{raw[error.start]:02x} at offset {error.start} ({error.reason})"
        if codec:
            raise DataError(
                f"{codec} by its mark, but not throughout: {problem}",
                where=path.name,
                hint=f"what cannot be read is left out by: {_iconv(codec, path, '-c')}",
            ) from None
        raise DataError(f"not UTF-8: {problem}", where=path.name, hint=_remedy(raw, error.start, path)) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        hint = "write the file again without it" if codec else _without_nul(raw, path)
        raise DataError(f"a NUL character in line {line}, which no text has", where=path.name, hint=hint)
    return text


def _remedy(raw: bytes, offset: int, path: Path) -> str:
    """What makes UTF-8 of bytes that are none at ``offset``."""
    start = max(0, offset - 1024) // 4 * 4
    sample = raw[start : start + _SAMPLE_BYTES]
    if len(raw) > start + _SAMPLE_BYTES and b"\0" not in sample:
        # Not within a character.
        sample = sample[: sample.rfind(b"\n") + 1 or None]
    read = sample.decode("utf-8", "replace")
    unreadable = read.count("\ufffd")
    if sum(not character.isascii() for character in read) > 2 * unreadable:
        return f"most of it is UTF-8; what is not is left out by: {_iconv('UTF-8', path, '-c')}"
    wide = _detected(sample, _WIDE) if b"\0" in sample else None
    found = wide or _detected(sample, _LEGACY)
    if found is None:
        return f"name a file that holds text, or convert it with: {_iconv('ENCODING', path)}"
    return f"it reads as {found}; convert it with: {_iconv(found, path)}"


def _without_nul(raw: bytes, path: Path) -> str:
    """What makes text of bytes that hold NULs and are UTF-8 otherwise, or what a mark says."""
    sample = raw[:_SAMPLE_BYTES]
    # One byte in four is no character: letters in two or four bytes. Fewer NULs would make Chinese of ASCII.
    num_controls = len(sample) - len(sample.translate(None, _CONTROLS))
    found = _detected(sample, _WIDE) if num_controls * 4 > len(sample) else None
    if found:
        return f"it reads as {found} without a mark; convert it with: {_iconv(found, path)}"
    return f"if it is text, they are left out by: tr -d '\\000' < {shlex.quote(str(path))} > {_converted(path)}"


def _detected(sample: bytes, names: dict[str, str]) -> str | None:
    """The encoding that makes the best text of some bytes, by iconv's name; None where none makes text of them."""
    from charset_normalizer import from_bytes

    # By how much of it is noise, then by how much reads as a language. The noise of Japanese is its mixed scripts.
    matches = from_bytes(sample, cp_isolation=list(names))
    ranks = {
        name: (max(0.0, match.chaos - _NOISE.get(name, 0.0)), -match.coherence)
        for match in matches
        for name in match.could_be_from_charset
    }
    found = min((name for name in names if name in ranks), key=ranks.__getitem__, default=None)
    return names[found] if found else None


def _iconv(encoding: str, path: Path, *options: str) -> str:
    command = command_line(["iconv", *options, "-f", encoding, "-t", "UTF-8"], [str(path)])
    return f"{command} > {_converted(path)}"


def _converted(path: Path) -> str:
    return shlex.quote(str(path.with_name(f"{path.stem}.utf8{path.suffix}")))
