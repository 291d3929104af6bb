"""Conversion of values to text: as written if the format preserves that, JSON for nested values, empty for null."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

READ_ROWS = 128
"""Rows read at once from an Arrow or Parquet file: few enough for rows of 100 KB."""

BATCH_BYTES = 32 * 2**20
"""Limit of a batch in bytes, unless it is a single row."""


class Number(str):
    """A JSON number (or NaN, Infinity) as written."""


def text_of(value: Any) -> str:
    """A JSON value as text: strings unchanged, null as empty, numbers as written, anything else as JSON."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str) else json_text(value)


def json_text(value: Any) -> str:
    """JSON text of a value, with numbers as written.

    Half of a surrogate pair stays an escape, so that the text can be stored and parsing can reject it.
    """
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(str(key))}: {json_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, value)) + "]"
    text = json.dumps(value, ensure_ascii=False, default=_python_text)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return json.dumps(value)
    return text


def text_batches(columns: tuple[str, ...], batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[pa.RecordBatch]:
    """Batches of any types as batches of strings without nulls, of at most BATCH_BYTES or one row.

    Text is exact; numbers, booleans and times in Arrow's own notation; nested values as JSON; bytes as
    text where they are UTF-8, else in hex.

    Raises:
        pyarrow.ArrowInvalid: a text is not UTF-8, or a column is damaged in another way.
        pyarrow.ArrowCapacityError: a value has over 2 GB.
    """
    for batch in batches:
        for part in _halves(batch):
            yield pa.RecordBatch.from_arrays([_text_array(column) for column in part.columns], names=list(columns))


def _halves(batch: pa.RecordBatch | pa.Table) -> Iterator[pa.RecordBatch | pa.Table]:
    rows = batch.num_rows
    if rows <= 1 or batch.nbytes <= BATCH_BYTES:
        yield batch
    else:
        yield from _halves(batch.slice(0, rows // 2))
        yield from _halves(batch.slice(rows // 2))


def _text_array(array: pa.Array | pa.ChunkedArray) -> pa.StringArray:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    # Reading a file does not validate its text.
    array.validate(full=True)
    if pa.types.is_nested(array.type):
        return pa.array([text_of(value.as_py()) for value in array], pa.string())
    try:
        text = pc.cast(array, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        text = pa.array(map(_python_text, array.to_pylist()), pa.string())
    return pc.fill_null(text, "")


def _python_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    return None if value is None else str(value)
