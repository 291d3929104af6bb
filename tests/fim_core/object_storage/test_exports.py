"""Exports in an S3 bucket: the same rows, ids and digests as those of the same files in a folder."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_server import SECRET, Bucket
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.config import DataConfig
from fim_core.errors import FimError
from fim_core.object_storage import download as download_module
from fim_core.object_storage.filesystem import open_filesystem
from fim_core.records.sources import RawCounts, digest_sources, write_raw_completions

HEADER = "TYPE,INPUT,OUTPUT\n"


def row(number: int) -> str:
    return f'a,"[{{""type"": ""text"", ""text"": ""select <fillMe> from t{number}""}}]",x{number}\n'


def fill(folder: Path) -> None:
    """Exports of every format, and files that are not read."""
    (folder / "by_day").mkdir(parents=True)
    (folder / "_old").mkdir()
    (folder / "july.csv").write_text(HEADER + row(1) + row(2))
    (folder / "semicolons.csv").write_text((HEADER + row(3)).replace(",", ";"))
    (folder / "by_day/1.jsonl").write_text(
        '{"INPUT": "a <fillMe>", "OUTPUT": "b"}\n{"INPUT": "c <fillMe>", "EXTRA": 1}\n'
    )
    table = pa.table({"INPUT": ["p <fillMe>"], "OUTPUT": ["q"], "DAY": [7]})
    pq.write_table(table, folder / "by_day/2.parquet")
    pq.write_table(table, folder / "bare")
    (folder / "empty.csv").touch()
    (folder / "_old/a.csv").write_text(HEADER + row(4))
    (folder / ".hidden.csv").write_text(HEADER + row(5))
    (folder / "notes.txt").write_text("x")


def upload(folder: Path, bucket: Bucket, prefix: str = "exports/") -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.put(prefix + path.relative_to(folder).as_posix(), path.read_bytes())


def config(place: str | Path, **options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"name_or_path": str(place), **options}]})


def read(place: str | Path, folder: Path, **options: Any) -> tuple[RawCounts, list[dict[str, Any]]]:
    """Counts and rows of a source; copies stay in `folder`."""
    counts = write_raw_completions(config(place, **options), folder / "raw.parquet", folder / "downloads")
    return counts, pq.read_table(folder / "raw.parquet").to_pylist()


def copies(folder: Path) -> set[Path]:
    return {path for path in (folder / "downloads").rglob("*") if path.is_file()}


@pytest.mark.parametrize("below", ["", "/july.csv", "/bare", "/by_day", "/*.csv", "/**/*", "/by_day/[12].*", "/b*"])
def test_rows_ids_and_digests_equal_those_of_the_same_files_in_a_folder(
    bucket: Bucket, tmp_path: Path, below: str
) -> None:
    fill(tmp_path / "exports")
    upload(tmp_path / "exports", bucket)
    here, here_rows = read(f"{tmp_path}/exports{below}", tmp_path)
    there, there_rows = read(f"{bucket.url}/exports{below}", tmp_path)
    assert there_rows == here_rows
    assert asdict(there) == asdict(here)
    digests = {digest_sources(config(f"{place}/exports{below}")) for place in (tmp_path, bucket.url)}
    assert len(digests) == 1


@pytest.mark.parametrize("options", [{"sample_count": 2}, {"split": "train[1:3]"}])
def test_slices_and_samples_select_the_same_rows(bucket: Bucket, tmp_path: Path, options: dict[str, Any]) -> None:
    fill(tmp_path / "exports")
    upload(tmp_path / "exports", bucket)
    here, there = (read(f"{place}/exports", tmp_path, **options)[1] for place in (tmp_path, bucket.url))
    assert there == here


@pytest.mark.parametrize("several", [False, True])
def test_data_sets_saved_by_the_datasets_library_are_read(bucket: Bucket, tmp_path: Path, several: bool) -> None:
    made = datasets.Dataset.from_dict({"prompt": ["a", "b"], "response": ["c", "d"]})
    saved = datasets.DatasetDict({"train": made, "test": made}) if several else made
    saved.save_to_disk(tmp_path / "exports" / "chats")
    upload(tmp_path / "exports", bucket, prefix="")
    here, here_rows = read(tmp_path / "exports" / "chats", tmp_path)
    there, there_rows = read(f"{bucket.url}/chats/", tmp_path)
    assert there_rows == here_rows
    assert asdict(there) == asdict(here)
    with pytest.raises(FimError, match="holds no file with one of the suffixes"):
        read(bucket.url, tmp_path)


def test_sql_files_are_cut_like_local_ones(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q/a.sql").write_text("select 1;\nselect b from t where c > 2;\n")
    upload(tmp_path / "q", bucket, prefix="q/")
    here, there = (read(f"{place}/q", tmp_path)[1] for place in (tmp_path, bucket.url))
    assert there == here


def test_only_new_and_changed_objects_are_fetched(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    copy = download_module._copy

    def counting(listing: Any, file: Any, target: Path) -> None:
        fetched.append(target.name)
        copy(listing, file, target)

    monkeypatch.setattr(download_module, "_copy", counting)
    for name in ("a", "b"):
        bucket.put(f"exports/{name}.csv", HEADER + row(1))
    digest_sources(config(f"{bucket.url}/exports"), tmp_path / "downloads")
    assert sorted(fetched) == ["a.csv", "b.csv"]
    read(f"{bucket.url}/exports", tmp_path, sample_count=1)
    bucket.put("exports/c.csv", HEADER + row(2))
    bucket.put("exports/a.csv", HEADER + row(3))
    rows = read(f"{bucket.url}/exports", tmp_path)[1]
    assert sorted(fetched[2:]) == ["a.csv", "c.csv"]
    assert [each["output"] for each in rows] == ["x3", "x1", "x2"]


def test_listings_of_several_pages_are_complete(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read by the server, which runs in this process; S3's pages hold 1,000.
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    for number in range(25):
        bucket.put(f"exports/{number:02}.csv", HEADER + row(number))
    counts, rows = read(f"{bucket.url}/exports", tmp_path)
    assert len(counts.exports) == 25
    assert [each["output"] for each in rows] == [f"x{number}" for number in range(25)]


def test_a_copy_that_was_cut_short_is_fetched_again(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("a.csv", HEADER + row(1))
    rows = read(f"{bucket.url}/a.csv", tmp_path)[1]
    (copied,) = copies(tmp_path)
    copied.write_bytes(copied.read_bytes()[:-5])
    assert read(f"{bucket.url}/a.csv", tmp_path)[1] == rows


def test_an_object_that_changes_while_it_is_read_is_an_error(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("exports/a.csv", HEADER + row(1))
    kind = type(open_filesystem(bucket.url))
    get = kind._get_file

    async def late(self: Any, *arguments: Any, **options: Any) -> None:
        bucket.put("exports/a.csv", HEADER + row(2))
        await get(self, *arguments, **options)

    monkeypatch.setattr(kind, "_get_file", late)
    with pytest.raises(FimError, match=r"exports/a\.csv changed while it was read"):
        read(f"{bucket.url}/exports", tmp_path)
    assert copies(tmp_path) == set()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", r"There is no object s3://[\w-]+\. The bucket exists"),
        ("none/", r"There is no object s3://[\w-]+/none/\. The bucket exists"),
        ("none/*.csv", r"There is no object s3://[\w-]+/none/\*\.csv\. The bucket exists"),
    ],
)
def test_missing_objects_are_named(bucket: Bucket, tmp_path: Path, key: str, message: str) -> None:
    with pytest.raises(FimError, match=message):
        read(f"{bucket.url}/{key}".rstrip("/") + "/" * key.endswith("/"), tmp_path)


@pytest.mark.parametrize("rest", ["", "/exports", "/exports/*.csv"])
def test_a_missing_bucket_is_named(bucket: Bucket, tmp_path: Path, rest: str) -> None:
    with pytest.raises(FimError, match=r"There is no bucket or object s3://no-such-bucket"):
        read(f"s3://no-such-bucket{rest}", tmp_path)


def test_missing_credentials_are_an_error_that_says_how_to_give_them(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FimError, match=r"no valid credentials for s3://.* Set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        read(bucket.url, tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "unknown")
    with pytest.raises(FimError, match="no valid credentials"):
        read(bucket.url, tmp_path)


def test_a_missing_package_is_an_error_that_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(FimError, match=r"needs the package s3fs.*pip install 'fim-assets\[s3\]'"):
        read("s3://bucket/exports", tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("http://host/a.csv", "http:// is not supported"),
        ("s3://", "names no bucket"),
        ("s3://key:hunter2@bucket/a", "holds credentials"),
        ("az://box/a.csv?sig=hunter2", "holds credentials"),
    ],
)
def test_urls_are_checked_when_the_experiment_is_read(place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        config(place)
    assert "hunter2" not in str(raised.value).split("[type=")[0]


def test_credentials_are_in_no_log_and_no_copy(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("a.csv", HEADER + row(1))
    with caplog.at_level(logging.INFO):
        read(f"{bucket.url}/a.csv", tmp_path)
    assert SECRET not in caplog.text
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_convert_reads_a_url(bucket: Bucket, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("tokenizer")
    bucket.put("exports/july.csv", HEADER + row(1) + row(2))
    result = CliRunner().invoke(app, ["convert", f"{bucket.url}/exports/july.csv", "--tokenizer", "tokenizer"])
    assert result.exit_code == 0, result.output
    assert "2 of 2 rows in july_hf_fim_dataset" in result.output
    assert len(datasets.load_from_disk("july_hf_fim_dataset")) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "copies are removed"


def test_copies_that_no_run_uses_are_garbage(bucket: Bucket, tmp_path: Path) -> None:
    from fim_core.pipeline.garbage import find_garbage, remove
    from fim_core.store import Store

    store = Store(tmp_path / "store")
    downloads = store.folder("downloads")
    for name in ("old.csv", "new.csv"):
        bucket.put(name, HEADER + row(1))
    digest_sources(config(bucket.url), downloads)
    foreign = downloads / "notes"
    foreign.mkdir()
    (old,) = (path.parent for path in downloads.rglob("old.csv"))
    month_ago = time.time() - 30 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    remove(store, find_garbage(store))
    assert not old.exists()
    assert foreign.exists()
    assert [path.name for path in downloads.rglob("*.csv")] == ["new.csv"]
    # A use counts, not the time of the copy.
    (new,) = (path.parent for path in downloads.rglob("new.csv"))
    os.utime(new, (month_ago, month_ago))
    digest_sources(config(f"{bucket.url}/new.csv"), downloads)
    assert find_garbage(store) == []


def test_reports_of_a_log_are_joined_over_the_objects_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("logs/1.jsonl", b'{"ID": "a", "INPUT": "<fillMe>", "OUTPUT": "x", "ACTION": ""}\n')
    bucket.put("logs/2.jsonl", b'{"ID": "a", "INPUT": "", "OUTPUT": "", "ACTION": "accepted"}\n')
    counts, rows = read(f"{bucket.url}/logs", tmp_path, feedback={"id": "ID", "action": "ACTION"})
    assert (counts.rows, counts.reports) == (1, 1)
    assert [(row["request_id"], row["action"]) for row in rows] == [("a", "accepted")]
