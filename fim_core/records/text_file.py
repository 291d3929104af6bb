"""Opening compressed or plain text files, and errors for unreadable ones."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa

from fim_core.errors import FimError


class EmptyExport(FimError):
    """A file without any content, not even a header."""


def open_text(path: Path, newline: str) -> io.TextIOWrapper:
    """Open a file as UTF-8 text, decompressed by its suffix, without its byte-order mark and with line breaks unchanged.

    Lines end at `newline`; empty: at any of \\n, \\r and \\r\\n, as the csv module requires.
    """
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline=newline)


def open_bytes(path: Path) -> io.BufferedReader:
    """Bytes of a file, decompressed by its suffix."""
    # Arrow detects only lower-case suffixes.
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    return io.BufferedReader(pa.input_stream(str(path), compression=compression, buffer_size=2**20), 2**20)


def cannot_read(path: Path, error: Exception) -> FimError:
    """The error for a file that cannot be read. It leaves out decoders' messages, which may quote the file."""
    if isinstance(error, UnicodeDecodeError):
        return FimError(f"{path.name}{_undecodable_line(path)} is not UTF-8. Save it as UTF-8, for example with iconv.")
    return FimError(f"{path.name} cannot be read: it is damaged or truncated ({type(error).__name__}).")


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
    """Whether an uncompressed file is UTF-8 text."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return False
    return True
