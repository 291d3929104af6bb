"""Near duplicates by MinHash against an exact all-pairs comparison."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fim_core.quality.check import Evidence, Finding
from fim_core.quality.fim_prompts import near_duplicates
from fim_core.quality.fim_prompts.near_duplicates import SIMILARITY, shingles_of
from fim_core.quality.tables import open_tables


def find(statements: list[str], folder: Path, splits: list[str] | None = None) -> Finding:
    rows = [
        {
            "row_id": f"r{number:04}",
            "prefix": statement[:5],
            "response": statement[5:9],
            "suffix": statement[9:],
            "split": splits[number] if splits else "train",
            "group": f"g{number}",
            "is_completion": True,
        }
        for number, statement in enumerate(statements)
    ]
    tables = {"fim_prompts": folder / "prompts.parquet"}
    pq.write_table(pa.Table.from_pylist(rows), tables["fim_prompts"])
    with open_tables(tables) as connection:
        return near_duplicates.find(Evidence(tables, {}, connection))


def statement(subject: str, words: int = 60) -> str:
    """Words that no statement on another subject shares."""
    return f"SELECT {', '.join(f'{subject}_{number}' for number in range(words))} FROM {subject};"


def test_finds_what_comparing_all_pairs_finds(tmp_path: Path) -> None:
    nearly = statement("a").replace("a_7,", "b_7,")
    half = statement("a", 30)
    texts = [statement("a"), nearly, half, statement("c"), statement("d").lower(), statement("d")]
    exact = {
        number
        for pair in itertools.combinations(range(len(texts)), 2)
        for number in pair
        if jaccard(*(texts[index] for index in pair)) >= SIMILARITY
    }
    assert exact == {0, 1, 4, 5}
    found = find(texts, tmp_path, ["train", "eval", "train", "train", "train", "eval"])
    assert (found.rows, found.total, found.row_ids) == (4, 6, ["r0000", "r0001", "r0004", "r0005"])
    assert found.breakdown == [{"split": "eval", "rows": 2, "total": 2}, {"split": "train", "rows": 2, "total": 4}]


def jaccard(a: str, b: str) -> float:
    first, second = shingles_of(a), shingles_of(b)
    return len(first & second) / len(first | second)


def test_rows_of_one_group_count_once(tmp_path: Path) -> None:
    found = find([statement("a"), statement("b")], tmp_path)
    assert (found.rows, found.total, found.note) == (0, 2, "")


def test_the_sample_is_bounded_and_the_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "SAMPLE", 20)
    found = find([statement(f"s{number}") for number in range(50)], tmp_path)
    assert (found.total, found.note) == (20, "The first 20 statements by digest were compared.")


def test_no_rows(tmp_path: Path) -> None:
    tables = {"fim_prompts": tmp_path / "prompts.parquet"}
    columns = ("row_id", "prefix", "response", "suffix", "split", "group")
    schema = pa.schema([*((name, pa.string()) for name in columns), ("is_completion", pa.bool_())])
    pq.write_table(schema.empty_table(), tables["fim_prompts"])
    with open_tables(tables) as connection:
        found = near_duplicates.find(Evidence(tables, {}, connection))
    assert (found.rows, found.total) == (0, 0)


def test_short_statements_have_a_shingle() -> None:
    assert shingles_of("SELECT 1") == {"select 1"}
    assert shingles_of("") == {""}
