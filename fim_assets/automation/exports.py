"""Sensor for new exports: starts data preparation when files have arrived or changed and are completely written."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from fim_assets.instance import PipelineInstance
from fim_core.config import DataConfig
from fim_core.config.workflow import ExportsConfig
from fim_core.object_storage.urls import is_url
from fim_core.records.dated import day_of


def exports_sensor(
    instance: PipelineInstance, prepare: Any, config: ExportsConfig | None, dated: DataConfig | None = None
) -> dg.SensorDefinition:
    """Build the sensor for the section `exports`. Without the section, every tick is skipped with that reason.

    Args:
        prepare: the job to start.
        dated: with exports by day, the section `data`: each day whose exports have changed is a run.
    """
    enabled = config is not None and config.enabled

    @dg.sensor(
        name=instance.named("exports"),
        job=prepare,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED,
        description=f"Starts {prepare.name} when the content of the exports folder has changed.",
    )
    def exports(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if config is None:
            return dg.SkipReason("The experiment has no `exports` section, so there is no folder to watch.")
        folder = config.folder
        if not is_url(folder) and not Path(folder).is_dir():
            return dg.SkipReason(f"There is no folder {folder} yet.")
        known = json.loads(context.cursor or '{"files": {}, "content": "", "changes": 0}')
        files, unsettled = list_exports(folder, known["files"], config.settle_seconds, now=time.time())
        if unsettled:
            return dg.SkipReason(f"Still being written: {', '.join(unsettled)}.")
        content, changes = content_of(files), known["changes"]
        if not files or content == known["content"]:
            context.update_cursor(json.dumps(known | {"files": files}))
            return dg.SkipReason(f"No new content in {folder}.")
        cursor = json.dumps({"files": files, "content": content, "changes": changes + 1})
        # The count makes the key unique, so that content that returns after a change starts a run again.
        key = f"{content}-{changes}"
        if dated is None:
            return dg.SensorResult(run_requests=[dg.RunRequest(run_key=key)], cursor=cursor)
        days = changed_days(dated, folder, files, known["files"])
        requests = [dg.RunRequest(run_key=f"{key}-{day}", partition_key=str(day)) for day in days]
        return dg.SensorResult(run_requests=requests, cursor=cursor)

    return exports


def changed_days(data: DataConfig, folder: str, files: dict[str, list], known: dict[str, list]) -> list[date]:
    """The days of new and changed exports, sorted. `files` and `known` are as `list_exports` returns them."""
    changed = [
        f"{folder.rstrip('/')}/{name}" for name, entry in files.items() if entry[2] != known.get(name, (0, 0, ""))[2]
    ]
    days = {day_of(source, place) for source in data.sources if source.is_dated for place in changed}
    return sorted(day for day in days if day is not None)


def list_exports(
    folder: str, known: dict[str, list], settle_seconds: float, now: float
) -> tuple[dict[str, list], list[str]]:
    """List the exports in a folder as name → [size, mtime_ns, SHA-256], and the names of those still being written.

    For a URL of object storage the third entry is the object's revision (its ETag), so that nothing is read.

    Raises:
        FimError: the bucket cannot be listed.
    """
    if is_url(folder):
        return _list_objects(folder, settle_seconds, now)
    return _list_files(Path(folder), known, settle_seconds, now)


def _list_objects(url: str, settle_seconds: float, now: float) -> tuple[dict[str, list], list[str]]:
    from fim_core.object_storage.listing import list_files
    from fim_core.records.locate import is_export

    listing = list_files(url, may_be_empty=True)
    exports = {name: file for name, file in listing.files.items() if listing.kind == "file" or is_export(name)}
    # An object appears whole, but the others of its export may still follow.
    unsettled = [name for name, file in exports.items() if abs(now - file.modified) < settle_seconds]
    files = {name: [file.size, int(file.modified * 1e9), file.revision] for name, file in exports.items()}
    return files, unsettled


def _list_files(
    folder: Path, known: dict[str, list], settle_seconds: float, now: float
) -> tuple[dict[str, list], list[str]]:
    """List the exports in a folder of this machine.

    Files are selected as when a source is read: by suffix, recursively, following links, without names that begin with
    `.` or `_`. A file counts as written when its modification time is more than `settle_seconds` away from `now` and the
    file did not change while it was hashed. Only files whose size or time differ from `known` are hashed again.
    """
    from fim_core.records.locate import files_below, is_export

    files: dict[str, list] = {}
    unsettled = []
    for path in sorted(files_below(folder)):
        name = path.relative_to(folder).as_posix()
        if not is_export(name):
            continue
        stat = _size_and_time(path)
        if abs(now - stat[1] / 1e9) < settle_seconds:
            unsettled.append(name)
        elif name in known and known[name][:2] == stat:
            files[name] = known[name]
        else:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if _size_and_time(path) != stat:
                unsettled.append(name)
            files[name] = [*stat, digest]
    return files, unsettled


def _size_and_time(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def content_of(files: dict[str, list]) -> str:
    """Hash of names and contents, without time stamps."""
    return hashlib.sha256(json.dumps({name: entry[2] for name, entry in files.items()}).encode()).hexdigest()
