"""The experiment of a run, chosen in the launchpad, by environment variable, or by default."""

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
    """Sections of the default experiment that the definitions depend on."""

    retraining: RetrainingConfig
    exports: ExportsConfig | None
    notify: NotifyConfig


def workflow_settings() -> WorkflowSettings:
    """Sections `retraining`, `exports` and `notify` of the default experiment.

    An invalid experiment file must neither break the code location nor stop retraining silently. Sections that are valid
    by themselves apply, an invalid `retraining` section is enabled at its default time, and each run fails with the
    reason why the file is invalid.
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
    """The experiment of a run, and whether existing versions may be reused."""

    path: str = Field(
        default_factory=default_experiment_path,
        description="Experiment file (YAML). Default: $FIM_EXPERIMENT, or configs/demo.yaml.",
    )
    force: bool = Field(False, description="Make assets again even if nothing that affects their content has changed.")

    def load(self) -> Experiment:
        """Load and validate the experiment.

        Raises:
            dagster.Failure: the file is missing or has invalid options.
        """
        with user_errors():
            return load_experiment(self.path)

    def notice(self) -> str | None:
        """The notice for a file of ArcticTraining, or None.

        Raises:
            dagster.Failure: as `load` does.
        """
        with user_errors():
            return read_experiment_file(self.path).notice


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that users can correct into a failure of the step, without a traceback.

    Only failed training is retried, since it resumes; a user's mistake would only be repeated.
    """
    try:
        yield
    except FimError as error:
        raise dg.Failure(description=str(error), allow_retries=isinstance(error, TrainingFailed)) from None
    except Exception as error:
        if (message := system_error(error)) is None:
            raise
        raise dg.Failure(description=str(message), allow_retries=False) from error
