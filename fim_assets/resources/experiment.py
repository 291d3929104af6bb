"""The experiment of a run, and the sections of it that definitions depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field, ValidationError

from fim_assets.instance import PipelineInstance
from fim_core.config import DataConfig
from fim_core.config.base import Section
from fim_core.config.experiment_file import ExperimentFile, name_in, read_options
from fim_core.config.workflow import ExportsConfig, NotifyConfig, RetrainingConfig
from fim_core.errors import FimError, system_error
from fim_core.training.job import TrainingFailed

S = TypeVar("S", bound=Section)
D = TypeVar("D")


@dataclass(frozen=True)
class WorkflowSettings:
    """Sections of an experiment that the definitions depend on. `data` is None if it is invalid."""

    retraining: RetrainingConfig
    exports: ExportsConfig | None
    notify: NotifyConfig
    data: DataConfig | None = None


def workflow_settings(instance: PipelineInstance) -> WorkflowSettings:
    """Sections `retraining`, `exports` and `notify` of an instance's experiment.

    An invalid experiment file must neither break the code location nor stop retraining silently. Sections that are valid
    by themselves apply, an invalid `retraining` section is enabled at its default time, and each run fails with the
    reason why the file is invalid.
    """
    try:
        experiment = instance.read().experiment
    except FimError as error:
        dg.get_dagster_logger().warning(f"Runs will fail until the experiment file is corrected. {error}")
    else:
        return WorkflowSettings(experiment.retraining, experiment.exports, experiment.notify, experiment.data)
    try:
        options = read_options(Path(instance.experiment))
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
    """The experiment file of a run, and whether existing versions may be reused."""

    path: str = Field(description="Experiment file (YAML), of the experiment that these assets belong to.")
    force: bool = Field(False, description="Make assets again even if nothing that affects their content has changed.")

    def read(self, instance: PipelineInstance) -> ExperimentFile:
        """Read and validate the experiment file, for assets of an instance.

        Raises:
            dagster.Failure: the file is missing, has invalid options, or is of another experiment.
        """
        with user_errors():
            if (name := name_in(Path(self.path))) != instance.experiment_name:
                raise FimError(
                    f"These assets belong to the experiment {instance.experiment_name} ({instance.experiment}), and "
                    f"{self.path} is the experiment {name}: their histories would be mixed. Give {name} assets of its own, "
                    "an instance of the component fim_assets.FimPipeline (`dg scaffold defs fim_assets.FimPipeline NAME`), "
                    f"or start Dagster with FIM_EXPERIMENT={self.path}."
                )
            return instance.read(self.path)


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
