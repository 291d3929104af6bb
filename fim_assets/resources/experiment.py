"""The experiment that a run works on, chosen in the launchpad, by environment, or by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg
from pydantic import Field

from fim_core.config import Experiment, load_experiment
from fim_core.config.workflow import ExportsConfig, NotifyConfig, ScheduleConfig
from fim_core.errors import FimError
from fim_core.pipeline import Stage, StageResult, run_stage, stage_of
from fim_core.pipeline.stage import OnEvent
from fim_core.store import Store

DEFAULT_EXPERIMENT = "configs/demo.yaml"


def default_experiment_path() -> str:
    """$FIM_EXPERIMENT, or the demo."""
    return os.environ.get("FIM_EXPERIMENT", DEFAULT_EXPERIMENT)


@dataclass(frozen=True)
class WorkflowSettings:
    """The parts of the default experiment that shape the definitions themselves."""

    schedule: ScheduleConfig
    exports: ExportsConfig | None
    notify: NotifyConfig


def workflow_settings() -> WorkflowSettings:
    """Schedule, sensor folder and notifier of the default experiment.

    An experiment file that cannot be used must not take the whole code location down: its defaults are used, with a
    warning, and each run says what is wrong with the file.
    """
    try:
        experiment = load_experiment(default_experiment_path())
    except FimError as error:
        dg.get_dagster_logger().warning(f"Schedule and sensors use their defaults. {error}")
        return WorkflowSettings(ScheduleConfig(), None, NotifyConfig())
    return WorkflowSettings(experiment.schedule, experiment.exports, experiment.notify)


class ExperimentResource(dg.ConfigurableResource):
    """Reads an experiment file and makes its assets in the experiment's store."""

    path: str = Field(
        default_factory=default_experiment_path,
        description="Experiment file (YAML). Default: $FIM_EXPERIMENT, or configs/demo.yaml.",
    )
    force: bool = Field(False, description="Make assets again even when nothing that decides their content has changed.")

    def load(self) -> Experiment:
        """The validated experiment.

        Raises:
            dagster.Failure: the file is missing or has options that cannot be used.
        """
        with user_errors():
            return load_experiment(self.path)

    def materialize(self, stage: Stage, on_event: OnEvent = lambda event: None) -> StageResult:
        """Make, or reuse, the asset of a stage.

        Raises:
            dagster.Failure: a mistake that the user can mend; not retried.
        """
        experiment = self.load()
        with user_errors():
            return run_stage(
                stage,
                experiment,
                Store(experiment.storage),
                upstream_of=stage_of,
                force=self.force,
                on_event=on_event,
            )


@contextmanager
def user_errors() -> Iterator[None]:
    """Show a user's mistake as one clear failure of the step, without a traceback of ours and without retries."""
    try:
        yield
    except FimError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
