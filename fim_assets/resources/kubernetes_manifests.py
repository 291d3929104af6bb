"""Kubernetes objects of a training run: an Indexed Job with one pod per machine, and a Service by which the pods meet.

Pods meet the "restricted" Pod Security Standard
(https://kubernetes.io/docs/concepts/security/pod-security-standards/), unless the experiment says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fim_core.config.launchers import KubernetesLauncher
from fim_core.errors import FimError
from fim_core.training.job import Job

if TYPE_CHECKING:
    from kubernetes.client import V1Job, V1Service

GRACE_SECONDS = 10
KEPT_SECONDS = 24 * 60 * 60
CONTAINER = "train"

RESTRICTED = {
    "allow_privilege_escalation": False,
    "capabilities": {"drop": ["ALL"]},
    "run_as_non_root": True,
    "seccomp_profile": {"type": "RuntimeDefault"},
}
"""Security context of the container."""


def job_name(job: Job) -> str:
    """Name of the Job and of its Service."""
    return f"fim-{job.attempt}"


def first_host(job: Job) -> str:
    """Host name of the first pod, by its name in the Service."""
    return f"{job_name(job)}-0.{job_name(job)}"


def job_manifest(job: Job, command: list[str], labels: Mapping[str, str]) -> V1Job:
    """Build the Job that runs a command line in each of its pods, without retries.

    Args:
        labels: of the Job and its pods, in addition to those of the experiment.

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
    name = job_name(job)
    metadata = {"annotations": dict(options.annotations)} if options.annotations else {}
    try:
        return construct_dagster_k8s_job(
            DagsterK8sJobConfig(job_image=options.image, dagster_home=None),
            args=None,
            job_name=name,
            pod_name=name,
            component="training",
            labels={**labels, **options.labels},
            user_defined_k8s_config=UserDefinedDagsterK8sConfig(
                container_config=_container(options, command),
                pod_spec_config=_pod(options, name),
                pod_template_spec_metadata=metadata,
                job_metadata=metadata,
                job_spec_config=_job_spec(options),
            ),
        )
    except Exception as error:
        raise FimError(
            f"launcher: the pod that it describes is invalid (pod_spec, security_context): {error}"
        ) from error


def service_manifest(job: Job, uid: str) -> V1Service:
    """Build the headless Service that gives the pods of a Job their names; it is deleted with the Job.

    Args:
        uid: of the Job.
    """
    from kubernetes import client

    name = job_name(job)
    owner = client.V1OwnerReference(api_version="batch/v1", kind="Job", name=name, uid=uid)
    return client.V1Service(
        api_version="v1",
        kind="Service",
        metadata=client.V1ObjectMeta(name=name, owner_references=[owner]),
        spec=client.V1ServiceSpec(
            cluster_ip="None",
            selector={"job-name": name},
            # The first pod must be found before it is ready.
            publish_not_ready_addresses=True,
        ),
    )


def _job_spec(options: KubernetesLauncher) -> dict[str, Any]:
    # Dagster retries and resumes. A retry by Kubernetes would run without a follower.
    common = {"backoff_limit": 0, "ttl_seconds_after_finished": KEPT_SECONDS}
    if options.num_nodes == 1:
        return common
    return common | {
        "completion_mode": "Indexed",
        "completions": options.num_nodes,
        "parallelism": options.num_nodes,
    }


def _container(options: KubernetesLauncher, command: list[str]) -> dict[str, Any]:
    container = {
        "name": CONTAINER,
        "command": command,
        "resources": _resources(options),
        "volume_mounts": [
            {"name": "storage", "mount_path": options.mount_path},
            {"name": "shared-memory", "mount_path": "/dev/shm"},
        ],
        "env": [{"name": name, "value": value} for name, value in options.env.items()],
        "env_from": [{"secret_ref": {"name": name}} for name in options.env_from_secrets],
        "security_context": RESTRICTED | options.security_context,
    }
    return container | ({"image_pull_policy": options.image_pull_policy} if options.image_pull_policy else {})


def _pod(options: KubernetesLauncher, name: str) -> dict[str, Any]:
    volumes = [
        {"name": "storage", "persistent_volume_claim": {"claim_name": options.volume_claim}},
        # NCCL communicates through shared memory; the default of a container is 64 MB.
        {"name": "shared-memory", "empty_dir": {"medium": "Memory", "size_limit": options.shared_memory}},
    ]
    pod = {
        "node_selector": dict(options.node_selector),
        "termination_grace_period_seconds": GRACE_SECONDS,
        # Training does not use the API of Kubernetes.
        "automount_service_account_token": False,
        "image_pull_secrets": [{"name": secret} for secret in options.image_pull_secrets],
        **({"subdomain": name} if options.num_nodes > 1 else {}),
    }
    return pod | options.pod_spec | {"volumes": [*volumes, *options.pod_spec.get("volumes", [])]}


def _resources(options: KubernetesLauncher) -> dict[str, dict[str, str]]:
    limits = {"memory": options.memory, options.gpu_resource: str(options.num_gpus) if options.num_gpus else None}
    requests = limits | {"cpu": options.cpus}
    return {
        "limits": {key: value for key, value in limits.items() if value},
        "requests": {key: value for key, value in requests.items() if value},
    }
