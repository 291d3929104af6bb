"""Reading export files verbatim: every value as text, streamed in batches, in the file's order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fim_core.errors import FimError
from fim_core.prompt_format.recipe import Recipe, recipe_of
from fim_core.records.csv_file import csv_columns, csv_rows
from fim_core.records.parquet_file import is_parquet, parquet_rows, parquet_schema
from fim_core.records.text import Number, text_of
from fim_core.records.text_file import EmptyExport, cannot_read, open_text

BATCH_ROWS = 8192
BATCH_CHARACTERS = 32 * 2**20
"""A batch ends at whichever limit it reaches first, so that memory is bounded with long rows too."""

MOST_COLUMNS = 1000
"""Limit for an export. JSON lines with data as keys would have as many columns as rows."""

CSV_SUFFIXES = (".csv", ".csv.gz", ".csv.zst")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
PARQUET_SUFFIXES = (".parquet",)
DATA_SUFFIXES = CSV_SUFFIXES + JSON_SUFFIXES + PARQUET_SUFFIXES

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """One file or data set to read rows from.

    name: value of the `source` column: the file's path below the given folder, or the data set's id.
    columns: names of the columns, as written.
    digest: computes the SHA-256 of the bytes, in hex.
    batches: reads the rows: batches of string columns without nulls, in the order of `columns`. Takes a function
        for warnings.
    generated: made by this package: the columns are TYPE, INPUT and OUTPUT, whatever the source's options say.
    whole: small enough for memory, slow to generate, and picklable: worker processes read it.
    recipe: how its finished prompts were built; None if not recorded.
    """

    name: str
    columns: tuple[str, ...]
    digest: Callable[[], str]
    batches: Callable[[Warn], Iterator[pa.RecordBatch]]
    generated: bool = False
    whole: bool = False
    recipe: Recipe | None = None


def read_file(path: Path, name: str) -> Export:
    """A CSV, JSON-lines or Parquet file, recognised by its suffix, or Parquet of any name, by its first bytes.

    Raises:
        EmptyExport: it is empty.
        FimError: it cannot be read, or its first row is not in the format of its suffix.
    """
    lower = path.name.lower()
    recipe = None
    if lower.endswith(PARQUET_SUFFIXES) or (not lower.endswith(DATA_SUFFIXES) and is_parquet(path)):
        schema = parquet_schema(path)
        columns, batches, recipe = tuple(schema.names), parquet_rows, recipe_of(schema, name)
    elif lower.endswith(CSV_SUFFIXES):
        columns, batches = csv_columns(path), _csv_batches
    else:
        columns, batches = _json_columns(path), _json_batches
    if len(columns) > MOST_COLUMNS:
        raise _too_many_columns(path)
    return Export(name, columns, lambda: digest_files([path]), lambda warn: batches(path, columns), recipe=recipe)


def _too_many_columns(path: Path) -> FimError:
    return FimError(
        f"{path.name} has more than {MOST_COLUMNS:,} columns (different keys, in JSON lines). Export only the columns that "
        "are needed; put data such as ids into values, not keys."
    )


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, in hex."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def text_batch(columns: tuple[str, ...], rows: list[list[str]]) -> pa.RecordBatch:
    """Rows of text as a batch."""
    return pa.RecordBatch.from_arrays(
        [pa.array(values, pa.string()) for values in zip(*rows, strict=True)], names=list(columns)
    )


def batches_of(columns: tuple[str, ...], rows: Iterable[list[str]]) -> Iterator[pa.RecordBatch]:
    """Rows of text in batches of bounded size."""
    batch: list[list[str]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(map(len, row))
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield text_batch(columns, batch)
            batch, characters = [], 0
    if batch:
        yield text_batch(columns, batch)


def _csv_batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    return batches_of(columns, csv_rows(path))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice in one object")
    return value


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """One object a line, numbers as written.

    Raises:
        FimError: a line is not a JSON object, or the file is not UTF-8 or truncated.
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=_unique_keys, parse_int=Number, parse_float=Number, parse_constant=Number
    )
    line = 0
    try:
        with open_text(path, newline="\n") as file:
            for text in file:
                line += 1
                if not text.strip():
                    continue
                row = decoder.decode(text)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                if "\\u" in text:
                    _require_text(row, path, line)
                yield row
    except (UnicodeDecodeError, OSError, EOFError, pa.ArrowException) as error:
        raise cannot_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise FimError(
            f"{path.name}, line {line}, is not a JSON object with each key once. JSON lines hold one object a line."
        ) from error


def _require_text(row: dict[str, Any], path: Path, line: int) -> None:
    try:
        for part in (*row, *(value for value in row.values() if isinstance(value, str))):
            part.encode()
    except UnicodeEncodeError as error:
        raise FimError(
            f"{path.name}, line {line}, holds half of a surrogate pair (\\ud800 to \\udfff), which is no text. Have the "
            "exporter write both halves, or remove the line."
        ) from error


def _json_columns(path: Path) -> tuple[str, ...]:
    # Lines may differ in their keys, so all lines are read once to find every column.
    columns: dict[str, None] = {}
    for row in _json_rows(path):
        columns.update(dict.fromkeys(row))
        if len(columns) > MOST_COLUMNS:
            raise _too_many_columns(path)
    if not columns:
        raise EmptyExport(f"{path.name} is empty: it holds no JSON object.")
    return tuple(columns)


def _json_batches(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    yield from batches_of(columns, ([text_of(row.get(column)) for column in columns] for row in _json_rows(path)))
