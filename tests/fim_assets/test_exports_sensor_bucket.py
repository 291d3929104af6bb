"""The exports sensor on a bucket: new, changed and removed objects start a run as files of a folder do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from object_server import Bucket

from fim_assets.automation.exports import exports_sensor, list_exports
from fim_assets.automation.jobs import build_jobs
from fim_assets.instance import PipelineInstance
from fim_core.config.workflow import ExportsConfig
from fim_core.errors import FimError


def tick(url: str, cursor: str | None, settle_seconds: float = 0.0) -> tuple[list[str], str | None, str]:
    """Evaluate the sensor once: run keys, new cursor, skip reason."""
    pipeline = PipelineInstance("tiny.yaml")
    config = ExportsConfig(folder=url, settle_seconds=settle_seconds)
    sensor = exports_sensor(pipeline, build_jobs(pipeline)["prepare_data"], config)
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(cursor=cursor, instance=instance)
        result = sensor(context)
    if isinstance(result, dg.SkipReason):
        return [], context.cursor, result.skip_message or ""
    assert isinstance(result, dg.SensorResult)
    return [request.run_key or "" for request in result.run_requests or []], result.cursor, ""


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
