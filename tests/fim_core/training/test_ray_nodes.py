"""Training on several machines of a Ray cluster, which are nodes with their own processes on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from test_launch import wait_until_dead
from test_ray import LONG, Enough, ranks_in
from training_helpers import tiny_experiment

from fim_core.launchers.launch import launch
from fim_core.training.job import TrainingFailed, Work

pytestmark = pytest.mark.slow

DASHBOARD_PORT = 8297


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, for the driver, and two nodes with one CPU each."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install -e '.[ray]'")
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": DASHBOARD_PORT}
    cluster = utils.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def on_nodes(nodes: int) -> dict[str, Any]:
    return {
        "type": "ray",
        "address": f"http://127.0.0.1:{DASHBOARD_PORT}",
        "python": sys.executable,
        "num_nodes": nodes,
        "num_processes": 1,
        "num_cpus": 1,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
    }


def test_two_machines_train_as_two_local_ranks_do(
    tmp_path: Path,
    dataset: Path,
    tokenizer_folder: Path,
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    far = launch(tiny_experiment(launcher=on_nodes(2)), dataset, tokenizer_folder, tmp_path / "far")
    printed = capfd.readouterr().err
    near = launch(tiny_experiment(launcher={"num_processes": 2}), dataset, tokenizer_folder, tmp_path / "near")
    assert far.world_size == near.world_size == 2
    assert far.loss_after == near.loss_after
    expected = load_file(near.model / "model.safetensors")
    for name, weight in load_file(far.model / "model.safetensors").items():
        assert weight.equal(expected[name]), name
    assert "[launcher] Ray job fim-tiny-" in printed
    assert (tmp_path / "far/logs/rank-1.log").is_file()


def test_cancel_ends_the_ranks_on_all_machines(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, cluster: Any
) -> None:
    work = Work(tmp_path / "work")
    pids: list[int] = []

    def cancel(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            pids.extend(ranks_in(work))
            raise Enough

    with pytest.raises(Enough):
        launch(tiny_experiment(launcher=on_nodes(2), **LONG), dataset, tokenizer_folder, work.root, on_event=cancel)
    assert len(pids) >= 4
    wait_until_dead(pids, seconds=15.0)


@pytest.mark.parametrize("nodes", [2, 1])
def test_the_loss_of_a_machine_is_one_sentence(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, cluster: Any, nodes: int
) -> None:
    work = Work(tmp_path / "work")
    lost: list[float] = []

    def lose(event: dict[str, Any]) -> None:
        if event["event"] == "step" and not lost:
            lost.append(time.monotonic())
            busy = cluster.list_all_nodes()[-1] if nodes == 2 else machine_of_driver(cluster)
            cluster.remove_node(busy, allow_graceful=False)

    with pytest.raises(TrainingFailed, match="has left the Ray cluster") as caught:
        launch(tiny_experiment(launcher=on_nodes(nodes), **LONG), dataset, tokenizer_folder, work.root, on_event=lose)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert time.monotonic() - lost[0] < 90
    wait_until_dead(ranks_in(work), seconds=15.0)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()


def machine_of_driver(cluster: Any) -> Any:
    """The node that runs the newest job."""
    from ray.job_submission import JobSubmissionClient

    jobs = JobSubmissionClient(f"http://127.0.0.1:{DASHBOARD_PORT}").list_jobs()
    newest = max((job for job in jobs if job.type == "SUBMISSION"), key=lambda job: job.start_time)
    return next(node for node in cluster.list_all_nodes() if node.node_id == newest.driver_node_id)
