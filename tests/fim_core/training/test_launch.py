"""Ends of a run: the launcher reports the cause, and no process survives."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from training_helpers import tiny_experiment

from fim_core.errors import FimError
from fim_core.launchers import folder_lock, heartbeat, local
from fim_core.launchers.launch import launch, prepare_job
from fim_core.launchers.monitor import follow
from fim_core.training import worker
from fim_core.training.failures import DISK_FULL
from fim_core.training.job import Job, TrainingFailed, Work

LIGHT_RANK = Path(__file__).with_name("light_rank.py")


def two_ranks(**launcher: Any) -> dict[str, Any]:
    return {"launcher": {"num_processes": 2, **launcher}}


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    running = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                running.append(pid)
        except psutil.NoSuchProcess:
            continue
    return running


def wait_until_dead(pids: list[int], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(pids) == []


def pids_in(work: Path) -> list[int]:
    return [int(line) for line in (work / "pids").read_text().split()] if (work / "pids").exists() else []


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start ranks that do not import torch."""
    monkeypatch.setattr(local, "rank_command", lambda job: [sys.executable, str(LIGHT_RANK), str(job)])


def start(tmp_path: Path, **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    result = launch(
        tiny_experiment(**options), tmp_path, tmp_path / "tokenizer", tmp_path / "work", on_event=events.append
    )
    return result, events


def test_a_rank_on_a_full_disk_ends_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job = prepare_job(tiny_experiment(), tmp_path, tmp_path, tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["main", "--job", str(job.work.job)])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(worker, "train", full)
    monkeypatch.setattr(worker, "record_failure", full)
    assert worker.main() == DISK_FULL


@pytest.mark.usefixtures("light")
class TestLightRanks:
    def test_good_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "ends well")
        work = tmp_path / "work"
        work.mkdir()
        earlier = {"event": "start", "attempt": "earlier", "step": 0, "total_steps": 1}
        (work / "metrics.jsonl").write_text(json.dumps(earlier) + "\n")
        (work / "job.json").write_text("{}")
        result, events = start(tmp_path, **two_ranks())
        assert (result.steps, result.loss_before, result.model) == (2, 2.0, work / "model")
        assert [event["event"] for event in events] == ["start", "checkpoint"]
        wait_until_dead(pids_in(work))

    def test_a_full_disk_is_reported_though_nothing_can_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("BEHAVIOUR", "disk full")
        with pytest.raises(FimError, match="The disk is full") as caught:
            start(tmp_path, **two_ranks())
        assert not isinstance(caught.value, TrainingFailed), "a retry would find it full again"

    def test_a_user_error_is_reported_unchanged(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "user error")
        with pytest.raises(FimError) as caught:
            start(tmp_path, **two_ranks())
        assert str(caught.value) == "The rows r-1, r-2 are to blame."
        wait_until_dead(pids_in(tmp_path / "work"))

    def test_failure_shows_the_first_rank_that_broke(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "breaks")
        with pytest.raises(TrainingFailed, match="Rank 1 failed: nothing to divide by") as caught:
            start(tmp_path, **two_ranks())
        assert "light_rank.py" in str(caught.value)
        assert str(caught.value).endswith("ZeroDivisionError: nothing to divide by")

    def test_killed_rank(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "killed")
        with pytest.raises(TrainingFailed, match="Rank 1 was ended by SIGKILL"):
            start(tmp_path, **two_ranks())
        wait_until_dead(pids_in(tmp_path / "work"))

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError])
    def test_cancel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]) -> None:
        monkeypatch.setenv("BEHAVIOUR", "stubborn")
        monkeypatch.setattr("fim_core.process_group.GRACE_SECONDS", 0.2)

        def cancel(event: dict[str, Any]) -> None:
            raise interruption

        with pytest.raises(interruption):
            launch(tiny_experiment(**two_ranks()), tmp_path, tmp_path / "tokenizer", tmp_path / "work", on_event=cancel)
        wait_until_dead(pids_in(tmp_path / "work"))

    @pytest.mark.parametrize("limit", ["timeout_minutes", "heartbeat_timeout_minutes"])
    def test_hang(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
        monkeypatch.setenv("BEHAVIOUR", "hangs")
        with pytest.raises(TrainingFailed, match=rf"launcher\.{limit}"):
            start(tmp_path, **two_ranks(**{limit: 0.03}))
        wait_until_dead(pids_in(tmp_path / "work"))

    def test_second_launch_in_the_same_folder_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folder_lock, "LOCK_SECONDS", 0.2)
        with (
            folder_lock.lock_run_folder(Work(tmp_path / "work").lock),
            pytest.raises(FimError, match="Another run trains"),
        ):
            start(tmp_path)


LIGHT_DRIVER = """
    import sys, time
    from pathlib import Path
    from fim_core.process_group import Command, ProcessGroup
    code = "import subprocess, time; " + "; ".join(
        f"print(subprocess.Popen(['sleep', '300'], {how}).pid, flush=True)"
        for how in ("process_group=0", "start_new_session=True")
    )
    group = ProcessGroup([Command([sys.executable, "-c", code + "; time.sleep(300)"], {}, Path(sys.argv[1]))])
    time.sleep(300)
"""


def test_the_death_of_the_launcher_ends_processes_that_left_its_group(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(LIGHT_DRIVER), str(log)])
    while not (log.exists() and len(log.read_text().split()) == 2):
        assert parent.poll() is None
        time.sleep(0.02)
    escaped = [int(pid) for pid in log.read_text().split()]
    family = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
    assert set(escaped) < set(family)
    assert len({os.getpgid(pid) for pid in family}) == 4
    # Linux divides the CPU among sessions, so the processes do not compete with everything in the launcher's session.
    assert not any(os.getsid(pid) == os.getsid(parent.pid) for pid in family)
    os.kill(parent.pid, signal.SIGKILL)
    wait_until_dead(family)
    parent.wait()


DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {helpers!r})
    from training_helpers import tiny_experiment
    from fim_core.launchers.launch import launch
    launch(tiny_experiment(**{options!r}), Path({dataset!r}), Path({tokenizer!r}), Path({work!r}))
"""


def test_death_of_the_parent(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    """SIGKILL of the launcher in mid-training ends both ranks; the next launch, of one rank, resumes from their newest state."""
    work = Work(tmp_path / "work")
    options = {"epochs": 60, "checkpoint": {"save_every_n_steps": 2}, **two_ranks()}
    code = textwrap.dedent(DRIVER).format(
        helpers=str(Path(__file__).parent),
        options=options,
        dataset=str(dataset),
        tokenizer=str(tokenizer_folder),
        work=str(work.root),
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not list(work.states.glob("step-*")):
        assert parent.poll() is None, parent.stderr.read() if parent.stderr else ""
        time.sleep(0.02)
    family = [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
    assert len(family) >= 3
    os.kill(parent.pid, signal.SIGKILL)
    wait_until_dead(family)
    parent.wait()

    experiment = tiny_experiment(**options | {"launcher": {"num_processes": 1}})
    seen: list[dict[str, Any]] = []

    class Enough(Exception):
        """Stops the second run, which has done what the test needs."""

    def watch(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "step":
            raise Enough

    with pytest.raises(Enough):
        launch(experiment, dataset, tokenizer_folder, work.root, on_event=watch)
    assert seen[0]["event"] == "start"
    assert seen[0]["resumed_from"] == seen[0]["step"] >= 2
    assert seen[1]["step"] == seen[0]["step"] + 1


def test_a_stopped_rank_is_identified(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = math.inf

    def stop_one(event: dict[str, Any]) -> None:
        nonlocal stopped
        if event["event"] == "step" and event["step"] == 2:
            ranks = [child for child in psutil.Process().children() if "fim_core.training.worker" in child.cmdline()]
            (victim,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
            victim.suspend()
            stopped = time.monotonic()

    def hurried() -> float:
        """A clock that runs 300 times as fast once the rank is stopped."""
        now = time.monotonic()
        return now + 300 * max(0.0, now - stopped)

    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=hurried))
    experiment = tiny_experiment(epochs=60, **two_ranks())
    with pytest.raises(TrainingFailed, match=r"launcher\.heartbeat_timeout_minutes") as caught:
        launch(experiment, dataset, tokenizer_folder, tmp_path / "work", on_event=stop_one)
    assert "\nRank 1 does not answer." in str(caught.value)
    assert re.search(r"\nRank 0 is in \w+ \(.*, line \d+\)", str(caught.value))


def test_local_ranks_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "cores", lambda: 8)
    job = Job(tiny_experiment(launcher={"num_processes": 3}), tmp_path, tmp_path, Work(tmp_path), "a")
    commands = local.local_commands(job)
    assert [command.environment["RANK"] for command in commands] == ["0", "1", "2"]
    assert {command.environment["OMP_NUM_THREADS"] for command in commands} == {"2"}
    assert {command.environment["WORLD_SIZE"] for command in commands} == {"3"}


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    job = Job(tiny_experiment(epochs=7), tmp_path / "d", tmp_path / "t", Work(tmp_path / "w"), "a", {"data": "v1"})
    assert Job.read(job.write()) == job


def test_states_saved_while_ranks_are_ended_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last event tells from which step the next attempt resumes."""
    job = prepare_job(tiny_experiment(), tmp_path, tmp_path, tmp_path / "work")

    class Ranks:
        running = True

        def check(self) -> None:
            raise KeyboardInterrupt

        def failure(self) -> None:
            return None

        def end(self) -> None:
            events = [{"event": "start", "attempt": job.attempt}, {"event": "checkpoint", "step": 10}]
            job.work.metrics.write_text("".join(json.dumps(event) + "\n" for event in events))

    seen: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        follow(job, Ranks(), seen.append)
    assert seen[-1] == {"event": "checkpoint", "step": 10}
