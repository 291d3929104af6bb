"""Failures of ranks: recorded by each rank, and reduced to the cause by the launcher."""

from __future__ import annotations

import logging
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fim_core.atomic import read_json_as, write_json
from fim_core.errors import DamagedFile, FimError
from fim_core.process_group import Command
from fim_core.training.job import Job, TrainingFailed

logger = logging.getLogger(__name__)

TRACEBACK_LINES = 30
DISK_FULL = 28
"""Exit code of a rank that ran out of disk space and therefore could not record a failure: ENOSPC of Linux."""


@dataclass(frozen=True)
class Failure:
    """Why a rank failed.

    Attributes:
        time: when it was recorded, in seconds since the Unix epoch.
        user_error: whether the message is shown to users unchanged.
    """

    rank: int
    time: float
    user_error: bool
    message: str
    traceback: str


def record_failure(job: Job, rank: int, error: BaseException) -> None:
    """Record why this rank fails."""
    lines = "".join(traceback.format_exception(error))
    failure = Failure(rank, time.time(), isinstance(error, FimError), str(error), lines)
    write_json(job.work.failure(job.attempt, rank), asdict(failure))


def recorded_failures(job: Job) -> list[Failure]:
    """The failures that ranks of this attempt have recorded, oldest first. Damaged records are skipped with a warning."""
    failures = []
    for file in job.work.failure(job.attempt, 0).parent.glob(f"{job.attempt}-rank-*.json"):
        try:
            failures.append(read_json_as(file, Failure))
        except DamagedFile as error:
            logger.warning("%s", error)
    return sorted(failures, key=lambda failure: failure.time)


def failure_of(job: Job, codes: Mapping[int, int], commands: Sequence[Command]) -> FimError:
    """The error to raise for a run of which some ranks failed.

    A mistake of the user, found by any rank, is reported unchanged. Otherwise the cause is a rank that was killed, which
    could record nothing, or else the first that failed: the others only lost their connection to it.

    Args:
        codes: exit code of each process that has failed, by its index in `commands`.
    """
    if DISK_FULL in codes.values():
        return FimError(
            f"The disk is full, that of {job.work.root} or of another folder that training writes to. Free some space; "
            "`fim gc` helps. Training resumes from its newest state."
        )
    failures = recorded_failures(job)
    for failure in failures:
        if failure.user_error:
            return FimError(failure.message)
    recorded = {failure.rank for failure in failures}
    for rank, code in codes.items():
        if code < 0 and rank not in recorded:
            name = signal.Signals(-code).name
            hint = " The machine may have run out of memory." if -code == signal.SIGKILL else ""
            return TrainingFailed(f"{_name(commands[rank])} was ended by {name}.{hint}\n{_tail(commands[rank].log)}")
    if failures:
        first = failures[0]
        lines = "\n".join(first.traceback.rstrip().splitlines()[-TRACEBACK_LINES:])
        return TrainingFailed(f"Rank {first.rank} failed: {first.message}\n{lines}")
    index, code = next(iter(codes.items()))
    return TrainingFailed(f"{_name(commands[index])} ended with exit code {code}.\n{_tail(commands[index].log)}")


def _name(command: Command) -> str:
    return command.log.stem.replace("-", " ").capitalize()


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TRACEBACK_LINES:]
    return "\n".join([f"Last lines of {log}:", *lines])
