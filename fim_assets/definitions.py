"""Dagster definitions. Heavy libraries are imported by the stages when they run."""

from __future__ import annotations

from functools import partial

import dagster as dg

from fim_assets.assets import ASSETS
from fim_assets.automation.conditions import with_automation
from fim_assets.automation.exports import exports_sensor
from fim_assets.automation.jobs import JOBS
from fim_assets.automation.notify import failure_sensor
from fim_assets.automation.retraining import retraining_schedule
from fim_assets.resources.experiment import ExperimentResource, default_experiment_path, workflow_settings
from fim_assets.resources.launcher import Launcher


@dg.definitions
def defs() -> dg.Definitions:
    """The pipeline for the experiment in $FIM_EXPERIMENT; a run can choose another one in the launchpad."""
    settings = workflow_settings()
    return dg.Definitions(
        assets=dg.map_asset_specs(partial(with_automation, retraining=settings.retraining), ASSETS),
        jobs=JOBS,
        schedules=[retraining_schedule(settings.retraining)],
        sensors=[exports_sensor(settings.exports), failure_sensor(settings.notify)],
        resources={
            "experiment": ExperimentResource(path=default_experiment_path(), force=False),
            "launcher": Launcher(),
        },
    )
