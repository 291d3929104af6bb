"""The exports sensor on a bucket: new, changed and removed objects start a run as files of a folder do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sensor_ticks
from object_server import Bucket

from fim_assets.automation.exports import list_exports
from fim_core.errors import FimError


def tick(url: str, cursor: str | None, settle_seconds: float = 0.0) -> tuple[list[str], str | None, str]:
    return sensor_ticks.tick(url, cursor, settle_seconds)


def test_new_changed_and_removed_objects_start_a_run(bucket: Bucket) -> None:
    url = f"{bucket.url}/exports"
    bucket.put("elsewhere/a.csv", "one")
    assert "No new content" in tick(url, None)[2]
    bucket.put("exports/a.csv", "one")
    started, cursor, _ = tick(url, None)
    assert len(started) == 1
    again, cursor, reason = tick(url, cursor)
    assert (again, "No new content" in reason) == ([], True)
    keys = set(started)
    for change in (
        lambda: bucket.put("exports/b/c.parquet", "two"),
        lambda: bucket.put("exports/a.csv", "more"),
        lambda: bucket.remove("exports/b/c.parquet"),
    ):
        change()
        started, cursor, _ = tick(url, cursor)
        assert len(started) == 1
        keys |= set(started)
    assert len(keys) == 4


def test_the_same_content_written_again_and_other_objects_start_nothing(bucket: Bucket) -> None:
    bucket.put("a.csv", "one")
    _, cursor, _ = tick(bucket.url, None)
    bucket.put("a.csv", "one")
    bucket.put("notes.txt", "x")
    bucket.put("_old/a.csv", "x")
    assert tick(bucket.url, cursor)[0] == []


def test_new_objects_wait_until_nothing_follows_them(bucket: Bucket) -> None:
    bucket.put("a.csv", "one")
    assert "Still being written: a.csv" in tick(bucket.url, None, settle_seconds=30)[2]
    now = datetime.now(UTC)
    for seconds, unsettled in ((0, ["a.csv"]), (60, [])):
        later = (now + timedelta(seconds=seconds)).timestamp()
        assert list_exports(bucket.url, {}, 30, now=later)[1] == unsettled


def test_a_missing_bucket_fails_the_tick(object_server: str, bucket: Bucket) -> None:
    with pytest.raises(FimError, match="There is no bucket or object s3://no-such-bucket"):
        tick("s3://no-such-bucket/exports", None)
