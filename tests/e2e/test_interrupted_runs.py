"""Runs that are cancelled or killed while training on two ranks: no process is left, and the next run resumes."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster_home import DagsterService, cmdline, wait_for
from tiny_pipeline import TINY, write_experiment

from fim_assets.resources.run_worker import HOST_TAG
from fim_core.config import load_experiment
from fim_core.pipeline import run
from fim_core.store import Artifact, Store

pytestmark = pytest.mark.slow

SECONDS = 15.0
"""Time limit for a run to end."""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on two ranks with prepared data, not yet trained."""
    folder = tmp_path_factory.mktemp("night")
    path = write_experiment(
        folder,
        data=TINY["data"] | {"eval_fraction": 0.05},
        epochs=40,
        max_steps=60,
        checkpoint={"type": "deepspeed", "save_every_n_steps": 2},
        launcher={"num_processes": 2},
    )
    run(load_experiment(path), until="tokenized_dataset")
    return path


@pytest.fixture(scope="module")
def undisturbed(experiment: Path) -> Artifact:
    """The checkpoint of an undisturbed run, in a separate store."""
    options = load_experiment(experiment)
    copy = options.storage.with_name("undisturbed")
    shutil.copytree(options.storage, copy, symlinks=True)
    results = run(options.model_copy(update={"storage": copy}), until="trained_checkpoint")
    return results["trained_checkpoint"].artifact


@pytest.fixture(scope="module")
def service(experiment: Path) -> Iterator[DagsterService]:
    with DagsterService(experiment.parent / "dagster", experiment) as started:
        yield started


def begin_training(service: DagsterService, store: Store) -> tuple[str, int | None]:
    """Launch the job `train`, wait until it has taken some steps, and return the run and the step that it started from."""
    before = len(attempts(store))
    run_id = service.web.submit_job_execution("train")
    return run_id, wait_for_steps(service, store, before)


def wait_for_steps(service: DagsterService, store: Store, before: int) -> int | None:
    """Wait until one more attempt than `before` has taken some steps; return the step that it started from."""

    def trains() -> bool:
        begun = attempts(store)
        return len(begun) > before and len([e for e in begun[-1] if e["event"] == "step"]) >= 3

    wait_for(trains, 180, lambda: f"training steps\n{service.tail()}")
    return attempts(store)[-1][0]["resumed_from"]


def attempts(store: Store) -> list[list[dict]]:
    """Events of each attempt at the checkpoint in training."""
    found: list[list[dict]] = []
    for file in (store.root / "work" / "trained_checkpoint").glob("*/metrics.jsonl"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                event = json.loads(line)
                if event["event"] == "start":
                    found.append([])
                found[-1].append(event)
    return found


def weights(artifact: Artifact) -> str:
    return hashlib.sha256((artifact.path / "model.safetensors").read_bytes()).hexdigest()


def end_of(service: DagsterService, run_id: str, end: Callable[[], None], expected: dg.DagsterRunStatus) -> None:
    """End a run: within the limit its processes are gone, its status is as expected, and its slot is free."""
    family = service.of_runs()
    assert len(family) >= 5, "the run, its step, the guard, two ranks"
    assert service.on_gpu() == {run_id}
    end()

    def stand() -> tuple[dg.DagsterRunStatus, list[str], bool]:
        left = [cmdline(process) for process in service.of_runs() if process in family]
        return service.status(run_id), left, run_id in service.on_gpu()

    wait_for(lambda: stand() == (expected, [], False), SECONDS, lambda: f"the end of the run; it stands at {stand()}")


def test_a_run_that_is_cancelled_and_killed_ends_like_an_undisturbed_one(
    experiment: Path, service: DagsterService, undisturbed: Artifact
) -> None:
    store = Store(load_experiment(experiment).storage)

    cancelled, began = begin_training(service, store)
    assert began is None
    run_of = service.instance.get_run_by_id(cancelled)
    assert run_of is not None
    assert run_of.tags[HOST_TAG] == socket.gethostname()
    end_of(service, cancelled, lambda: service.web.terminate_run(cancelled), dg.DagsterRunStatus.CANCELED)
    assert service.of_runs() == []

    killed, began = begin_training(service, store)
    assert began is not None
    before = len(attempts(store))
    worker = psutil.Process(worker_of(service, killed))
    end_of(service, killed, worker.kill, dg.DagsterRunStatus.FAILURE)

    # The daemon starts it again; there a rank is killed, and the step's own policy tries once more.
    again = wait_for_steps(service, store, before)
    assert again is not None
    assert again > began
    next(process for process in service.of_runs() if "fim_core.training.worker" in cmdline(process)).kill()
    finished = dg.RunsFilter(job_name="train", statuses=[dg.DagsterRunStatus.SUCCESS])
    wait_for(lambda: service.instance.get_runs(finished), 180, lambda: f"the end of the retry\n{service.tail()}")
    [retried] = service.instance.get_runs(finished)
    assert retried.parent_run_id == killed
    [retry] = service.instance.all_logs(retried.run_id, of_type=dg.DagsterEventType.STEP_UP_FOR_RETRY)
    assert retry.step_key == "trained_checkpoint"

    checkpoint = store.current("trained_checkpoint")
    assert checkpoint.counts["resumed_from"] > again
    assert weights(checkpoint) == weights(undisturbed)


def worker_of(service: DagsterService, run_id: str) -> int:
    """The process that Dagster started for a run, according to Dagster's event log."""
    entries = service.instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    [pid] = [
        entry.get_dagster_event().engine_event_data.metadata["pid"].value
        for entry in entries
        if (entry.message or "").find("Started process for run") >= 0
    ]
    return int(pid)
