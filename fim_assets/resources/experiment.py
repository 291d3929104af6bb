"""The experiment that a run works on, chosen in the launchpad, by environment, or by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field, ValidationError

from fim_core.config import Experiment, load_experiment, read_experiment_file
from fim_core.config.base import Section
from fim_core.config.experiment_file import read_options
from fim_core.config.workflow import ExportsConfig, NotifyConfig, RetrainingConfig
from fim_core.errors import FimError, system_error
from fim_core.training.job import TrainingFailed

DEFAULT_EXPERIMENT = "configs/demo.yaml"

S = TypeVar("S", bound=Section)
D = TypeVar("D")


def default_experiment_path() -> str:
    """$FIM_EXPERIMENT, or the demo."""
    return os.environ.get("FIM_EXPERIMENT") or DEFAULT_EXPERIMENT


@dataclass(frozen=True)
class WorkflowSettings:
    """The parts of the default experiment that shape the definitions themselves."""

    retraining: RetrainingConfig
    exports: ExportsConfig | None
    notify: NotifyConfig


def workflow_settings() -> WorkflowSettings:
    """Schedule, sensor folder and notifier of the default experiment.

    An experiment file that cannot be used must neither take the code location down nor end the retraining silently:
    sections that are valid by themselves count, an invalid `retraining` is on at its default time, and each run fails
    with what is wrong with the file.
    """
    path = default_experiment_path()
    try:
        experiment = load_experiment(path)
    except FimError as error:
        dg.get_dagster_logger().warning(f"Runs will fail until the experiment file is corrected. {error}")
    else:
        return WorkflowSettings(experiment.retraining, experiment.exports, experiment.notify)
    try:
        options = read_options(Path(path))
    except FimError:  # already in the warning
        return WorkflowSettings(RetrainingConfig(enabled=True), None, NotifyConfig())
    return WorkflowSettings(
        _valid_section(RetrainingConfig, options.get("retraining", {}), RetrainingConfig(enabled=True)),
        _valid_section(ExportsConfig, options.get("exports"), None),
        _valid_section(NotifyConfig, options.get("notify", {}), NotifyConfig()),
    )


def _valid_section(kind: type[S], options: Any, otherwise: D) -> S | D:
    try:
        return kind.model_validate(options)
    except ValidationError:
        return otherwise


class ExperimentResource(dg.ConfigurableResource):
    """Which experiment a run works on, and whether it may reuse what is there."""

    path: str = Field(
        default_factory=default_experiment_path,
        description="Experiment file (YAML). Default: $FIM_EXPERIMENT, or configs/demo.yaml.",
    )
    force: bool = Field(
        False, description="Make assets again even when nothing that decides their content has changed."
    )

    def load(self) -> Experiment:
        """The validated experiment.

        Raises:
            dagster.Failure: the file is missing or has options that cannot be used.
        """
        with user_errors():
            return load_experiment(self.path)

    def notice(self) -> str | None:
        """What to know when the file is one of ArcticTraining.

        Raises:
            dagster.Failure: as `load` does.
        """
        with user_errors():
            return read_experiment_file(self.path).notice


@contextmanager
def user_errors() -> Iterator[None]:
    """Show a mistake as one clear failure of the step, without a traceback of ours.

    Only training that broke down is tried again, since it resumes; a mistake of the user would just be repeated.
    """
    try:
        yield
    except FimError as error:
        raise dg.Failure(description=str(error), allow_retries=isinstance(error, TrainingFailed)) from None
    except Exception as error:
        if (message := system_error(error)) is None:
            raise
        raise dg.Failure(description=str(message), allow_retries=False) from error
