"""Opening text files of any compression, and what to say of those that cannot be read."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa

from fim_core.errors import FimError


class EmptyExport(FimError):
    """A file without anything in it, not even a header."""


def open_text(path: Path, newline: str) -> io.TextIOWrapper:
    """Text of a file, a byte-order mark dropped, decompressed by its suffix, no line break changed.

    Lines end at `newline`; empty: at any of \\n, \\r and \\r\\n, as the csv module wants it.
    """
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline=newline)


def open_bytes(path: Path) -> io.BufferedReader:
    """Bytes of a file, decompressed by its suffix."""
    # Arrow guesses the compression by a lower-case suffix.
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    return io.BufferedReader(pa.input_stream(str(path), compression=compression, buffer_size=2**20), 2**20)


def cannot_read(path: Path, error: Exception) -> FimError:
    """The fault in words; decoders' own messages are left out where they may quote the file."""
    if isinstance(error, UnicodeDecodeError):
        return FimError(f"{path.name}{_undecodable_line(path)} is not UTF-8. Save it as UTF-8, for example with iconv.")
    return FimError(f"{path.name} cannot be read: it is damaged or cut short ({type(error).__name__}).")


def _undecodable_line(path: Path) -> str:
    """`, line N,` of the first line that is not UTF-8."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number},"
    return ""


def is_utf8(path: Path) -> bool:
    """Whether a file that is not compressed is UTF-8 text."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
