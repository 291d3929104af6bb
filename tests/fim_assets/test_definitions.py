"""The code location: complete, fast to load, and free of warnings."""

from __future__ import annotations

import json
import subprocess
import sys

from fim_assets.definitions import defs
from fim_assets.instance import default_experiment_path
from fim_core.pipeline import STAGES
from fim_core.quality.run import load_checks

PROBE = """
import json, sys
from fim_assets.definitions import defs
defs().get_repository_def()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_loading_gives_no_warning_and_imports_no_heavy_library() -> None:
    """Runs with warnings as errors, including deprecation, beta and preview warnings of Dagster."""
    probe = subprocess.run([sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, check=False)
    assert probe.returncode == 0, probe.stderr
    assert not {"torch", "transformers", "deepspeed", "datasets", "sqlglot"} & set(json.loads(probe.stdout))


def test_every_stage_is_an_asset_with_its_checks() -> None:
    graph = defs().resolve_asset_graph()
    for stage in STAGES:
        node = next(node for node in graph.asset_nodes if node.key.path == [stage.asset])
        assert {key.path[-1] for key in node.parent_keys} == set(stage.upstream)
        assert {key.name for key in node.check_keys} == {check.name for check in load_checks(stage.asset)}
        assert node.code_version == stage.code_version


def test_jobs_schedules_and_sensors_are_defined() -> None:
    repository = defs().get_repository_def()
    assert {"prepare_data", "train", "evaluate_only", "retrain"} <= set(repository.job_names)
    assert [schedule.name for schedule in repository.schedule_defs] == ["retraining"]
    assert {"exports", "run_failures"} <= {sensor.name for sensor in repository.sensor_defs}


def test_the_launchpad_describes_every_job_and_option() -> None:
    repository = defs().get_repository_def()
    for name in ("prepare_data", "train", "evaluate_only", "retrain"):
        assert repository.get_job(name).description
    schema = repository.get_job("retrain").resource_defs["experiment"].config_schema
    options = schema.config_type.fields
    assert {"path", "force"} <= set(options)
    assert all(option.description for option in options.values())
    # Filled in already when the launchpad opens.
    assert schema.default_value == {"path": default_experiment_path(), "force": False}
