"""Reading CSV files: the delimiter is detected, every value is text, and errors name the line.

Python's reader is used in strict mode. Arrow's is not faster here, and it accepts a file that ends inside a quoted value.
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

# JSON inside CSV has a doubled quote after a backslash, which is correct CSV.
_ESCAPED_QUOTE = re.compile(r'\\"(?!")')

DELIMITERS = (",", ";", "\t", "|")


def csv_columns(path: Path) -> tuple[str, ...]:
    """The names in the header line.

    Raises:
        EmptyExport: there is no header line.
        FimError: it cannot be read.
    """
    header = next(_rows(path), None)
    if header is None:
        raise EmptyExport(f"{path.name} is empty: it has no header line.")
    return tuple(header)


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows after the header. Blank lines are skipped.

    Raises:
        FimError: the file is not CSV, not UTF-8, truncated, or has a row with too few or too many values.
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
                        damaged = (
                            "The file is damaged or truncated, or a value that contains the delimiter is not quoted."
                        )
                        raise FimError(
                            f"{path.name}, line {lines.first}: {len(row)} values where the header has {width}. "
                            + (_BACKSLASH if lines.hold_backslash else damaged)
                        )
                    yield row
    except (UnicodeDecodeError, OSError, EOFError, pa.ArrowException) as error:
        raise cannot_read(path, error) from error


_BACKSLASH = 'Quotes in values seem to be escaped by a backslash (\\"); CSV doubles them (""). Export with doubled quotes, or as Parquet.'


def _next(reader: Iterator[list[str]], lines: _Lines, path: Path) -> list[str] | None:
    lines.begin()
    try:
        return next(reader, None)
    except csv.Error as error:
        ends_inside = "end of data" in str(error)
        # An unterminated value is reported at the line where it begins, any other error at the line where the reader stopped.
        line = lines.first if ends_inside else lines.read
        why = "a quoted value that begins in this row is not closed" if ends_inside else str(error)
        cure = _BACKSLASH if lines.hold_backslash else "Values with delimiters, quotes or line breaks must be quoted."
        raise FimError(f"{path.name}, line {line}, is not well-formed CSV: {why}. {cure}") from error


def _delimiter(path: Path) -> str:
    """The delimiter that splits the header into the most names; a comma if there is only one name."""
    with open_text(path, newline="") as file:
        header = next((line for line in file if line.strip()), "")
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


class _Lines:
    """The lines of a file, counted, with facts about the lines of the current row.

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
        """Start a new row with the next line."""
        self.first = self.read + 1
        self.hold_backslash = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self.read += 1
        self.hold_backslash |= _ESCAPED_QUOTE.search(line) is not None
        return line
