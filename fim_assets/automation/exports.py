"""A sensor on the folder of exports: starts data preparation when a file has arrived or changed, and is whole."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import dagster as dg

from fim_assets.automation.jobs import prepare_data
from fim_core.config.workflow import ExportsConfig

SUFFIXES = (".csv", ".csv.gz", ".csv.zst", ".parquet", ".pq", ".jsonl")


def exports_sensor(config: ExportsConfig | None) -> dg.SensorDefinition:
    """The sensor for an experiment's `exports` section; without one it watches nothing and says so."""
    enabled = config is not None and config.enabled

    @dg.sensor(
        name="exports",
        job=prepare_data,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING if enabled else dg.DefaultSensorStatus.STOPPED,
        description="Starts prepare_data when the content of the exports folder has changed.",
    )
    def exports(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if config is None:
            return dg.SkipReason("The experiment has no `exports` section, so there is no folder to watch.")
        folder = Path(config.folder)
        if not folder.is_dir():
            return dg.SkipReason(f"There is no folder {folder} yet.")
        known = json.loads(context.cursor) if context.cursor else {}
        files, unsettled = look(folder, known.get("files", {}), config.settle_seconds, now=time.time())
        if unsettled:
            return dg.SkipReason(f"Still being written: {', '.join(unsettled)}.")
        content = content_of(files)
        cursor = json.dumps({"files": files, "content": content})
        if not files or content == known.get("content"):
            context.update_cursor(cursor)
            return dg.SkipReason(f"No new content in {folder}.")
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=content)], cursor=cursor)

    return exports


def look(folder: Path, known: dict[str, list], settle_seconds: float, now: float) -> tuple[dict[str, list], list[str]]:
    """The exports in a folder as name → [size, mtime_ns, SHA-256], and the names of those still being written.

    A file counts as written when its modification time lies `settle_seconds` back. Only files whose size or time
    differ from what is `known` are read again.
    """
    files: dict[str, list] = {}
    unsettled = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        stat = path.stat()
        if now - stat.st_mtime < settle_seconds:
            unsettled.append(path.name)
            continue
        seen = known.get(path.name)
        if seen and seen[:2] == [stat.st_size, stat.st_mtime_ns]:
            files[path.name] = seen
        else:
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            files[path.name] = [stat.st_size, stat.st_mtime_ns, digest]
    return files, unsettled


def content_of(files: dict[str, list]) -> str:
    """One hash over names and contents; time stamps do not count."""
    return hashlib.sha256(json.dumps({name: entry[2] for name, entry in files.items()}).encode()).hexdigest()
