"""Retrainings follow each other; they do not pile up."""

from __future__ import annotations

import dagster as dg
import pytest

from fim_assets.automation.schedule import retraining_schedule
from fim_core.config.workflow import ScheduleConfig


@pytest.mark.parametrize(
    ("job", "status", "skipped"),
    [
        ("retrain", dg.DagsterRunStatus.STARTED, True),
        ("retrain", dg.DagsterRunStatus.STARTING, True),
        ("retrain", dg.DagsterRunStatus.FAILURE, False),
        ("prepare_data", dg.DagsterRunStatus.STARTED, False),
    ],
)
def test_a_tick_is_passed_over_while_a_retraining_runs(job: str, status: dg.DagsterRunStatus, skipped: bool) -> None:
    schedule = retraining_schedule(ScheduleConfig(cron="0 3 * * 1", timezone="Europe/Berlin", enabled=True))
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * 1", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    with dg.instance_for_test() as instance:
        instance.add_run(dg.DagsterRun(job, run_id="00000000-0000-0000-0000-000000000001", status=status))
        result = schedule(dg.build_schedule_context(instance))
    assert isinstance(result, dg.SkipReason if skipped else dg.RunRequest)
