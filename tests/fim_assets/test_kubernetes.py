"""The Kubernetes launcher without a cluster: the submitted Job and the API calls.

The API server is a small HTTP server that stores one Job and its pod; everything on our side of it is real.
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

from fim_assets.resources.kubernetes import job_manifest, start_kubernetes

JOBS = "/apis/batch/v1/namespaces/ml/jobs"
PODS = "/api/v1/namespaces/ml/pods"
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


def test_storage_outside_the_volume(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"launcher\.mount_path"):
        job_manifest(job_in(tmp_path, mount_path="/mnt/shared"), COMMAND, {})


def test_an_invalid_pod_specification(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"(?s)launcher\.pod_spec.*node_sellector"):
        job_manifest(job_in(tmp_path, pod_spec={"node_sellector": {}}), COMMAND, {})


class ApiServer(ThreadingHTTPServer):
    """Stores one Job with its pod, and records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.job: dict[str, Any] | None = None
        self.pods: list[dict[str, Any]] = []
        self.calls: list[str] = []


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
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        self.server.job = job | {"status": {"active": 1}}
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
        if path.endswith("/log"):
            self._answer("python: No module named fim_core\n")
        elif path == PODS:
            self._answer({"items": self.server.pods})
        elif path.startswith(JOBS) and self.server.job:
            self._answer(self.server.job)
        elif path.endswith("/events"):
            self._answer({"items": []})
        else:
            self._answer({"message": "not found"}, 404)

    def do_DELETE(self) -> None:
        self.server.calls.append(f"DELETE {self.path}")
        if self.path.startswith(JOBS):
            self.server.job = None
        else:
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

    write_json(job.work.launcher_failure(job.attempt), {"user_error": True, "message": "The rows r-1 are to blame."})
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
