"""Kubernetes launcher: training in a Job, through dagster-k8s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fim_core.config.launchers import KubernetesLauncher
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.remote import RemoteRanks, Status
from fim_core.training.job import Job

if TYPE_CHECKING:
    from dagster_k8s.client import DagsterKubernetesClient
    from kubernetes.client import V1Job

GRACE_SECONDS = 10
KEPT_SECONDS = 24 * 60 * 60
CONTAINER = "train"


@register("kubernetes")
def start_kubernetes(job: Job, lock: int, labels: Mapping[str, str]) -> RemoteRanks:
    """Create the Kubernetes Job.

    Args:
        labels: labels of the Job and its pod.

    Raises:
        FimError: dagster-k8s is not installed, the storage folder is outside the volume, no cluster can be reached, or the
            cluster refuses the Job.
    """
    options = job.experiment.launcher
    assert isinstance(options, KubernetesLauncher)

    def submit(command: list[str]) -> KubernetesJob:
        manifest = job_manifest(job, command, labels)
        from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError

        client = _connect(options)
        try:
            client.create_namespaced_job_with_retries(body=manifest, namespace=options.namespace)
        except (DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError) as error:
            raise FimError(
                f"Kubernetes refuses the Job that `launcher` describes: {error.k8s_api_exception}"
            ) from error
        return KubernetesJob(client, manifest.metadata.name, options.namespace)

    return RemoteRanks(job, submit)


def job_manifest(job: Job, command: list[str], labels: Mapping[str, str]) -> V1Job:
    """Build the Job that runs a command line in one pod, without retries.

    Raises:
        FimError: dagster-k8s is not installed, or the pod that the experiment describes is invalid.
    """
    try:
        from dagster_k8s.job import DagsterK8sJobConfig, UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
    except ImportError as error:
        raise FimError(
            "`launcher.type: kubernetes` needs dagster-k8s: pip install -c constraints.txt -e '.[kubernetes]'"
        ) from error
    options = job.experiment.launcher
    assert isinstance(options, KubernetesLauncher)
    if not job.work.root.is_relative_to(options.mount_path):
        raise FimError(
            f"launcher.mount_path: the storage folder must be in the volume, below {options.mount_path}, but training "
            f"works in {job.work.root}. Set `storage` to a folder in the volume."
        )
    name = f"fim-{job.attempt}"
    mounts = [
        {"name": "storage", "mount_path": options.mount_path},
        {"name": "shared-memory", "mount_path": "/dev/shm"},
    ]
    volumes = [
        {"name": "storage", "persistent_volume_claim": {"claim_name": options.volume_claim}},
        # NCCL communicates through shared memory; the default of a container is 64 MB.
        {"name": "shared-memory", "empty_dir": {"medium": "Memory"}},
    ]
    pod = {"node_selector": options.node_selector, "termination_grace_period_seconds": GRACE_SECONDS}
    try:
        return construct_dagster_k8s_job(
            DagsterK8sJobConfig(job_image=options.image, dagster_home=None),
            args=None,
            job_name=name,
            pod_name=name,
            component="training",
            labels=labels,
            user_defined_k8s_config=UserDefinedDagsterK8sConfig(
                container_config={
                    "name": CONTAINER,
                    "command": command,
                    "resources": _resources(options),
                    "volume_mounts": mounts,
                },
                pod_spec_config=pod | options.pod_spec | {"volumes": [*volumes, *options.pod_spec.get("volumes", [])]},
                # Dagster retries and resumes. A retry by Kubernetes would run without a follower.
                job_spec_config={"backoff_limit": 0, "ttl_seconds_after_finished": KEPT_SECONDS},
            ),
        )
    except Exception as error:
        raise FimError(f"launcher.pod_spec: the pod specification is invalid: {error}") from error


def _resources(options: KubernetesLauncher) -> dict[str, dict[str, str]]:
    limits = {"memory": options.memory, "nvidia.com/gpu": str(options.num_gpus) if options.num_gpus else None}
    requests = limits | {"cpu": options.cpus}
    return {
        "limits": {key: value for key, value in limits.items() if value},
        "requests": {key: value for key, value in requests.items() if value},
    }


def _connect(options: KubernetesLauncher) -> DagsterKubernetesClient:
    import kubernetes
    from dagster_k8s.client import DagsterKubernetesClient

    try:
        if options.context is None:
            try:
                kubernetes.config.load_incluster_config()
            except kubernetes.config.ConfigException:
                kubernetes.config.load_kube_config()
        else:
            kubernetes.config.load_kube_config(context=options.context)
    except kubernetes.config.ConfigException as error:
        raise FimError(f"launcher.context: no Kubernetes cluster is configured here: {error}") from error
    return DagsterKubernetesClient.production_client()


class KubernetesJob:
    """A Job of a Kubernetes cluster."""

    def __init__(self, client: DagsterKubernetesClient, job_name: str, namespace: str) -> None:
        self.name = f"Kubernetes Job {namespace}/{job_name}"
        self._client = client
        self._job_name = job_name
        self._namespace = namespace
        self._stopped = False

    def status(self) -> Status:
        """Status according to the cluster; after a stop, `running` until all pods are gone."""
        if self._stopped:
            pods: list[Any] = self._client.get_pods_in_job(self._job_name, self._namespace)
            return "running" if pods else "failed"
        status = self._client.get_job_status(self._job_name, self._namespace)
        if status is None or status.failed:
            return "failed"
        return "succeeded" if status.succeeded else "running"

    def output(self) -> str:
        """State, warnings and last log lines of the pods."""
        pods = self._client.get_pod_names_in_job(self._job_name, self._namespace)
        if not pods:
            return "The pod no longer exists: it was deleted, or its node is gone."
        return "\n\n".join(self._client.get_pod_debug_info(pod, self._namespace) for pod in pods)

    def stop(self) -> None:
        """Delete the Job with its pods."""
        self._client.delete_job(job_name=self._job_name, namespace=self._namespace)
        self._stopped = True
