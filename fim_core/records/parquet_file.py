"""Reading Parquet files as text, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.errors import FimError
from fim_core.records.text import READ_ROWS, text_batches
from fim_core.records.text_file import EmptyExport, cannot_read

PARQUET_MAGIC = b"PAR1"
"""The first bytes of a Parquet file."""

_ARROW_SCHEMA = b"ARROW:schema"


def is_parquet(path: Path) -> bool:
    """Whether a file begins with the magic bytes of Parquet."""
    with path.open("rb") as file:
        return file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC


def parquet_schema(path: Path) -> pa.Schema:
    """The Arrow schema, with its metadata.

    Raises:
        EmptyExport: the file is empty.
        FimError: it cannot be read.
    """
    if path.stat().st_size == 0:
        raise EmptyExport(f"{path.name} is empty.")
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise cannot_read(path, error) from error


def parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The rows as batches of strings without nulls, in the file's order.

    Memory is that of a few megabytes of text, or of the longest value, plus one page of each column.

    Raises:
        FimError: the file cannot be read, or holds a value of over 2 GB.
    """
    types = parquet_schema(path).types
    try:
        metadata = _metadata_without_arrow_schema(path)
        with pq.ParquetFile(path, metadata=metadata, buffer_size=2**20, pre_buffer=False) as file:
            batches = file.iter_batches(batch_size=READ_ROWS, use_threads=False)
            yield from text_batches(columns, (_with_times(batch, types) for batch in batches))
    except pa.ArrowCapacityError as error:
        raise FimError(
            f"{path.name} holds a value of over 2 GB, the limit of a text. Shorten it, or remove the row."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise cannot_read(path, error) from error


def _metadata_without_arrow_schema(path: Path) -> pq.FileMetaData:
    """The footer without the Arrow types that a writer may have put there next to the Parquet types.

    By these types, Arrow reads a dictionary column with all values of a row group at once, several times over, however
    small a batch is asked for. Arrow has no option to ignore them, so their key gets another name of the same length.
    """
    with path.open("rb") as file:
        file.seek(-8, 2)
        size = file.read(4)
        file.seek(-8 - int.from_bytes(size, "little"), 2)
        footer = file.read(int.from_bytes(size, "little"))
    hidden = footer.replace(_ARROW_SCHEMA, _ARROW_SCHEMA.lower())
    return pq.read_metadata(pa.BufferReader(PARQUET_MAGIC + hidden + size + PARQUET_MAGIC))


def _with_times(batch: pa.RecordBatch, types: list[pa.DataType]) -> pa.RecordBatch:
    """A batch with the time zones and units of its Arrow types: only these show in a text and are not Parquet's own."""
    columns = [
        column.cast(type_) if pa.types.is_temporal(type_) else column
        for column, type_ in zip(batch.columns, types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
