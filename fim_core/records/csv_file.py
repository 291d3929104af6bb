"""CSV as exports write it: the delimiter is recognised, every value is text, and a fault is named with its line.

Python's own reader is used in its strict mode. Arrow's is no faster here and lets a file that ends inside a quoted value
pass; here a value's line breaks and doubled quotes come out exactly.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from fim_core.errors import FimError
from fim_core.records.text_file import EmptyExport, cannot_read, open_text

# In JSON within CSV the quote behind a backslash is doubled.
_ESCAPED_QUOTE = re.compile(r'\\"(?!")')

DELIMITERS = (",", ";", "\t", "|")


def csv_columns(path: Path) -> tuple[str, ...]:
    """The names in the header line.

    Raises:
        EmptyExport: the file has none.
        FimError: it cannot be read.
    """
    header = next(_rows(path), None)
    if header is None:
        raise EmptyExport(f"{path.name} is empty: it has no header line.")
    return tuple(header)


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows after the header; a line without anything on it is no row.

    Raises:
        FimError: the file is not CSV, not UTF-8, cut short, or has a row with too few or too many values.
    """
    rows = _rows(path)
    next(rows)
    return rows


def _rows(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    width = 0
    try:
        with open_text(path, newline="") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=_delimiter(path), strict=True)
            while (row := _next(reader, lines, path)) is not None:
                if row:
                    width = width or len(row)
                    if len(row) != width:
                        damaged = "The file is damaged or cut short, or a value with the delimiter in it is not quoted."
                        raise FimError(
                            f"{path.name}, line {lines.first}: {len(row)} values where the header has {width}. "
                            + (_BACKSLASH if lines.hold_backslash else damaged)
                        )
                    yield row
    except (UnicodeDecodeError, OSError, EOFError, pa.ArrowException) as error:
        raise cannot_read(path, error) from error


_BACKSLASH = 'Quotes in values seem to be escaped by a backslash (\\"); CSV doubles them (""). Export the file so, or as Parquet.'


def _next(reader: Iterator[list[str]], lines: _Lines, path: Path) -> list[str] | None:
    lines.begin()
    try:
        return next(reader, None)
    except csv.Error as error:
        ends_inside = "end of data" in str(error)
        # A value that never ends is at fault where it begins; everything else where the reader stopped.
        line = lines.first if ends_inside else lines.read
        why = "a quoted value begins in this row and never ends" if ends_inside else str(error)
        cure = _BACKSLASH if lines.hold_backslash else "Values with delimiters, quotes or line breaks must be quoted."
        raise FimError(f"{path.name}, line {line}, is not well-formed CSV: {why}. {cure}") from error


def _delimiter(path: Path) -> str:
    """The delimiter that divides the header into the most names; a comma where none divides it."""
    with open_text(path, newline="") as file:
        header = next((line for line in file if line.strip()), "")
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


class _Lines:
    """The lines of a file, counted, with what is to be known of those of the row that is being read.

    Attributes:
        read: lines read so far.
        first: number of the row's first line.
        hold_backslash: whether a quote follows a backslash in the row.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.read = 0
        self.begin()

    def begin(self) -> None:
        """A new row begins with the next line."""
        self.first = self.read + 1
        self.hold_backslash = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.read += 1
        self.hold_backslash |= _ESCAPED_QUOTE.search(line) is not None
        return line
