"""Soak test: scheduled runs under random disturbances, after which the store must be as if none had happened.

FIM_SOAK_SECONDS (default 600): duration of the disturbances; verification takes some minutes more.
FIM_SOAK_SEED: seed of the disturbances; what they coincide with depends on the speed of the machine.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster_home import wait_for
from fault_injection import FaultInjection, small_disk

from fim_core.config import load_experiment
from fim_core.folders.report import ReportFolder
from fim_core.pipeline import STAGES, run, stage_of
from fim_core.pipeline.checks import blocking_failures, run_artifact_checks
from fim_core.pipeline.garbage import find_garbage, remove
from fim_core.records.sources import write_raw_completions
from fim_core.store import Artifact, Store, version_of

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("FIM_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("FIM_SOAK_SEED", "1"))
LAST_RUN_SECONDS = 900.0

EXPECTED = (
    "is damaged or truncated",
    "is not well-formed CSV",
    "is not UTF-8",
    "The disk is full",
    "changed while",
    "was made with other options",
    "was ended by SIG",
    "Another run trains",
)
"""Phrases in messages of failures that the disturbances may cause; any other failure is a bug."""


def test_disturbed_runs_end_like_undisturbed_ones(tmp_path: Path) -> None:
    with small_disk(tmp_path / "store") as mounted:
        if not mounted:
            warnings.warn("The full disk is not tested: no file system can be mounted here.", stacklevel=1)
        with FaultInjection(tmp_path, SEED, small_disk=mounted) as night:
            pauses = Random(SEED)
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                time.sleep(pauses.uniform(2, 10))
                night.disturb()
            wait_for_good_run(night, since=night.calm())
            night.let_runs_end(LAST_RUN_SECONDS)
            report(night)
            verify(night, tmp_path)


def wait_for_good_run(night: FaultInjection, since: float) -> None:
    """Wait for a scheduled run that starts after `since` and succeeds."""

    def good() -> bool:
        records = night.instance.get_run_records(
            dg.RunsFilter(job_name="retrain", statuses=[dg.DagsterRunStatus.SUCCESS])
        )
        return any(record.start_time and record.start_time > since for record in records)

    wait_for(good, LAST_RUN_SECONDS, lambda: f"a good run\n{night.journal.read_text()}\n{night.tail()}")


def report(night: FaultInjection) -> None:
    """Print the disturbances and how the runs ended (`pytest -s`, or when the test fails)."""
    print(night.journal.read_text())
    runs = night.instance.get_runs()
    print(Counter((run.job_name, run.status.value) for run in runs))


def verify(night: FaultInjection, folder: Path) -> None:
    """Check everything that must hold after the disturbances."""
    assert night.processes() == []
    assert night.on_gpu() == set()
    assert unexpected_failures(night.instance) == []

    experiment = load_experiment(night.experiment)
    for stage in STAGES:
        verify_whole(night.store, stage.asset)
    # The gate may have refused every candidate, which fails a check but not a run.
    for stage in STAGES[:-1]:
        current = night.store.current(stage.asset, experiment.name)
        assert (
            blocking_failures(run_artifact_checks(stage_of(current.asset), current, experiment, night.store, stage_of))
            == []
        )
    remove(night.store, find_garbage(night.store, fresh_minutes=0))
    assert list((night.store.root / "tmp").iterdir()) == []

    raw, prompts = (night.store.current(asset, experiment.name).counts for asset in ("raw_completions", "fim_prompts"))
    assert raw["rows"] == write_raw_completions(experiment.data, folder / "again.parquet").rows
    assert prompts["rows_in"] == raw["rows"] == prompts["rows_kept"] + sum(prompts["rejected"].values())

    undisturbed = run(experiment.model_copy(update={"storage": folder / "undisturbed"}), until="trained_checkpoint")
    expected, found = (
        undisturbed["trained_checkpoint"].artifact,
        night.store.current("trained_checkpoint", experiment.name),
    )
    assert found.version == expected.version
    assert weights(found) == weights(expected)


def verify_whole(store: Store, asset: str) -> None:
    """Check that every version of an asset is complete: name and manifest agree, and all bytes and rows are there."""
    folders = {entry for entry in (store.root / asset).iterdir() if entry.is_dir() and not entry.is_symlink()}
    artifacts = store.versions(asset)
    assert {artifact.path for artifact in artifacts} == folders - {store.root / asset / "by_experiment"}
    for artifact in artifacts:
        manifest = artifact.manifest
        named = version_of(manifest["inputs"], manifest["config"], manifest["code_version"])
        assert artifact.path.name == artifact.version == named
        page = ReportFolder(artifact.path).page
        # The page is written after publishing; a kill may leave a part of it under a hidden name.
        own = [f for f in artifact.path.rglob("*") if f.name not in ("manifest.json", page.name)]
        files = [f for f in own if f.is_file() and not f.name.startswith(f".{page.name}-")]
        assert sum(f.stat().st_size for f in files) == manifest["bytes"], artifact.path
        assert {f.relative_to(artifact.path).as_posix() for f in files} == manifest["files"].keys()
        for table in artifact.path.glob("*.parquet"):
            pq.read_table(table)


def unexpected_failures(instance: dg.DagsterInstance) -> list[str]:
    """Failures of steps that no disturbance explains."""
    found = []
    for failed in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])):
        for entry in instance.all_logs(failed.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            data = entry.get_dagster_event().step_failure_data
            message = data.error.to_string() if data.error else ""
            killed = data.error is None or "ChildProcessCrash" in message or "Interrupted" in message
            if not killed and not any(words in message for words in EXPECTED):
                found.append(f"{failed.job_name} {failed.run_id} {entry.step_key}: {message}")
    return found


def weights(artifact: Artifact) -> str:
    return hashlib.sha256((artifact.path / "model.safetensors").read_bytes()).hexdigest()
