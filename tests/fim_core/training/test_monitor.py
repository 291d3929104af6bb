"""Logs of ranks as the launcher shows them: prefixed, selected, and limited in length."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import tiny_experiment

from fim_core.launchers import monitor
from fim_core.launchers.monitor import RankLogs
from fim_core.training.job import Job, Work


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
