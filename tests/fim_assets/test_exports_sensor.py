"""The exports sensor: it reacts to content, ignores time stamps, and waits for files that are still being written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sensor_ticks

from fim_assets.automation.exports import exports_sensor
from fim_assets.automation.jobs import build_jobs
from fim_assets.instance import PipelineInstance
from fim_core.config import DataConfig
from fim_core.config.workflow import ExportsConfig


def put(folder: Path, name: str, text: str, age_seconds: float = 3600) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    written = path.stat().st_mtime - age_seconds
    os.utime(path, (written, written))


def tick(folder: Path, cursor: str | None) -> tuple[list[str], str | None, str]:
    return sensor_ticks.tick(str(folder), cursor, settle_seconds=30)


def test_a_new_file_starts_one_run(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "one")
    started, cursor, _ = tick(tmp_path, None)
    assert len(started) == 1
    again, _, reason = tick(tmp_path, cursor)
    assert again == []
    assert "No new content" in reason


def test_changed_content_starts_a_run_and_a_touched_file_does_not(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "one")
    first, cursor, _ = tick(tmp_path, None)
    put(tmp_path, "a.csv", "one", age_seconds=60)
    touched, cursor, _ = tick(tmp_path, cursor)
    put(tmp_path, "a.csv", "two")
    changed, _, _ = tick(tmp_path, cursor)
    assert touched == []
    assert len(changed) == 1
    assert changed != first


def test_a_file_that_is_still_being_written_starts_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "one")
    put(tmp_path, "b.csv", "half", age_seconds=0)
    started, cursor, reason = tick(tmp_path, None)
    assert started == []
    assert "b.csv" in reason
    put(tmp_path, "b.csv", "whole")
    assert len(tick(tmp_path, cursor)[0]) == 1


def test_several_files_at_once_start_one_run(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "one")
    _, cursor, _ = tick(tmp_path, None)
    put(tmp_path, "b.csv.gz", "two")
    put(tmp_path, "by_day/c.ndjson", "three")
    started, cursor, _ = tick(tmp_path, cursor)
    assert len(started) == 1
    assert tick(tmp_path, cursor)[0] == []


def test_content_that_returns_after_a_change_starts_a_run(tmp_path: Path) -> None:
    started, cursor = [], None
    for content in ("one", "two", "one"):
        put(tmp_path, "a.csv", content)
        keys, cursor, _ = tick(tmp_path, cursor)
        started += keys
    assert len(set(started)) == 3


def test_a_removed_file_starts_a_run(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "one")
    put(tmp_path, "b.csv", "two")
    _, cursor, _ = tick(tmp_path, None)
    (tmp_path / "b.csv").unlink()
    assert len(tick(tmp_path, cursor)[0]) == 1


def test_a_clock_that_differs_does_not_hide_a_file(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", "half", age_seconds=-5)
    assert "a.csv" in tick(tmp_path, None)[2]
    put(tmp_path, "a.csv", "one", age_seconds=-3600)
    assert len(tick(tmp_path, None)[0]) == 1


def test_a_file_that_changes_while_it_is_hashed_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.csv", "one")
    read = hashlib.file_digest

    def read_while_it_grows(*arguments: Any) -> Any:
        digest = read(*arguments)
        put(tmp_path, "a.csv", "one more")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", read_while_it_grows)
    started, _, reason = tick(tmp_path, None)
    assert started == []
    assert "a.csv" in reason


def test_other_files_and_missing_folders_start_nothing(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt", "x")
    put(tmp_path, ".a.csv", "x")
    put(tmp_path, "_old/a.csv", "x")
    assert tick(tmp_path, None)[0] == []
    assert "There is no folder" in tick(tmp_path / "absent", None)[2]


def days_started(source: str, folder: str, cursor: str | None) -> tuple[list[str], str | None]:
    """Evaluate the sensor once, with exports by day: days whose runs it starts, and the new cursor."""
    dated = DataConfig.model_validate({"sources": [{"name_or_path": source}]})
    instance, config = PipelineInstance("tiny.yaml"), ExportsConfig(folder=folder, settle_seconds=0)
    sensor = exports_sensor(instance, build_jobs(instance)["prepare_data"], config, dated)
    context = dg.build_sensor_context(cursor=cursor, instance=dg.DagsterInstance.ephemeral())
    result = sensor(context)
    if isinstance(result, dg.SkipReason):
        return [], context.cursor
    return [request.partition_key for request in result.run_requests], result.cursor


@pytest.mark.parametrize("place", ["folder", "bucket", "bucket/"])
def test_each_day_whose_exports_changed_is_a_run(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    if place == "folder":
        folder, write = str(tmp_path), lambda name, text: put(tmp_path, name, text)
    else:
        bucket = request.getfixturevalue("bucket")
        folder, write = f"{bucket.url}/exports", lambda name, text: bucket.put(f"exports/{name}", text)
    source, watched = f"{folder}/{{date}}/*.csv", folder + place.removeprefix("bucket").removeprefix("folder")
    for day in ("2026-03-01", "2026-03-02"):
        write(f"{day}/a.csv", day)
    write("other/a.csv", "of no day")
    started, cursor = days_started(source, watched, None)
    assert started == ["2026-03-01", "2026-03-02"]
    write("2026-03-02/a.csv", "changed")
    write("2026-03-03/b.csv", "new")
    changed, cursor = days_started(source, watched, cursor)
    assert changed == ["2026-03-02", "2026-03-03"]
    assert days_started(source, watched, cursor)[0] == []
