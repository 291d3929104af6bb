"""Every way to start the pipeline makes the same versions from the same input."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster_service import ROOT, DagsterService, wait_for
from tiny_pipeline import TINY

from fim_assets.definitions import defs
from fim_core.pipeline import STAGES
from fim_core.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

BIN = Path(sys.executable).parent
RUN_SECONDS = 600


def command(*arguments: str, home: Path, experiment: Path, storage: Path) -> str:
    """Run a command of Dagster's in the checkout; its output."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    places = {"DAGSTER_HOME": str(home), "FIM_EXPERIMENT": str(experiment), "FIM_STORAGE": str(storage)}
    finished = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **places},
        capture_output=True,
        text=True,
        check=False,
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output
    return output


def run_job(service: DagsterService, job: str, **options: object) -> None:
    run_id = service.web.submit_job_execution(job, **options)
    wait_for(lambda: service.status(run_id) in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE), RUN_SECONDS,
             lambda: f"the run\n{service.tail()}")  # fmt: skip
    assert service.status(run_id) is dg.DagsterRunStatus.SUCCESS, service.tail()


def made(storage: Path) -> dict[str, str]:
    """Versions of all assets, and the hash of the weights."""
    store = Store(storage)
    versions = {stage.asset: store.current(stage.asset).version for stage in STAGES}
    weights = store.current("trained_checkpoint").path / "model.safetensors"
    return versions | {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def test_commands_web_server_and_schedule_make_the_same_versions(tmp_path: Path) -> None:
    experiment = tmp_path / "tiny.yaml"
    experiment.write_text(yaml.safe_dump(TINY))
    stores = {door: tmp_path / door / "store" for door in ("dagster", "dg", "dev")}
    doors = {
        "dagster": ("dagster", "asset", "materialize", "-m", "fim_assets.definitions", "--select", "*"),
        "dg": ("dg", "launch", "--assets", "*"),
    }
    for door, arguments in doors.items():
        command(*arguments, home=tmp_path / door / "home", experiment=experiment, storage=stores[door])

    with DagsterService(tmp_path / "dev" / "home", experiment, FIM_STORAGE=str(stores["dev"])) as service:
        run_job(service, "retrain")
        before = made(stores["dev"])
        schedule = defs().get_repository_def().get_schedule_def("retraining")
        now = datetime.now(UTC)
        with dg.build_schedule_context(service.instance, scheduled_execution_time=now) as context:
            [request] = schedule.evaluate_tick(context).run_requests or []
        run_job(service, schedule.job_name, run_config=request.run_config, tags=dict(request.tags))
        assert made(stores["dev"]) == before

    assert made(stores["dagster"]) == made(stores["dg"]) == made(stores["dev"])


@pytest.mark.parametrize(
    "arguments",
    [("dg", "check", "defs"), ("dg", "list", "defs"), ("dagster", "definitions", "validate", "-w", "workspace.yaml")],
    ids=" ".join,
)
def test_the_commands_load_the_project_without_a_warning(arguments: tuple[str, ...], tmp_path: Path) -> None:
    output = command(*arguments, home=tmp_path, experiment=ROOT / "configs" / "demo.yaml", storage=tmp_path / "store")
    assert not re.findall(r"\w*Warning\b.*|\bWARNING\b.*", output)
