"""examples/dagster_project, and a project of a user's own, with Dagster's `dg`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster_home import ROOT

from fim_assets.instance import EXPERIMENT_TAG
from fim_core.champion.registry import champion
from fim_core.store import Store

EXAMPLE = ROOT / "examples" / "dagster_project"
MODELS = {"analysts", "engineers"}


def dg_command(*arguments: str, project: Path, home: Path) -> str:
    """Run `dg` in a project and return its output."""
    finished = subprocess.run(
        [str(Path(sys.executable).with_name("dg")), *arguments],
        cwd=project,
        env={**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT), "FIM_STORAGE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output
    return output


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example, without what runs in it have left."""
    return shutil.copytree(EXAMPLE, tmp_path / "project", ignore=shutil.ignore_patterns(".fim", "__pycache__"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    shutil.copyfile(EXAMPLE / "dagster.yaml", tmp_path / "home" / "dagster.yaml")
    return tmp_path / "home"


def test_the_example_loads(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(project))
    defs = dg.load_from_defs_folder(path_within_project=project / "completion_models")
    repository = defs.get_repository_def()
    assert {key.path[0] for key in repository.asset_graph.get_all_asset_keys()} == MODELS
    assert {f"{model}_retrain" for model in MODELS} <= set(repository.job_names)
    assert {schedule.cron_schedule for schedule in repository.schedule_defs} == {"0 3 * * 0", "0 4 * * 0"}


@pytest.mark.slow
def test_the_example_makes_two_champions(project: Path, home: Path) -> None:
    assert "All definitions loaded successfully" in dg_command("check", "defs", project=project, home=home)
    for model in sorted(MODELS):
        dg_command("launch", "--assets", f'key:"{model}/*"', project=project, home=home)
    store = Store(project / ".fim")
    champions = [champion(store, model) for model in sorted(MODELS)]
    assert [found.manifest["experiment"] for found in champions if found] == sorted(MODELS)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert {run.tags[EXPERIMENT_TAG] for run in instance.get_runs()} == MODELS
        for model in MODELS:
            event = instance.get_latest_materialization_event(dg.AssetKey([model, "champion_model"]))
            assert event.asset_materialization.metadata["experiment"].value == model


@pytest.mark.slow
def test_an_instance_is_added_to_a_project_by_one_command(project: Path, home: Path) -> None:
    dg_command("scaffold", "defs", "fim_assets.FimPipeline", "support", project=project, home=home)
    written = yaml.safe_load((project / "completion_models" / "defs" / "support" / "defs.yaml").read_text())
    assert written["attributes"] == {"experiment": "support.yaml", "key_prefix": "support"}
    assert "All definitions loaded successfully" in dg_command("check", "defs", project=project, home=home)
    assert "support/trained_checkpoint" in dg_command("list", "defs", "--json", project=project, home=home)
