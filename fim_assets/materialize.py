"""`python -m fim_assets.materialize`: materialize all assets with Dagster's command, with the reason of a failure last.

Dagster itself prints the message of a failure in the middle of a long stack trace.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import dagster as dg

from fim_assets.instance import DAILY, PipelineInstance, default_experiment_path
from fim_core.errors import FimError
from fim_core.pipeline import STAGES

# Deprecation warnings that Dagster's own command causes.
QUIET = ("-W", "ignore:Function `asset_materialize_command`", "-W", "ignore:Parameter `include_sources`")
COMMAND = (*QUIET, "-m", "dagster", "asset", "materialize", "-m", "fim_assets.definitions", "--select")


def main() -> int:
    """Materialize all assets of the experiment in FIM_EXPERIMENT into DAGSTER_HOME; returns Dagster's exit code."""
    began = datetime.now(UTC)
    process = subprocess.Popen([sys.executable, *COMMAND, selection()])
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # Dagster gets the signal too and ends the run
            continue
    if code:
        with dg.DagsterInstance.get() as instance:
            for sentence in failures(instance, since=began):
                print(f"\nfim: {sentence}", file=sys.stderr)
    return code


def selection() -> str:
    """All assets; with exports by day, those without partitions, which read the exports of all days."""
    try:
        is_dated = PipelineInstance(default_experiment_path()).read().experiment.data.is_dated
    except FimError:  # the run reports it
        is_dated = False
    return ",".join(stage.asset for stage in STAGES if stage.asset not in DAILY) if is_dated else "*"


def failures(instance: dg.DagsterInstance, *, since: datetime) -> list[str]:
    """Messages of the failed steps of the newest failed run; for blocking checks, one per check with its counts."""
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], created_after=since)
    messages = []
    for run in instance.get_runs(failed, limit=1):
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            data = entry.get_dagster_event().step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                messages.append(data.user_failure_data.description)
            elif data.error is not None:
                messages += _failed_checks(instance, run.run_id, entry.step_key) or [data.error.message.strip()]
    return messages


def _failed_checks(instance: dg.DagsterInstance, run_id: str, step_key: str | None) -> list[str]:
    """Descriptions of the checks that made a step fail; Dagster's error lists only their names."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    evaluations = [
        entry.get_dagster_event().asset_check_evaluation_data for entry in entries if entry.step_key == step_key
    ]
    return [
        f"{found.asset_key.to_user_string()} did not pass its checks: {found.description}"
        for found in evaluations
        if not found.passed and found.blocking and found.severity is dg.AssetCheckSeverity.ERROR
    ]


if __name__ == "__main__":
    sys.exit(main())
