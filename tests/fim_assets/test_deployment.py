"""What is said, and what is recorded, under each of Dagster's run launchers."""

from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage import tags

from fim_assets.resources import deployment, run_worker
from fim_assets.resources.run_worker import WORKER_TAG, bind_to_worker

LOCAL = {"module": "fim_assets.resources.run_launcher", "class": "LocalRunLauncher"}
KUBERNETES = {"module": "dagster_k8s", "class": "K8sRunLauncher", "config": {"service_account_name": "dagster"}}
DOCKER = {"module": "dagster_docker", "class": "DockerRunLauncher"}
OTHER = {"module": "somewhere.else", "class": "OtherRunLauncher"}


def instance_in(folder: Path, launcher: dict[str, object] | None) -> dg.DagsterInstance:
    settings = {"telemetry": {"enabled": False}} | ({"run_launcher": launcher} if launcher else {})
    (folder / "dagster.yaml").write_text(yaml.safe_dump(settings))
    return dg.DagsterInstance.from_config(str(folder))


@pytest.mark.parametrize(
    ("launcher", "said", "recorded"),
    [
        (LOCAL, None, True),
        (None, "DefaultRunLauncher does not notice", True),
        (KUBERNETES, None, False),
        (DOCKER, None, False),
        (OTHER, "The run launcher OtherRunLauncher is not known", False),
    ],
    ids=["local", "default", "kubernetes", "docker", "other"],
)
def test_each_launcher(tmp_path: Path, launcher: dict[str, object] | None, said: str | None, recorded: bool) -> None:
    with instance_in(tmp_path, launcher) as instance:
        found = deployment.notice(instance)
        assert found is None if said is None else said in (found or "")

        @dg.asset
        def bound(context: dg.AssetExecutionContext) -> None:
            bind_to_worker(context)

        result = dg.materialize([bound], instance=instance)
        run = instance.get_run_by_id(result.run_id)
        assert run is not None
        assert (WORKER_TAG in run.tags) == recorded


def test_an_instance_in_memory_says_nothing() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert deployment.notice(instance) is None


def test_names_of_tags_are_those_of_dagster() -> None:
    assert run_worker.HIDDEN_TAG_PREFIX == tags.HIDDEN_TAG_PREFIX
    assert run_worker.GRPC_INFO_TAG == tags.GRPC_INFO_TAG
