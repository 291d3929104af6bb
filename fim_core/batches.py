"""Batching and writing of rows in Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

GROUP_ROWS = 8192
GROUP_BYTES = 32 * 2**20
"""A row group ends at whichever limit it reaches first, so that memory is bounded with long rows too."""

_ROW_NUMBER = r"[0-9]+$"


def by_export(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of at most `rows` rows, none of which holds rows of two exports.

    Batches end earlier if their texts reach GROUP_BYTES. So the batches of an export do not depend on other exports. A row's
    export is its `row_id` without the number at the end; the rows of one export are consecutive.
    """
    waiting: list[pa.RecordBatch] = []
    count = size = 0
    export = None
    for batch in batches:
        ends = np.cumsum(_text_bytes(batch))
        names = pc.run_end_encode(pc.replace_substring_regex(batch.column("row_id"), _ROW_NUMBER, ""))
        bounds = [0, *names.run_ends.to_pylist()]
        for name, (start, end) in zip(names.values.to_pylist(), pairwise(bounds), strict=True):
            if waiting and name != export:
                yield _joined(waiting)
                waiting, count, size = [], 0, 0
            export = name
            while start < end:
                before = int(ends[start - 1]) if start else 0
                full = int(np.searchsorted(ends, before + GROUP_BYTES - size)) + 1
                piece = batch.slice(start, min(end, start + rows - count, full) - start)
                waiting.append(piece)
                start, count = start + len(piece), count + len(piece)
                size += int(ends[start - 1]) - before
                if count == rows or size >= GROUP_BYTES:
                    yield _joined(waiting)
                    waiting, count, size = [], 0, 0
    if waiting:
        yield _joined(waiting)


def _text_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Bytes of each row's texts, int64 [rows]."""
    total = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        if pa.types.is_string(column.type):
            total += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return total


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


class GroupWriter:
    """Writes a Parquet file in row groups of even size, whatever the size of the batches."""

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        *,
        rows: int = GROUP_ROWS,
        use_dictionary: bool | Sequence[str] = True,
    ) -> None:
        self._schema = schema
        self._rows = rows
        self._file = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=use_dictionary)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = self._waiting_bytes = 0

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        if not len(batch):
            return
        self._waiting.append(batch)
        self._waiting_rows += len(batch)
        self._waiting_bytes += batch.nbytes
        if self._waiting_rows >= self._rows or self._waiting_bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting = []
        self._waiting_rows = self._waiting_bytes = 0
