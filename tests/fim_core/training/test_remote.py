"""Ranks on a cluster's machine (here this one), which are followed and ended through the shared folder alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_launch import pids_in, two_ranks, wait_until_dead
from training_helpers import tiny_experiment

from fim_core.errors import FimError
from fim_core.launchers import base
from fim_core.launchers.base import start_ranks
from fim_core.launchers.launch import launch, prepare_job
from fim_core.launchers.remote import RemoteRanks, Status, launcher_command
from fim_core.training import lease
from fim_core.training.job import Job, TrainingFailed, Work
from fim_core.training.lease import Lease, LeaseCheck

LIGHT_REMOTE = Path(__file__).with_name("light_remote.py")


class ProcessJob:
    """The smallest cluster: it runs a job as a process."""

    name = "job of the test"

    def __init__(self, command: list[str], log: Path) -> None:
        assert command[:3] == ["python", "-m", "fim_core.launchers.remote"]
        self._log = log
        with log.open("ab") as output:
            script = [sys.executable, str(LIGHT_REMOTE), *command[3:]]
            self.process = subprocess.Popen(script, stdout=output, stderr=subprocess.STDOUT)

    def status(self) -> Status:
        code = self.process.poll()
        return "running" if code is None else "failed" if code else "succeeded"

    def output(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        self.process.terminate()


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Job, int], RemoteRanks]:
    return lambda job, lock: RemoteRanks(
        job, lambda command: ProcessJob(command, tmp_path / "job.log"), launcher_command("python")
    )


def train(folder: Path, start: Callable[[Job, int], RemoteRanks], on_event: Any = None) -> Any:
    work = folder / "work"
    return launch(tiny_experiment(**two_ranks()), folder, folder / "tokenizer", work, on_event=on_event, start=start)


def test_good_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setenv("BEHAVIOUR", "ends well")
    events: list[dict[str, Any]] = []
    assert train(tmp_path, start, events.append).steps == 2
    assert [event["event"] for event in events] == ["start", "checkpoint"]
    wait_until_dead(pids_in(tmp_path / "work"))


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        ("breaks", TrainingFailed, "Rank 1 failed: nothing to divide by\n.*ZeroDivisionError: nothing to divide by"),
        ("user error", FimError, "The rows r-1, r-2 are to blame."),
        ("killed", TrainingFailed, "Rank 1 was ended by SIGKILL"),
    ],
)
def test_failures_are_reported_as_on_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any, behaviour: str, kind: type[FimError], said: str
) -> None:
    monkeypatch.setenv("BEHAVIOUR", behaviour)
    with pytest.raises(FimError, match=f"(?s){said}") as caught:
        train(tmp_path, start)
    assert type(caught.value) is kind
    wait_until_dead(pids_in(tmp_path / "work"))


def test_a_job_that_cannot_begin_shows_what_it_wrote(tmp_path: Path, start: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("LEASE", "not a number")
    with pytest.raises(TrainingFailed, match=r"job of the test has ended before its ranks did(?s:.*)not a number"):
        train(tmp_path, start)


def test_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setenv("BEHAVIOUR", "stubborn")

    def cancel(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, start, cancel)
    wait_until_dead(pids_in(tmp_path / "work"))


def test_ranks_end_without_a_follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setenv("BEHAVIOUR", "hangs")
    monkeypatch.setenv("LEASE", "3")
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    work = tmp_path / "work"
    ranks = start(prepare_job(tiny_experiment(**two_ranks()), tmp_path, tmp_path / "tokenizer", work), -1)
    while len(pids_in(work)) < 4:
        assert ranks.running
        ranks.check()
        time.sleep(0.05)
    while ranks.running:
        time.sleep(0.05)
    assert "has not been seen for 3 seconds" in str(ranks.failure())
    wait_until_dead(pids_in(work))


def test_a_newer_attempt_ends_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    monkeypatch.setenv("BEHAVIOUR", "hangs")
    work = tmp_path / "work"
    older = start(prepare_job(tiny_experiment(**two_ranks()), tmp_path, tmp_path / "tokenizer", work), -1)
    while len(pids_in(work)) < 4:
        assert older.running
        time.sleep(0.05)
    monkeypatch.setenv("BEHAVIOUR", "ends well")
    assert train(tmp_path, start).steps == 2
    assert older.running is False
    assert str(older.failure()) == "A newer attempt at this run has begun."
    wait_until_dead(pids_in(work))


def test_a_lease_lasts_as_long_as_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: clock[0])
    job = Job(tiny_experiment(), tmp_path, tmp_path, Work(tmp_path), "a")
    follower, check = Lease(job), LeaseCheck(job)
    for _ in range(100):
        clock[0] += 1.0
        follower.renew()
        check()
    clock[0] += lease.LEASE_SECONDS - lease.RENEW_SECONDS
    check()
    clock[0] += lease.RENEW_SECONDS + 1.0
    with pytest.raises(TrainingFailed, match="has not been seen"):
        check()


def test_ranks_notice_an_ended_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "CHECK_SECONDS", 0.0)
    job = Job(tiny_experiment(), tmp_path, tmp_path, Work(tmp_path), "a")
    follower, check = Lease(job), LeaseCheck(job)
    follower.renew()
    check()
    follower.end()
    with pytest.raises(TrainingFailed, match="It was ended"):
        check()


def test_kubernetes_needs_dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(base._LAUNCHERS, "kubernetes", raising=False)  # another test may have imported fim_assets
    launcher = {"type": "kubernetes", "image": "fim", "volume_claim": "fim", "mount_path": "/"}
    with pytest.raises(FimError, match="from Dagster"):
        start_ranks(Job(tiny_experiment(launcher=launcher), tmp_path, tmp_path, Work(tmp_path), "a"), -1)
