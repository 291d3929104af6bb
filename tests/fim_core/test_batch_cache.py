"""Cached batches are found by the content of rows, whatever their memory layout and the other rows of the run."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fim_core.batch_cache import BatchCache
from fim_core.batches import by_export

SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("spans", pa.list_(pa.int32())),
        pa.field("number", pa.int64()),
        pa.field("flag", pa.bool_()),
    ]
)


def rows_of(export: str, count: int) -> list[dict[str, object]]:
    rng = Random(export)
    return [
        {
            "row_id": f"{export}-{number}",
            "text": rng.choice([None, "", "ü" * rng.randint(0, 9), f"{export} {number}"]),
            "spans": rng.choice([None, [], [1, number]]),
            "number": rng.choice([None, number]),
            "flag": number % 3 == 0,
        }
        for number in range(count)
    ]


def batch_of(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, SCHEMA)


class Work:
    """Counts the rows that are computed."""

    def __init__(self, folder: Path) -> None:
        self.cache = BatchCache(folder, "same options")
        self.rows = 0

    def prepare(self, table: Path) -> list[str]:
        made = []
        for batch in by_export(pq.ParquetFile(table).iter_batches(1024), 1024):
            found, is_new = self.cache.get_or_compute(batch.select(SCHEMA.names[1:]), lambda rows: rows)
            self.rows += len(batch) * is_new
            made += found.column("text").to_pylist()
        return made


def test_equal_rows_are_computed_once(tmp_path: Path) -> None:
    work = Work(tmp_path)
    rows = rows_of("a", 40)
    inside = batch_of(rows_of("b", 7) + rows + rows_of("c", 5)).slice(7, 40)
    without_nulls = batch_of([row | {"text": "x", "spans": [1], "number": 1} for row in rows])
    halves = pa.Table.from_batches([batch_of(rows[:13]), batch_of(rows[13:])]).combine_chunks().to_batches()[0]
    for batch, is_new in ((batch_of(rows), True), (inside, False), (halves, False), (without_nulls, True)):
        found, made = work.cache.get_or_compute(batch, lambda rows: rows)
        assert made == is_new
        assert found.equals(batch)
    room = [pa.Array.from_buffers(c.type, len(c), [pa.py_buffer(b"\xff" * 8), *c.buffers()[1:]]) for c in
            (without_nulls.column("text"), without_nulls.column("number"))]  # fmt: skip
    assert [array.null_count for array in room] == [0, 0]
    columns = {**dict(zip(SCHEMA.names, without_nulls.columns, strict=True)), "text": room[0], "number": room[1]}
    assert not work.cache.get_or_compute(pa.record_batch(list(columns.values()), schema=SCHEMA), lambda rows: rows)[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [("ab", "a"), (None, ""), ("\0", "")],
)
def test_other_rows_are_computed(one: str | None, other: str | None, tmp_path: Path) -> None:
    cache = BatchCache(tmp_path, "same options")
    for texts in ([one, other], [other, one], [one, one]):
        batch = pa.RecordBatch.from_pydict({"text": pa.array(texts, pa.string())})
        assert cache.get_or_compute(batch, lambda rows: rows)[1]


@pytest.mark.parametrize("names", ["abcdef", "fedcba", "cfaebd"])
def test_an_added_export_costs_exactly_its_rows(names: str, tmp_path: Path) -> None:
    """Exports of 1 to 3,000 rows that come one by one, before or after those that are there."""
    sizes = dict(zip("abcdef", (600, 1, 3000, 200, 1025, 2500), strict=True))
    work = Work(tmp_path / "cache")
    there: list[str] = []
    for name in names:
        there = sorted([*there, name])
        rows = [row for export in there for row in rows_of(export, sizes[export])]
        # Groups of the table hold rows of several exports.
        pq.write_table(pa.Table.from_batches([batch_of(rows)]), tmp_path / "table.parquet", row_group_size=1700)
        work.rows = 0
        made = work.prepare(tmp_path / "table.parquet")
        assert work.rows == sizes[name]
        assert made == [row["text"] for row in rows]


def test_batches_of_long_rows_do_not_depend_on_the_exports_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fim_core.batches.GROUP_BYTES", 300)
    work = Work(tmp_path / "cache")
    for before in (0, 1, 9, 50):
        work.rows = 0
        rows = rows_of("a", before) + rows_of("b", 700)
        pq.write_table(pa.Table.from_batches([batch_of(rows)]), tmp_path / "table.parquet", row_group_size=97)
        assert work.prepare(tmp_path / "table.parquet") == [row["text"] for row in rows]
        assert work.rows == (before if before else 700)
