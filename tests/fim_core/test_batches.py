"""Batches hold rows of one export; row groups are of even size."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim_core import batches
from fim_core.batches import GroupWriter, by_export


@given(st.lists(st.integers(1, 9), max_size=6), st.lists(st.integers(1, 7), min_size=1, max_size=9), st.integers(1, 5))
def test_batches_are_those_of_each_export_alone(sizes: list[int], cuts: list[int], rows: int) -> None:
    ids = [f"e{export}-{number}" for export, size in enumerate(sizes) for number in range(size)]
    table = pa.record_batch({"row_id": pa.array(ids, pa.string())})
    given_batches, start = [], 0
    while start < len(ids):
        given_batches.append(table.slice(start, cuts[len(given_batches) % len(cuts)]))
        start += len(given_batches[-1])
    expected = []
    for _, group in groupby(ids, key=lambda row_id: row_id.split("-")[0]):
        export = list(group)
        expected += [export[first : first + rows] for first in range(0, len(export), rows)]
    assert [batch.column("row_id").to_pylist() for batch in by_export(given_batches, rows)] == expected


def test_long_rows_end_a_batch_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "GROUP_BYTES", 100)
    rows = [pa.record_batch({"row_id": [f"e-{number}"], "text": ["x" * 60]}) for number in range(4)]
    assert [len(batch) for batch in by_export(rows, 100)] == [2, 2]


def test_small_batches_are_merged_into_row_groups(tmp_path: Path) -> None:
    batch = pa.record_batch({"a": pa.array([1, 2, 3], pa.int64())})
    with GroupWriter(tmp_path / "a.parquet", batch.schema, rows=7) as writer:
        for _ in range(8):
            writer.write(batch)
        writer.write(batch.slice(0, 0))
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [9, 9, 6]
    assert file.read().column("a").to_pylist() == [1, 2, 3] * 8
