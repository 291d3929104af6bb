"""Kubernetes launcher: training in a Job, through dagster-k8s."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fim_assets.resources.kubernetes_manifests import first_host, job_manifest, job_name, service_manifest
from fim_assets.resources.pod_conditions import Waiting, why_no_pods, why_waiting
from fim_core.config.launchers import KubernetesLauncher
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.remote import NoAnswer, RemoteRanks, Status, launcher_command
from fim_core.training.job import Job, TrainingFailed

if TYPE_CHECKING:
    from dagster_k8s.client import DagsterKubernetesClient

PODS_SECONDS = 5.0
"""Time between two looks at pods that do not run yet."""
HOPELESS_SECONDS = 60.0
"""How long a pod may wait for a reason that does not go away by itself."""


@register("kubernetes")
def start_kubernetes(job: Job, lock: int, labels: Mapping[str, str]) -> RemoteRanks:
    """Create the Kubernetes Job.

    Args:
        labels: labels of the Job and its pods.

    Raises:
        FimError: dagster-k8s is not installed, the storage folder is outside the volume, no cluster can be reached, or the
            cluster refuses the Job.
    """
    options = job.experiment.launcher
    assert isinstance(options, KubernetesLauncher)

    def submit(command: list[str]) -> KubernetesJob:
        manifest = job_manifest(job, command, labels)
        client = _connect(options)
        created = KubernetesJob(client, job_name(job), options)
        try:
            with _answering(creates=True):
                client.create_namespaced_job_with_retries(body=manifest, namespace=options.namespace)
                if options.num_nodes > 1:
                    found = client.batch_api.read_namespaced_job(job_name(job), options.namespace)
                    service = service_manifest(job, found.metadata.uid)
                    client.core_api.create_namespaced_service(options.namespace, service)
        except (NoAnswer, FimError) as error:
            with suppress(NoAnswer, TrainingFailed):
                created.stop()
            raise FimError(f"The Kubernetes Job that `launcher` describes cannot be created: {error}") from error
        return created

    return RemoteRanks(job, submit, launcher_command("python", options.num_nodes, first_host(job)))


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


@contextmanager
def _answering(*, creates: bool = False) -> Iterator[None]:
    """Turn errors of the API into one line each: NoAnswer, or TrainingFailed for a refusal, which does not go away.

    Args:
        creates: whether something is being created, so that every refusal concerns its description.
    """
    from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError
    from kubernetes.client.rest import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except HTTPError as error:
        raise NoAnswer(_line(error)) from error
    except (DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError, ApiException) as error:
        cause = getattr(error, "k8s_api_exception", error)
        code = getattr(cause, "status", None)
        if not creates and (code is None or code >= 500 or code in (0, 408, 409, 429)):
            raise NoAnswer(_line(cause)) from error
        raise TrainingFailed(f"Kubernetes: {_line(cause)}") from error


def _line(error: BaseException) -> str:
    """The message of the API's answer, or the first line of the error."""
    with suppress(ValueError, TypeError, KeyError):
        return " ".join(json.loads(getattr(error, "body", None) or "")["message"].split())
    return str(error).strip().partition("\n")[0]


class KubernetesJob:
    """A Job of a Kubernetes cluster."""

    def __init__(self, client: DagsterKubernetesClient, name: str, options: KubernetesLauncher) -> None:
        self.name = f"Kubernetes Job {options.namespace}/{name}"
        self._client = client
        self._job_name = name
        self._options = options
        self._stopped = False
        self._created = time.monotonic()
        self._looked = float("-inf")
        self._all_began = False
        self._said: str | None = None
        self._hopeless_since: float | None = None

    def status(self) -> Status:
        """Status according to the cluster; after a stop, `running` until all pods are gone.

        Raises:
            NoAnswer: the cluster does not answer.
            TrainingFailed: a pod cannot run, or the cluster refuses to answer.
        """
        with _answering():
            if self._stopped:
                return "running" if self._pods() else "failed"
            status = self._client.get_job_status(self._job_name, self._options.namespace)
            if status is None or status.failed:
                return "failed"
            if (status.succeeded or 0) >= self._options.num_nodes:
                return "succeeded"
            if not self._all_began and time.monotonic() - self._looked >= PODS_SECONDS:
                self._look_at_pods()
        return "running"

    def _pods(self) -> list[Any]:
        return self._client.get_pods_in_job(self._job_name, self._options.namespace)

    def _look_at_pods(self) -> None:
        """Say why a pod does not run yet, and give up when that does not change.

        Raises:
            TrainingFailed: a pod cannot run, or has waited for too long.
        """
        now = self._looked = time.monotonic()
        pods = self._pods()
        pending = [pod for pod in pods if pod.status.phase == "Pending"]
        self._all_began = len(pods) >= self._options.num_nodes and not pending
        if self._all_began:
            return
        waiting = self._why(pending, pods)
        if waiting is not None and waiting.reason != self._said:
            self._said = waiting.reason
            print(f"[launcher] {waiting.reason}", file=sys.stderr, flush=True)
        hopeless = waiting is not None and waiting.hopeless
        self._hopeless_since = (self._hopeless_since or now) if hopeless else None
        reason = waiting.reason if waiting else "Kubernetes gives no reason."
        if self._hopeless_since is not None and now - self._hopeless_since >= HOPELESS_SECONDS:
            raise TrainingFailed(f"{self.name} cannot run. {reason}")
        limit = self._options.pending_timeout_minutes
        if limit is not None and now - self._created > limit * 60:
            raise TrainingFailed(
                f"{self.name} has not started in launcher.pending_timeout_minutes ({limit:g}). {reason}"
            )

    def _why(self, pending: list[Any], pods: list[Any]) -> Waiting | None:
        found = [why_waiting(pod, self._events(pod.metadata.name)) for pod in pending]
        if not pods:
            job = self._client.batch_api.read_namespaced_job(self._job_name, self._options.namespace)
            found = [why_no_pods(job, self._events(self._job_name))]
        known = [waiting for waiting in found if waiting is not None]
        return next((waiting for waiting in known if waiting.hopeless), known[0] if known else None)

    def _events(self, name: str) -> list[Any]:
        """Events about a Job or pod; empty if this account may not read them."""
        from kubernetes.client.rest import ApiException

        try:
            return self._client.retrieve_pod_events(name, self._options.namespace)
        except ApiException as error:
            if error.status in (403, 404):
                return []
            raise

    def output(self) -> str:
        """State, warnings and last log lines of the pods."""
        with _answering():
            pods = self._client.get_pod_names_in_job(self._job_name, self._options.namespace)
            if not pods:
                return "The pod no longer exists: it was deleted, or its node is gone."
            return "\n\n".join(self._client.get_pod_debug_info(pod, self._options.namespace) for pod in pods)

    def stop(self) -> None:
        """Delete the Job with its pods and its Service."""
        with _answering():
            self._client.delete_job(job_name=self._job_name, namespace=self._options.namespace)
            if self._options.num_nodes > 1:
                self._delete_service()
        self._stopped = True

    def _delete_service(self) -> None:
        from kubernetes.client.rest import ApiException

        try:
            self._client.core_api.delete_namespaced_service(self._job_name, self._options.namespace)
        except ApiException as error:
            if error.status != 404:
                raise
