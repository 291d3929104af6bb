"""The retraining schedule: settings, and ticks during a running retraining."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from pydantic import ValidationError

from fim_assets.automation.jobs import build_jobs
from fim_assets.automation.retraining import retraining_schedule
from fim_assets.definitions import defs
from fim_assets.instance import PipelineInstance
from fim_assets.resources.experiment import workflow_settings
from fim_core.config.workflow import RetrainingConfig


@pytest.mark.parametrize(
    ("job", "status", "skipped"),
    [
        ("retrain", dg.DagsterRunStatus.STARTED, True),
        ("retrain", dg.DagsterRunStatus.STARTING, True),
        ("retrain", dg.DagsterRunStatus.FAILURE, False),
        ("prepare_data", dg.DagsterRunStatus.STARTED, False),
    ],
)
def test_a_tick_is_skipped_while_a_retraining_runs(job: str, status: dg.DagsterRunStatus, skipped: bool) -> None:
    pipeline = PipelineInstance("tiny.yaml")
    config = RetrainingConfig(cron="0 3 * * 1", timezone="Europe/Berlin", enabled=True)
    schedule = retraining_schedule(pipeline, build_jobs(pipeline)["retrain"], config)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * 1", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    with dg.instance_for_test() as instance:
        instance.add_run(dg.DagsterRun(job, run_id="00000000-0000-0000-0000-000000000001", status=status))
        result = schedule(dg.build_schedule_context(instance))
    assert isinstance(result, dg.SkipReason if skipped else dg.RunRequest)


@pytest.mark.parametrize(
    ("options", "valid"),
    [
        ({"cron": "0 3 * * 0"}, True),
        ({"cron": "*/15 8-18 * JAN-MAR MON,FRI"}, True),
        ({"cron": "0 3 * * 7"}, True),
        ({"cron": "0 0 3 * * 0"}, False),
        ({"cron": "0 3 * *"}, False),
        ({"cron": "60 3 * * 0"}, False),
        ({"cron": "0 24 * * *"}, False),
        ({"cron": "0 3 31 2 *"}, False),
        ({"cron": "at three"}, False),
        ({"cron": ""}, False),
        ({"timezone": "Europe/Berlin"}, True),
        ({"timezone": "Europe/Berlim"}, False),
        ({"timezone": "CEST"}, False),
    ],
)
def test_the_experiment_accepts_what_dagster_accepts(options: dict[str, str], valid: bool) -> None:
    given = {"cron": "0 3 * * 0", "timezone": "UTC"} | options

    @dg.job
    def nothing() -> None: ...

    def define() -> None:
        schedule = dg.ScheduleDefinition(job=nothing, cron_schedule=given["cron"], execution_timezone=given["timezone"])
        dg.Definitions(schedules=[schedule]).get_repository_def()

    if valid:
        define()
        RetrainingConfig(**given)
    else:
        with pytest.raises(dg.DagsterError):
            define()
        with pytest.raises(ValidationError):
            RetrainingConfig(**given)


VALID = "model: {name_or_path: m}\ndata: {sources: [{type: demo}]}\n"
OURS = "retraining: {cron: '0 5 * * *', enabled: true}\nnotify: {webhook: 'https://example.org/hook'}\n"


@pytest.mark.parametrize(
    ("content", "cron", "enabled", "webhook"),
    [
        (VALID + OURS, "0 5 * * *", True, True),
        ("modle: 1\n" + VALID + OURS, "0 5 * * *", True, True),
        ("modle: 1\n" + VALID, "0 3 * * 0", False, False),
        (VALID + OURS.replace("*'", "* * *'"), "0 3 * * 0", True, True),
        (VALID + OURS + "  bad: [", "0 3 * * 0", True, False),
        ("", "0 3 * * 0", True, False),
        (None, "0 3 * * 0", True, False),
    ],
    ids=["valid", "typo", "typo, no retraining", "bad cron", "not YAML", "empty", "missing"],
)
def test_valid_sections_of_a_broken_experiment_file_apply(
    content: str | None, cron: str, enabled: bool, webhook: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheduled runs then fail with the reason and send a notification, instead of never starting."""
    file = tmp_path / "experiment.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("FIM_EXPERIMENT", str(file))
    settings = workflow_settings(PipelineInstance(str(file)))
    assert (settings.retraining.cron, settings.retraining.enabled) == (cron, enabled)
    assert (settings.notify.webhook is not None) == webhook
    defs().get_repository_def()
