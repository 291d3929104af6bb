"""The Kubernetes launcher without a cluster: the submitted objects and the API calls.

Objects are validated strictly against the schemas that Kubernetes publishes. The API server is a small HTTP server that
stores one Job and its pods; everything on our side of it is real.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_pipeline import TINY

from fim_core.atomic import write_json
from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.training.job import Job, TrainingFailed, Work

pytest.importorskip("dagster_k8s", reason="dagster-k8s is not installed: pip install -e '.[kubernetes]'")

from fim_assets.resources import kubernetes as launcher
from fim_assets.resources.kubernetes import start_kubernetes
from fim_assets.resources.kubernetes_manifests import first_host, job_manifest, service_manifest

JOBS = "/apis/batch/v1/namespaces/ml/jobs"
PODS = "/api/v1/namespaces/ml/pods"
SERVICES = "/api/v1/namespaces/ml/services"
COMMAND = ["python", "-m", "fim_core.launchers.remote", "--job", "job.json"]


def job_in(folder: Path, **options: Any) -> Job:
    launcher = {
        "type": "kubernetes",
        "image": "registry/fim:1",
        "namespace": "ml",
        "volume_claim": "fim-storage",
        "mount_path": str(folder),
        **options,
    }
    experiment = Experiment.model_validate({**TINY, "launcher": launcher})
    work = Work(folder / "work")
    work.root.mkdir(exist_ok=True)
    return Job(experiment, folder, folder, work, "1a2b3c4d")


def test_the_job_that_is_submitted(tmp_path: Path) -> None:
    from kubernetes.client import ApiClient, V1Job

    job = job_in(
        tmp_path,
        num_gpus=2,
        cpus="8",
        memory="64Gi",
        node_selector={"gpu": "h100"},
        pod_spec={"tolerations": [{"key": "gpu", "operator": "Exists"}], "service_account_name": "trainer"},
    )
    manifest = job_manifest(job, COMMAND, {"dagster/run-id": "r-1"})
    assert isinstance(manifest, V1Job)
    sent = ApiClient().sanitize_for_serialization(manifest)
    assert sent["metadata"]["name"] == "fim-1a2b3c4d"
    assert sent["metadata"]["labels"]["dagster/run-id"] == "r-1"
    assert sent["spec"]["backoffLimit"] == 0
    pod = sent["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["serviceAccountName"] == "trainer"
    assert {"name": "storage", "persistentVolumeClaim": {"claimName": "fim-storage"}} in pod["volumes"]
    container = pod["containers"][0]
    assert container["command"] == COMMAND
    assert container["image"] == "registry/fim:1"
    assert {"name": "storage", "mountPath": str(tmp_path)} in container["volumeMounts"]
    assert container["resources"] == {
        "limits": {"memory": "64Gi", "nvidia.com/gpu": "2"},
        "requests": {"memory": "64Gi", "nvidia.com/gpu": "2", "cpu": "8"},
    }


EVERYTHING = {
    "num_nodes": 2,
    "num_gpus": 8,
    "gpu_resource": "nvidia.com/mig-1g.10gb",
    "cpus": "8",
    "memory": "64Gi",
    "shared_memory": "32Gi",
    "image_pull_policy": "Always",
    "image_pull_secrets": ["registry"],
    "env": {"NCCL_DEBUG": "INFO"},
    "env_from_secrets": ["hugging-face"],
    "labels": {"kueue.x-k8s.io/queue-name": "training"},
    "annotations": {"team": "search"},
    "security_context": {"run_as_user": 1000},
    "pod_spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
}


def sent(manifest: Any) -> dict[str, Any]:
    from kubernetes.client import ApiClient

    return ApiClient().sanitize_for_serialization(manifest)


@pytest.mark.parametrize("options", [{}, {"num_nodes": 2}, EVERYTHING], ids=["defaults", "two pods", "everything"])
def test_objects_fit_the_schemas_of_kubernetes(tmp_path: Path, options: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = job_in(tmp_path, **options)
    for manifest in (job_manifest(job, COMMAND, {"dagster/run-id": "r-1"}), service_manifest(job, "a-b-c")):
        found = sent(manifest)
        for version in kubernetes_validate.utils.all_versions()[-3:]:
            kubernetes_validate.validate(found, version, strict=True)
        found["spec"]["unknown"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(found, version, strict=True)


def test_a_pod_meets_the_restricted_standard(tmp_path: Path) -> None:
    """The fields that https://kubernetes.io/docs/concepts/security/pod-security-standards/ restricts."""
    spec = sent(job_manifest(job_in(tmp_path), COMMAND, {}))["spec"]["template"]["spec"]
    context = spec["containers"][0]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} == {"persistentVolumeClaim", "emptyDir"}
    assert spec["automountServiceAccountToken"] is False
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in spec["volumes"]


def test_every_option_is_in_the_job(tmp_path: Path) -> None:
    job = job_in(tmp_path, **EVERYTHING)
    found = sent(job_manifest(job, COMMAND, {"dagster/run-id": "r-1"}))
    spec, pod = found["spec"], found["spec"]["template"]["spec"]
    for metadata in (found["metadata"], found["spec"]["template"]["metadata"]):
        assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "training"
        assert metadata["labels"]["dagster/run-id"] == "r-1"
        assert metadata["annotations"] == {"team": "search"}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert pod["subdomain"] == found["metadata"]["name"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    container = pod["containers"][0]
    assert container["imagePullPolicy"] == "Always"
    assert container["envFrom"] == [{"secretRef": {"name": "hugging-face"}}]
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
    assert container["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "8"
    assert container["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"]["runAsNonRoot"] is True
    service = sent(service_manifest(job, "a-b-c"))
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": "fim-1a2b3c4d"}
    assert service["metadata"]["ownerReferences"][0]["uid"] == "a-b-c"
    assert first_host(job) == "fim-1a2b3c4d-0.fim-1a2b3c4d"


def test_storage_outside_the_volume(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"launcher\.mount_path"):
        job_manifest(job_in(tmp_path, mount_path="/mnt/shared"), COMMAND, {})


def test_an_invalid_pod_specification(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"(?s)pod_spec.*node_sellector"):
        job_manifest(job_in(tmp_path, pod_spec={"node_sellector": {}}), COMMAND, {})


class ApiServer(ThreadingHTTPServer):
    """Stores one Job with its pod, and records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.job: dict[str, Any] | None = None
        self.pods: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.broken = 0
        """Number of requests that are answered with an internal error."""


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def _answer(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode() if not isinstance(content, str) else content.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        return

    def do_POST(self) -> None:
        self.server.calls.append(f"POST {self.path}")
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == SERVICES:
            self._answer(made, 201)
            return
        name = made["metadata"]["name"]
        made["metadata"]["uid"] = "a-b-c"
        self.server.job = made | {"status": {"active": 1}}
        self.server.pods = [
            {
                "metadata": {"name": f"{name}-x", "labels": {"job-name": name}},
                "spec": {"containers": [{"name": "train"}]},
                "status": {
                    "phase": "Failed",
                    "containerStatuses": [
                        {
                            "name": "train",
                            "ready": False,
                            "restartCount": 0,
                            "image": "i",
                            "imageID": "i",
                            "state": {"terminated": {"exitCode": 1, "startedAt": "2026-01-01T00:00:00Z"}},
                        }
                    ],
                },
            }
        ]
        self._answer(self.server.job, 201)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.broken:
            self.server.broken -= 1
            self._answer({"message": "etcdserver: leader changed"}, 500)
        elif path.endswith("/log"):
            self._answer("python: No module named fim_core\n")
        elif path == PODS:
            self._answer({"items": self.server.pods})
        elif path.startswith(JOBS) and self.server.job:
            self._answer(self.server.job)
        elif path.endswith("/events"):
            self._answer({"items": self.server.events})
        else:
            self._answer({"message": "not found"}, 404)

    def do_DELETE(self) -> None:
        self.server.calls.append(f"DELETE {self.path}")
        if self.path.startswith(JOBS):
            self.server.job = None
        elif self.path.startswith(PODS):
            self.server.pods = []
        self._answer({"status": "Success"})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    server = ApiServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    import kubernetes

    # Where the kubeconfig lies is read when the module is imported.
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.setattr("fim_core.launchers.remote.STATUS_SECONDS", 0.0)
    monkeypatch.setattr(launcher, "PODS_SECONDS", 0.0)
    yield server
    server.shutdown()
    server.server_close()


def test_cancel_deletes_the_job_and_its_pod(tmp_path: Path, cluster: ApiServer) -> None:
    ranks = start_kubernetes(job_in(tmp_path), -1, {"dagster/run-id": "r-1"})
    assert ranks.running
    ranks.check()
    ranks.end()
    assert cluster.calls == [f"POST {JOBS}", f"DELETE {JOBS}/fim-1a2b3c4d", f"DELETE {PODS}/fim-1a2b3c4d-x"]
    assert cluster.pods == []


def test_two_pods_meet_at_the_first_through_a_service(tmp_path: Path, cluster: ApiServer) -> None:
    ranks = start_kubernetes(job_in(tmp_path, num_nodes=2), -1, {})
    assert cluster.job is not None
    command = cluster.job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--first-host") + 1] == "fim-1a2b3c4d-0.fim-1a2b3c4d"
    assert command[command.index("--nodes") + 1] == "2"
    cluster.job["status"] = {"succeeded": 1, "active": 1}
    assert ranks.running, "one of two has ended"
    cluster.job["status"] = {"succeeded": 2}
    assert not ranks.running
    assert ranks.failure() is None
    assert cluster.calls == [f"POST {JOBS}", f"POST {SERVICES}"]

    ranks = start_kubernetes(job_in(tmp_path, num_nodes=2), -1, {})
    ranks.end()
    assert f"DELETE {SERVICES}/fim-1a2b3c4d" in cluster.calls


def pending(**status: Any) -> list[dict[str, Any]]:
    """One pod that does not run."""
    spec = {"containers": [{"name": "train"}]}
    return [{"metadata": {"name": "fim-x"}, "spec": spec, "status": {"phase": "Pending", **status}}]


def container_that_waits(reason: str, message: str) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    named = {"name": "train", "ready": False, "restartCount": 0, "image": "i", "imageID": "i"}
    return {"containerStatuses": [{**named, "state": state}]}


def not_scheduled(message: str) -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


def warning(reason: str, message: str) -> dict[str, Any]:
    about = {"name": "fim-x", "namespace": "ml"}
    return {
        "metadata": {"name": "event"},
        "involvedObject": about,
        "type": "Warning",
        "reason": reason,
        "message": message,
    }


@pytest.mark.parametrize(
    ("status", "events", "said"),
    [
        (
            container_that_waits("ImagePullBackOff", 'Back-off pulling image "registry/fim:1"'),
            [],
            'cannot run. Pod fim-x: ImagePullBackOff: Back-off pulling image "registry/fim:1"',
        ),
        (
            container_that_waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            [],
            "cannot run. Pod fim-x: CreateContainerConfigError: container has runAsNonRoot",
        ),
        (
            not_scheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            [],
            "has not started in launcher.pending_timeout_minutes (1e-09). Pod fim-x: Unschedulable: 0/3 nodes are available",
        ),
        (
            not_scheduled('persistentvolumeclaim "fim-storage" not found'),
            [],
            'Unschedulable: persistentvolumeclaim "fim-storage" not found',
        ),
        (
            container_that_waits("ContainerCreating", ""),
            [warning("FailedMount", "MountVolume.SetUp failed: no such file system")],
            "Pod fim-x: FailedMount: MountVolume.SetUp failed: no such file system",
        ),
    ],
    ids=["image", "container", "no node", "no volume", "volume cannot be mounted"],
)
def test_a_pod_that_never_runs_is_reported(
    tmp_path: Path,
    cluster: ApiServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: dict[str, Any],
    events: list[dict[str, Any]],
    said: str,
) -> None:
    monkeypatch.setattr(launcher, "HOPELESS_SECONDS", 0.0)
    limit = 60 if "cannot run" in said else 1e-9
    ranks = start_kubernetes(job_in(tmp_path, pending_timeout_minutes=limit), -1, {})
    cluster.pods, cluster.events = pending(**status), events
    with pytest.raises(TrainingFailed) as caught:
        assert ranks.running
    assert said in str(caught.value)
    assert "[launcher] Pod fim-x: " in capfd.readouterr().err
    ranks.end()
    assert f"DELETE {JOBS}/fim-1a2b3c4d" in cluster.calls


def test_a_wait_is_said_once_and_goes_on(tmp_path: Path, cluster: ApiServer, capfd: pytest.CaptureFixture[str]) -> None:
    ranks = start_kubernetes(job_in(tmp_path), -1, {})
    assert cluster.job is not None
    cluster.pods = []
    cluster.job["spec"]["suspend"] = True
    assert ranks.running
    cluster.job["spec"]["suspend"] = False
    cluster.events = [warning("FailedCreate", "exceeded quota")]
    assert all(ranks.running for _ in range(3))
    cluster.pods = pending(**not_scheduled("no node"))
    assert ranks.running
    cluster.pods[0]["status"] = {"phase": "Running"}
    assert ranks.running
    said = [line for line in capfd.readouterr().err.splitlines() if "Kubernetes Job" not in line]
    assert said == [
        "[launcher] Job fim-1a2b3c4d is suspended; a queue such as Kueue starts it when there is room.",
        "[launcher] Job fim-1a2b3c4d: FailedCreate: exceeded quota",
        "[launcher] Pod fim-x: Unschedulable: no node",
    ]


def test_an_api_that_does_not_answer_is_asked_again(
    tmp_path: Path, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagster_k8s.client.DagsterKubernetesClient.get_job_status.__defaults__", (0.0,))
    ranks = start_kubernetes(job_in(tmp_path), -1, {})
    cluster.broken = 4 * 3
    for _ in range(3):
        assert ranks.running
    assert cluster.job is not None
    cluster.job["status"] = {"succeeded": 1}
    assert not ranks.running

    ranks = start_kubernetes(job_in(tmp_path), -1, {})
    cluster.broken = 1000
    monkeypatch.setattr("fim_core.launchers.remote.SILENCE_SECONDS", 0.0)
    with pytest.raises(TrainingFailed, match=r"has not answered about Kubernetes Job ml/fim-1a2b3c4d.*leader changed"):
        assert ranks.running
    cluster.broken = 0


def test_success_and_failure(tmp_path: Path, cluster: ApiServer) -> None:
    job = job_in(tmp_path)
    ranks = start_kubernetes(job, -1, {})
    assert cluster.job is not None
    cluster.job["status"] = {"succeeded": 1}
    assert not ranks.running
    assert ranks.failure() is None

    ranks = start_kubernetes(job, -1, {})
    cluster.job["status"] = {"failed": 1}
    assert not ranks.running
    error = ranks.failure()
    assert isinstance(error, TrainingFailed)
    assert "Kubernetes Job ml/fim-1a2b3c4d has ended before its ranks did" in str(error)
    assert "No module named fim_core" in str(error)
    ranks.end()

    failures = (False, "Connection reset."), (True, "The rows r-1 are to blame.")
    for node, (user_error, message) in enumerate(failures):
        write_json(job.work.launcher_failure(job.attempt, node), {"user_error": user_error, "message": message})
    assert str(ranks.failure()) == "The rows r-1 are to blame."


def test_a_deleted_job(tmp_path: Path, cluster: ApiServer) -> None:
    ranks = start_kubernetes(job_in(tmp_path), -1, {})
    cluster.job, cluster.pods = None, []
    assert not ranks.running
    assert "it was deleted, or its node is gone" in str(ranks.failure())


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kubernetes

    missing = str(tmp_path / "no-kubeconfig")
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", missing)
    with pytest.raises(FimError, match=r"launcher\.context: no Kubernetes cluster"):
        start_kubernetes(job_in(tmp_path), -1, {})
