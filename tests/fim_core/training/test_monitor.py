"""Logs of ranks as the launcher shows them: prefixed, selected, and limited in length. Saved states that it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_helpers import tiny_experiment

from fim_core.errors import FimError
from fim_core.launchers import monitor
from fim_core.launchers.monitor import RankLogs, follow
from fim_core.training.job import Job, Work
from fim_core.training.trackers import EventLog


def job_in(folder: Path, **logger: object) -> Job:
    job = Job(tiny_experiment(logger=logger), folder, folder, Work(folder), "a")
    job.log_folder.mkdir(exist_ok=True)
    return job


def write(job: Job, name: str, text: str) -> None:
    with (job.log_folder / name).open("a") as log:
        log.write(text)


def test_lines_of_every_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_in(tmp_path)
    write(job, "rank-0.log", "of an earlier attempt\n")
    logs = RankLogs(job)
    write(job, "rank-0.log", "one\nhalf a")
    write(job, "20260131120000_rank11.log", "two\n")
    write(job, "launcher.log", "three\n")
    write(job, "other.log", "of another program\n")
    logs.show()
    write(job, "rank-0.log", " line\n")
    logs.show()
    shown = capsys.readouterr().err.splitlines()
    assert sorted(shown) == ["[launcher] three", "[rank 0] half a line", "[rank 0] one", "[rank 11] two"]


def test_chosen_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_in(tmp_path, print_output_ranks=[1])
    logs = RankLogs(job)
    for rank in range(3):
        write(job, f"rank-{rank}.log", "here\n")
    logs.show()
    assert capsys.readouterr().err == "[rank 1] here\n"


def test_long_output_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "MAX_LINES", 3)
    monkeypatch.setattr(monitor, "MAX_LINE_LENGTH", 5)
    job = job_in(tmp_path)
    logs = RankLogs(job)
    for _ in range(4):
        write(job, "rank-0.log", "0123456789\n0123\n")
        logs.show()
    log = job.log_folder / "rank-0.log"
    assert capsys.readouterr().err.splitlines() == [
        "[rank 0] 01234",
        "[rank 0] 0123",
        "[rank 0] 01234",
        f"[rank 0] Further lines are only in {log}",
    ]


class EndedRanks:
    """Ranks that are cancelled at the first look, and have saved states by then, of which the last may not be recorded."""

    def __init__(self, job: Job, saved: int, recorded: int) -> None:
        self._job, self._saved, self._recorded = job, saved, recorded

    @property
    def running(self) -> bool:
        raise KeyboardInterrupt

    def check(self) -> None: ...

    def failure(self) -> FimError | None:
        return None

    def end(self) -> None:
        log = EventLog(self._job.work.metrics, [], None)
        log.write("start", 0, attempt=self._job.attempt)
        for step in range(5, self._saved + 1, 5):
            (self._job.work.states / f"step-{step}").mkdir(parents=True)
            if step <= self._recorded:
                log.write("checkpoint", step, type="deepspeed")


@pytest.mark.parametrize(("saved", "recorded"), [(0, 0), (10, 10), (10, 5), (5, 0)])
def test_the_last_state_is_reported_even_if_its_rank_had_no_time_to_record_it(
    tmp_path: Path, saved: int, recorded: int
) -> None:
    job, events = job_in(tmp_path), list[dict[str, Any]]()
    with pytest.raises(KeyboardInterrupt):
        follow(job, EndedRanks(job, saved, recorded), events.append)
    states = [event for event in events if event["event"] == "checkpoint" and event["type"] == "deepspeed"]
    assert [event["step"] for event in states] == list(range(5, saved + 1, 5))


def test_states_of_an_earlier_attempt_are_not_reported(tmp_path: Path) -> None:
    job, events = job_in(tmp_path), list[dict[str, Any]]()
    (job.work.states / "step-5-2").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        follow(job, EndedRanks(job, 0, 0), events.append)
    assert [event["event"] for event in events] == ["start"]
