"""Slices and samples of a source, compared with a naive implementation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from fim_core.config.data import DataConfig
from fim_core.errors import FimError
from fim_core.records.sources import RawCounts, digest_sources, write_raw_completions

ROWS = 57


def export(path: Path, rows: range = range(ROWS)) -> Path:
    values = [f"p{number}" for number in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"prompt": values, "response": values}), path, row_group_size=10)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"prompt": value, "response": value}) + "\n" for value in values))
    elif path.suffix == ".csv":
        path.write_text("prompt,response\n" + "".join(f"{value},{value}\n" for value in values))
    else:
        DatasetDict({"train": Dataset.from_dict({"prompt": values, "response": values})}).save_to_disk(str(path))
    return path


def read(folder: Path, *sources: dict[str, Any], **options: Any) -> tuple[list[dict[str, Any]], RawCounts]:
    folder.mkdir(exist_ok=True)
    counts = write_raw_completions(
        DataConfig.model_validate({"sources": list(sources), **options}), folder / "raw.parquet"
    )
    return pq.read_table(folder / "raw.parquet").to_pylist(), counts


def naive(values: list[str], start: int, stop: int, sample: int | None, seed: int) -> list[str]:
    """The slice as a list, then the sample as ArcticTraining draws it, in the order of the rows."""
    rows = list(range(len(values)))[start:stop]
    if sample is not None:
        rows = sorted(rows[at] for at in random.Random(seed).sample(range(len(rows)), min(sample, len(rows))))
    return [values[row] for row in rows]


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.jsonl", "saved"])
@pytest.mark.parametrize(
    ("options", "start", "stop", "sample", "seed"),
    [
        ({"split": "train[10:20]"}, 10, 20, None, 0),
        ({"sample_count": 9}, 0, ROWS, 9, 42),
        ({"sample_count": 9, "sample_seed": 3}, 0, ROWS, 9, 3),
        ({"sample_ratio": 0.5}, 0, ROWS, ROWS // 2, 42),
        ({"split": "train[-20:]", "sample_ratio": "25%", "sample_seed": 1}, ROWS - 20, ROWS, 5, 1),
        ({"split": "train[:10%]"}, 0, 6, None, 0),
    ],
)
def test_the_rows_are_those_of_a_naive_reading(
    tmp_path: Path, name: str, options: dict[str, Any], start: int, stop: int, sample: int | None, seed: int
) -> None:
    path = export(tmp_path / name)
    rows, counts = read(tmp_path / "out", {"name_or_path": str(path), **options})
    wanted = naive([f"p{number}" for number in range(ROWS)], start, stop, sample, seed)
    assert [row["input"] for row in rows] == wanted
    assert (counts.rows, counts.left_out, counts.exports[0].rows) == (len(wanted), ROWS - len(wanted), len(wanted))
    everything, _ = read(tmp_path / "all", {"name_or_path": str(path)})
    ids = {row["input"]: row["row_id"] for row in everything}
    assert [row["row_id"] for row in rows] == [ids[value] for value in wanted]


def test_a_source_of_several_files_is_sampled_as_one(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    export(tmp_path / "many/a.csv", range(30))
    export(tmp_path / "many/b.parquet", range(30, ROWS))
    rows, counts = read(
        tmp_path / "out", {"name_or_path": str(tmp_path / "many"), "split": "train[20:50]", "sample_count": 7}
    )
    assert [row["input"] for row in rows] == naive([f"p{number}" for number in range(ROWS)], 20, 50, 7, 42)
    assert counts.left_out == ROWS - 7


def test_batches_are_cut_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fim_core.records.readers.BATCH_ROWS", 4)
    rows, _ = read(
        tmp_path / "out", {"name_or_path": str(export(tmp_path / "d.csv")), "split": "train[3:50]", "sample_count": 20}
    )
    assert [row["input"] for row in rows] == naive([f"p{number}" for number in range(ROWS)], 3, 50, 20, 42)


def test_rows_of_one_file_are_shared_out_by_slices(tmp_path: Path) -> None:
    path = str(export(tmp_path / "d.csv"))
    rows, counts = read(
        tmp_path / "out",
        {"name_or_path": path, "split": "train[:50]"},
        eval_sources=[{"name_or_path": path, "split": "train[50:]"}],
    )
    assert [row["held_out"] for row in rows] == [False] * 50 + [True] * 7
    assert len({row["row_id"] for row in rows}) == ROWS
    assert counts.warnings == []
    overlapping = [{"name_or_path": path, "split": split} for split in ("train[:30]", "train[20:]")]
    assert "rows are read twice" in read(tmp_path / "twice", *overlapping)[1].warnings[0]


def test_a_sample_larger_than_the_source_takes_all_with_a_warning(tmp_path: Path) -> None:
    rows, counts = read(tmp_path / "out", {"name_or_path": str(export(tmp_path / "d.csv")), "sample_count": 100})
    assert (len(rows), counts.left_out) == (ROWS, 0)
    assert "sample_count is 100, but there are 57 rows" in counts.warnings[0]


@pytest.mark.parametrize("options", [{"split": "train[60:]"}, {"sample_ratio": 0.001}])
def test_an_empty_selection_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(FimError, match=r"leave none of 57 rows"):
        read(tmp_path / "out", {"name_or_path": str(export(tmp_path / "d.csv")), **options})


@pytest.mark.parametrize(
    "change", [{"sample_count": 5}, {"sample_ratio": 0.5}, {"split": "train[:5]"}, {"sample_seed": 1}]
)
def test_the_digest_covers_the_selection(tmp_path: Path, change: dict[str, Any]) -> None:
    source = {"name_or_path": str(export(tmp_path / "d.csv"))}
    digests = {digest_sources(DataConfig.model_validate({"sources": [each]})) for each in (source, source | change)}
    assert len(digests) == 2


def test_arguments_reach_the_library(tmp_path: Path) -> None:
    """`json` is a loader that comes with the library and needs no network."""
    path = export(tmp_path / "d.jsonl")
    source = {"name_or_path": "json", "kwargs": {"data_files": str(path)}, "split": "train[:5]"}
    rows, _ = read(tmp_path / "out", source, cache_dir=str(tmp_path / "cache"))
    assert [row["input"] for row in rows] == [f"p{number}" for number in range(5)]
    with pytest.raises(FimError, match="`kwargs` goes with a data set of a hub"):
        read(tmp_path / "out", {"name_or_path": str(path), "kwargs": {"revision": "main"}})
    with pytest.raises(ValueError, match="trust_remote_code is not allowed"):
        DataConfig.model_validate({"sources": [{"name_or_path": "a/b", "kwargs": {"trust_remote_code": True}}]})


def test_chat_rows_as_in_arctic_training(tmp_path: Path) -> None:
    turns = [{"from": "human", "body": "q", "text": "no"}, {"from": "gpt", "body": "a", "text": "no"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"talk": turns, "user": "u", "assistant": "v"}) + "\n")
    mapping = {"user": "talk.from.human", "assistant": "talk.from.gpt"}
    common = {"name_or_path": str(tmp_path / "c.jsonl"), "type": "huggingface_instruct"}
    (row,), _ = read(tmp_path / "a", common | {"role_mapping": mapping, "content_key": "body"})
    assert [turn["content"] for turn in json.loads(row["input"])] == ["q", "a"]
    (row,), _ = read(tmp_path / "b", common)
    assert json.loads(row["input"]) == [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
