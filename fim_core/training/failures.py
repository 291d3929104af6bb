"""Why a run ended: each rank writes down its own end, the launcher finds the one that came first."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from fim_core.errors import FimError
from fim_core.files import read_json, write_json
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.processes import Command

TRACEBACK_LINES = 30
DISK_FULL = 28
"""Exit code of a rank that found the disk full, where it could write no reason: ENOSPC of Linux."""


def record_failure(job: Job, rank: int, error: BaseException) -> None:
    """Write down why this rank ends."""
    content = {
        "rank": rank,
        "time": time.time(),
        "user_error": isinstance(error, FimError),
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    write_json(job.work.failure(job.attempt, rank), content)


def failure_of(job: Job, codes: Mapping[int, int], commands: Sequence[Command]) -> FimError:
    """The error to raise for ranks that ended badly.

    A mistake of the user, found by any rank, is told as it is. Otherwise it is the rank that was killed (nothing it
    could write down), or else the first that broke down: the others only lost their connection to it.

    Args:
        codes: exit code of each process that has failed, by its index in `commands`.
    """
    if DISK_FULL in codes.values():
        return FimError(
            f"The disk is full: {job.work.root}, or another place that training writes to. Free some space; `fim gc` "
            "helps. Training resumes from its newest state."
        )
    files = job.work.failure(job.attempt, 0).parent.glob(f"{job.attempt}-rank-*.json")
    failures = [read_json(file) for file in files]
    failures.sort(key=lambda failure: failure["time"])
    for failure in failures:
        if failure["user_error"]:
            return FimError(failure["message"])
    told = {failure["rank"] for failure in failures}
    for rank, code in codes.items():
        if code < 0 and rank not in told:
            name = signal.Signals(-code).name
            hint = " The machine may have run out of memory." if -code == signal.SIGKILL else ""
            return TrainingFailed(f"{_who(commands[rank])} was ended by {name}.{hint}\n{_tail(commands[rank].log)}")
    if failures:
        first = failures[0]
        lines = "\n".join(first["traceback"].rstrip().splitlines()[-TRACEBACK_LINES:])
        return TrainingFailed(f"Rank {first['rank']} failed: {first['message']}\n{lines}")
    index, code = next(iter(codes.items()))
    return TrainingFailed(f"{_who(commands[index])} ended with exit code {code}.\n{_tail(commands[index].log)}")


def _who(command: Command) -> str:
    return command.log.stem.replace("-", " ").capitalize()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TRACEBACK_LINES:]
    return "\n".join([f"Last lines of {log}:", *lines])
