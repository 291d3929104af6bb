"""Values of any type as text: what was written where the format keeps it, JSON for nested values, empty for null."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


class Number(str):
    """A JSON number (or NaN, Infinity) as it was written."""


def text_of(value: Any) -> str:
    """A JSON value as text: a text as it is, null as empty, a number as written, anything else as JSON."""
    if value is None:
        return ""
    return str(value) if isinstance(value, str) else json_text(value)


def json_text(value: Any) -> str:
    """JSON text of a value, its numbers as they were written.

    Half of a surrogate pair stays an escape, so that the text can be stored and whoever reads it sees the fault.
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


def text_array(array: pa.Array | pa.ChunkedArray) -> pa.StringArray:
    """An Arrow column of any type as strings without nulls.

    Texts of every kind (also dictionary-encoded) are exact; numbers, booleans and times in Arrow's own notation; nested
    values as JSON; bytes as text where they are UTF-8, else in hex.

    Raises:
        pyarrow.ArrowInvalid: a text is not UTF-8, or the column is damaged in another way.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    # Files are read without a look at their texts.
    array.validate(full=True)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_nested(array.type):
        return pa.array([text_of(value) for value in array.to_pylist()], pa.string())
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
