"""Daily exports: which files belong to which day, windows, and single days."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from object_server import Bucket
from pydantic import ValidationError

from fim_core.config.data import DataConfig, Source
from fim_core.errors import FimError
from fim_core.object_storage.listing import Listing, list_files
from fim_core.records import dated
from fim_core.records.dated import dates_of, day_of, days_to_read
from fim_core.records.sources import digest_sources, write_raw_completions


def write(path: Path, *outputs: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("INPUT,OUTPUT\n" + "".join(f"x,{output}\n" for output in outputs))


def rows(data: DataConfig, folder: Path) -> list[tuple[str, str]]:
    """(name of the export, output) of every row."""
    write_raw_completions(data, folder / "raw.parquet")
    table = pq.read_table(folder / "raw.parquet", columns=["source", "output"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def data_of(pattern: str, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"name_or_path": pattern}], **options})


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """Three days; another folder, a date that no calendar has, and a file that is no export."""
    for day in ("2026-02-27", "2026-03-01", "2026-03-02"):
        write(tmp_path / day / "rows.csv", f"of {day}")
        write(tmp_path / f"log-{day}.csv", f"log of {day}")
    write(tmp_path / "2026-02-30" / "rows.csv", "of no day")
    write(tmp_path / "latest" / "rows.csv", "of no day")
    (tmp_path / "2026-03-02" / "notes.txt").write_text("no export")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "path", "day"),
    [
        ("exports/{date}/*.csv", "exports/2026-03-01/a.csv", "2026-03-01"),
        ("exports/{date}/*.csv", "exports/2026-03-01/deeper/a.csv", "2026-03-01"),
        ("exports/{date}", "exports/2026-03-01", "2026-03-01"),
        ("exports/date={date}/**/*.parquet", "exports/date=2026-03-01/x/y/a.parquet", "2026-03-01"),
        ("exports/*/log-{date}*.csv", "exports/eu/log-2026-03-01-part1.csv", "2026-03-01"),
        ("{date}/log-{date}.csv", "2026-03-01/log-2026-03-01.csv", "2026-03-01"),
        ("{date}/log-{date}.csv", "2026-03-01/log-2026-03-02.csv", None),
        ("exports/{date}/*.csv", "exports/2026-02-30/a.csv", None),
        ("exports/{date}/*.csv", "exports/20260301/a.csv", None),
        ("exports/{date}/*.csv", "other/2026-03-01/a.csv", None),
        ("exports/{date}/*.csv", "exports", None),
        ("s3://logs/exports/{date}/*.csv", "s3://logs/exports/2026-03-01/a.csv", "2026-03-01"),
        ("s3://logs/{date}", "s3://logs/2026-03-01/deeper/a.csv", "2026-03-01"),
        ("s3://logs/{date}/*.csv", "s3://other/2026-03-01/a.csv", None),
        ("s3://logs/{date}/*.csv", "logs/2026-03-01/a.csv", None),
    ],
)
def test_the_day_of_a_path(pattern: str, path: str, day: str | None) -> None:
    assert day_of(Source(name_or_path=pattern), path) == (date.fromisoformat(day) if day else None)


@pytest.mark.parametrize("pattern", ["{date}/*.csv", "{date}"])
def test_all_days_are_read_in_order(exports: Path, pattern: str) -> None:
    days = ("2026-02-27", "2026-03-01", "2026-03-02")
    data = data_of(f"{exports}/{pattern}")
    assert [str(day) for day in dates_of(data)] == list(days)
    assert rows(data, exports) == [(f"{day}/rows.csv", f"of {day}") for day in days]


def test_a_date_in_a_file_name(exports: Path) -> None:
    assert [output for _, output in rows(data_of(f"{exports}/log-{{date}}.csv", window=1), exports)] == [
        "log of 2026-03-02"
    ]


@pytest.mark.parametrize(("window", "read"), [(1, 1), (2, 2), (3, 2), (4, 3), (400, 3)])
def test_a_window_counts_days_back_from_the_newest_export(exports: Path, window: int, read: int) -> None:
    assert len(rows(data_of(f"{exports}/{{date}}/*.csv", window=window), exports)) == read


def test_the_version_follows_the_exports_in_the_window(exports: Path) -> None:
    data = data_of(f"{exports}/{{date}}/*.csv", window=2)
    before = digest_sources(data)
    write(exports / "2026-02-27" / "rows.csv", "changed, but out of the window")
    assert digest_sources(data) == before
    write(exports / "2026-03-03" / "rows.csv", "new")
    assert digest_sources(data) != before


def test_a_day_has_the_rows_and_ids_that_it_has_among_all_days(exports: Path) -> None:
    write(exports / "old.csv", "without a date")
    data = DataConfig.model_validate(
        {
            "sources": [{"name_or_path": f"{exports}/{{date}}/*.csv"}, str(exports / "old.csv")],
            "eval_sources": [str(exports / "log-2026-03-01.csv")],
        }
    )
    write_raw_completions(data, exports / "all.parquet")
    table = pq.read_table(exports / "all.parquet").to_pylist()
    assert len(table) == 5
    write_raw_completions(data.of_day(date(2026, 3, 1)), exports / "day.parquet")
    assert pq.read_table(exports / "day.parquet").to_pylist() == table[1:2]
    assert data.day is None
    assert days_to_read(data) is None


def test_a_day_without_an_export_is_reported(exports: Path) -> None:
    data = data_of(f"{exports}/{{date}}/*.csv")
    for read in (digest_sources, lambda day: write_raw_completions(day, exports / "raw.parquet")):
        with pytest.raises(FimError, match="There is no export of 2026-02-28"):
            read(data.of_day(date(2026, 2, 28)))
    with pytest.raises(FimError, match=r"There is no export: no file matches .*nowhere/\{date\}"):
        digest_sources(data_of(f"{exports}/nowhere/{{date}}/*.csv"))


PATTERNS = [
    *("{date}/*.csv", "{date}", "{date}/", "log-{date}.csv", "*/{date}/**/*.csv", "eu/{date}/**", "eu/{date}/*"),
    *("eu/date={date}/**/r*.csv", "{date}/log-{date}*.csv", "*/{date}/[ab]/*.csv"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("days", [None, date(2026, 3, 1), date(2026, 2, 28)], ids=str)
def test_objects_are_those_that_files_of_the_same_names_would_be(
    exports: Path, bucket: Bucket, pattern: str, days: date | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("a/rows.csv", "a/b/rows.csv", "c/rows.csv", "rows.csv", ".hidden/rows.csv", "_old.csv"):
        write(exports / "eu" / "2026-03-01" / name, name)
        write(exports / "eu" / "date=2026-03-02" / name, name)
    write(exports / "2026-03-01" / "log-2026-03-01-2.csv", "twice the date")
    for file in exports.rglob("*"):
        if file.is_file():
            bucket.put(f"all/{file.relative_to(exports).as_posix()}", file.read_bytes())
    found = []
    for place in (str(exports), f"{bucket.url}/all"):
        data = data_of(f"{place}/{pattern}")
        known = [dates_of(data)]
        try:
            found.append((known, rows(data if days is None else data.of_day(days), tmp_path_factory.mktemp("raw"))))
        except FimError as error:
            found.append((known, str(error).replace(place, "")))
    assert found[0] == found[1]


@pytest.mark.parametrize("pattern", ["{date}/*.csv", "{date}/**/*.csv", "*/{date}/*.csv"])
def test_a_day_with_hidden_objects_alone_is_none(tmp_path: Path, bucket: Bucket, pattern: str) -> None:
    """Such as those of an upload that is not finished: the window would end there, and be empty."""
    for name in (
        "2026-03-01/a.csv",
        "eu/2026-03-01/a.csv",
        "2026-03-02/.a.csv",
        "2026-03-03/.b/a.csv",
        ".c/2026-03-04/a.csv",
    ):
        write(tmp_path / "exports" / name, "x")
        bucket.put(f"exports/{name}", b"INPUT,OUTPUT\nx,y\n")
    for place in (f"{tmp_path}/exports", f"{bucket.url}/exports"):
        assert dates_of(data_of(f"{place}/{pattern}", window=1)) == [date(2026, 3, 1)]


def test_a_day_is_listed_alone(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ("2026-03-01", "2026-03-02"):
        bucket.put(f"exports/{day}/rows.csv", "INPUT,OUTPUT\nx,y\n")
    listed = []

    def record(url: str, **options: Any) -> Listing:
        listed.append(url)
        return list_files(url, **options)

    monkeypatch.setattr(dated, "list_files", record)
    [source] = data_of(f"{bucket.url}/exports/{{date}}/*.csv", window=2).sources
    day = date(2026, 3, 1)
    assert list(dated.dated_objects(source, dated.Days(day, day)).files) == ["2026-03-01/rows.csv"]
    assert listed == [f"{bucket.url}/exports/2026-03-01"]


def test_a_bucket_that_does_not_exist_is_reported(bucket: Bucket) -> None:
    with pytest.raises(FimError, match="no bucket or object s3://no-such-bucket"):
        dates_of(data_of("s3://no-such-bucket/exports/{date}/*.csv"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sources": ["rows.csv"], "window": 3}, "window needs a source with {date}"),
        ({"sources": ["rows.csv"], "eval_sources": ["{date}.csv"]}, "held-out rows are the same every day"),
        ({"sources": ["s3://exports-{date}/rows.csv"]}, "name one bucket"),
        ({"sources": ["s3://exports-*/{date}.csv"]}, "name one bucket"),
        ({"sources": ["exports/[a{date}]/*.csv"]}, "inside"),
        ({"sources": ["s3://exports/[!{date}].csv"]}, "inside"),
        ({"sources": ["a/**/{date}.csv"]}, "any depth"),
        ({"sources": [{"name_or_path": "{date}.csv", "split": "train[:10]"}]}, "set data.window"),
        ({"sources": [{"name_or_path": "{date}.csv", "sample_count": 10}]}, "set data.window"),
        ({"sources": ["{date}.csv"], "window": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        DataConfig.model_validate(options)
    assert said in str(raised.value)
