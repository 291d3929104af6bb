"""Publishing to an MLflow model registry: a version for each champion, and the alias `champion` on the present one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from fim_core.config.publishing import MlflowTarget
from fim_core.errors import FimError, reason_of
from fim_core.publishing.release import Release

ALIAS = "champion"

_EXPERIMENT = "fim_experiment"
_RELEASE = "fim_release"
_ARTIFACTS = "model"


def publish_to_mlflow(release: Release, target: MlflowTarget) -> bool:
    """Register a release unless it is, and move the alias to it; returns whether anything had to be changed.

    The version's run holds the files and the metrics of the report. `models:/<name>@champion` leads to the files.

    Raises:
        FimError: the registry cannot be reached or written, or the model belongs to something else.
    """
    from mlflow import MlflowClient

    uri = target.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise FimError("There is no MLflow server to publish to. Set `tracking_uri`, or MLFLOW_TRACKING_URI.")
    name = target.model or release.record["experiment"]
    with _reporting(name):
        # Without an explicit registry, MLflow would use a database in the current folder.
        client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        _require_own_model(client, name, release)
        found = client.search_model_versions(f"name='{name}' and tag.{_RELEASE}='{release.name}'")
        version = found[0].version if found else _register(client, name, release)
        if found and str(client.get_registered_model(name).aliases.get(ALIAS)) == str(version):
            return False
        client.set_registered_model_alias(name, ALIAS, version)
    return True


def _require_own_model(client: Any, name: str, release: Release) -> None:
    """Create the registered model, or require that it is one of this experiment."""
    from mlflow.exceptions import MlflowException

    owner = release.record["experiment"]
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, tags={_EXPERIMENT: owner})
        return
    found = model.tags.get(_EXPERIMENT)
    if found is None and not client.search_model_versions(f"name='{name}'", max_results=1):
        client.set_registered_model_tag(name, _EXPERIMENT, owner)
    elif found != owner:
        whose = f"experiment {found}" if found else "something else"
        raise FimError(f"The registered model {name} belongs to {whose}. Give each experiment another `model`.")


def _register(client: Any, name: str, release: Release) -> str:
    """Upload the files and metrics to a run, and make a version of it; an interrupted run is marked as failed."""
    record = release.record
    tags = {_RELEASE: release.name, "fim_checkpoint": record["checkpoint"]}
    experiment = client.get_experiment_by_name(record["experiment"])
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(record["experiment"])
    run = client.create_run(experiment_id, run_name=release.name, tags=tags)
    try:
        for metric, value in record["metrics"].items():
            client.log_metric(run.info.run_id, metric, value)
        for file in release.files:
            below = PurePosixPath(_ARTIFACTS, file).parent.as_posix()
            client.log_artifact(run.info.run_id, str(release.folder / file), below)
    except BaseException:
        client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)
    source = f"{run.info.artifact_uri.rstrip('/')}/{_ARTIFACTS}"
    return client.create_model_version(name, source=source, run_id=run.info.run_id, tags=tags).version


@contextmanager
def _reporting(name: str) -> Iterator[None]:
    try:
        yield
    # MLflow's own errors, and those of the clients of its artifact stores.
    except Exception as error:
        if isinstance(error, FimError):
            raise
        raise FimError(
            f"MLflow does not accept the model {name} ({reason_of(error)}). Check `tracking_uri` and MLFLOW_TRACKING_URI, "
            "the credentials in the environment, and whether the server runs."
        ) from error
