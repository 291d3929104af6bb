"""All entry points make the same versions from the same input."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster_home import ROOT, DagsterService, wait_for
from tiny_pipeline import write_experiment

from fim_assets.definitions import defs
from fim_core.pipeline import STAGES
from fim_core.store import Store

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
RUN_SECONDS = 1200
ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


def command(*arguments: str, home: Path, experiment: Path) -> str:
    """Run a Dagster command in the checkout and return its output."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    places = {"DAGSTER_HOME": str(home), "FIM_EXPERIMENT": str(experiment), "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        cwd=ROOT,
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output
    return output


def run_job(service: DagsterService, job: str, **options: Any) -> None:
    run_id = service.web.submit_job_execution(job, **options)
    wait_for(lambda: service.status(run_id) in ENDED, RUN_SECONDS, service.tail)
    assert service.status(run_id) is dg.DagsterRunStatus.SUCCESS, service.tail()


def made(folder: Path) -> dict[str, Any]:
    """All versions of every asset, and the hash of the weights."""
    store = Store(folder / "store")
    versions = {stage.asset: [artifact.version for artifact in store.versions(stage.asset)] for stage in STAGES}
    weights = store.current("trained_checkpoint").path / "model.safetensors"
    return versions | {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def test_commands_web_server_and_schedule_make_the_same_versions(tmp_path: Path) -> None:
    """Each command and the web server start with an empty store; the schedule continues in that of the server."""
    folders = {door: tmp_path / door for door in ("dagster", "dg", "dev")}
    experiments = {}
    for door, folder in folders.items():
        folder.mkdir()
        experiments[door] = write_experiment(folder)
    doors = {
        "dagster": ("dagster", "asset", "materialize", "-m", "fim_assets.definitions", "--select", "*"),
        "dg": ("dg", "launch", "--assets", "*"),
    }
    for door, arguments in doors.items():
        command(*arguments, home=folders[door] / "home", experiment=experiments[door])

    with DagsterService(folders["dev"] / "home", experiments["dev"]) as service:
        run_job(service, "retrain")
        before = made(folders["dev"])
        schedule = defs().get_repository_def().get_schedule_def("retraining")
        with dg.build_schedule_context(service.instance, scheduled_execution_time=datetime.now(UTC)) as context:
            [request] = schedule.evaluate_tick(context).run_requests or []
        run_job(service, schedule.job_name, run_config=request.run_config, tags=dict(request.tags))
        assert made(folders["dev"]) == before

    assert all(len(before[stage.asset]) == 1 for stage in STAGES)
    assert made(folders["dagster"]) == made(folders["dg"]) == before


@pytest.mark.parametrize(
    "arguments",
    [("dg", "check", "defs"), ("dg", "list", "defs"), ("dagster", "definitions", "validate", "-w", "workspace.yaml")],
    ids=" ".join,
)
def test_the_commands_load_the_project_without_a_warning(arguments: tuple[str, ...], tmp_path: Path) -> None:
    output = command(*arguments, home=tmp_path, experiment=ROOT / "configs" / "demo.yaml")
    # Dagster calls the command `definitions validate` itself superseded, by the one of dg.
    assert not re.findall(r"(?:Deprecation|Beta|Preview)Warning\b.*|\bWARNING\b.*", output)
