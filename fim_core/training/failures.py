"""Failures of ranks: recorded by each rank, and reduced to the cause by the launcher."""

from __future__ import annotations

import logging
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fim_core.atomic import read_json_as, write_json
from fim_core.errors import DamagedFile, FimError
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


@dataclass(frozen=True)
class Ended:
    """A rank that has ended with an error.

    Attributes:
        code: exit code; the negative number of the signal that ended it.
        host: name of its machine, if the run has several.
    """

    rank: int
    code: int
    log: Path
    host: str | None = None

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"Rank {self.rank}" + (f" on {self.host}" if self.host else "")


def record_failure(job: Job, rank: int, error: BaseException) -> None:
    """Record why this rank fails."""
    lines = "".join(traceback.format_exception(error))
    failure = Failure(rank, time.time(), isinstance(error, FimError), str(error), lines)
    write_json(job.work.failure(job.attempt, rank), asdict(failure))


def recorded_failures(job: Job) -> list[Failure]:
    """The failures that ranks of this attempt have recorded, oldest first. Damaged records are skipped with a warning.

    Their age is that of the files, for which a shared file system has one clock: those of the machines may differ.
    """
    failures = []
    files = job.work.failure(job.attempt, 0).parent.glob(f"{job.attempt}-rank-*.json")
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        try:
            failures.append(read_json_as(file, Failure))
        except DamagedFile as error:
            logger.warning("%s", error)
    return failures


def user_error_of(job: Job) -> FimError | None:
    """The first mistake of the user that a rank has found, if any."""
    return next((FimError(failure.message) for failure in recorded_failures(job) if failure.user_error), None)


def failure_of(job: Job, ended: Sequence[Ended]) -> FimError:
    """The error to raise for a run of which some ranks failed.

    A mistake of the user, found by any rank, is reported unchanged. Otherwise the cause is a rank that was killed, which
    could record nothing, or else the first that failed: the others only lost their connection to it.

    Args:
        ended: the ranks that have failed, at least one.
    """
    if DISK_FULL in {rank.code for rank in ended}:
        return FimError(
            f"The disk is full, that of {job.work.root} or of another folder that training writes to. Free some space; "
            "`fim gc` helps. Training resumes from its newest state."
        )
    if (user_error := user_error_of(job)) is not None:
        return user_error
    failures = recorded_failures(job)
    recorded = {failure.rank for failure in failures}
    for rank in ended:
        if rank.code < 0 and rank.rank not in recorded:
            name = signal.Signals(-rank.code).name
            hint = " The machine may have run out of memory." if -rank.code == signal.SIGKILL else ""
            return TrainingFailed(f"{rank.name} was ended by {name}.{hint}\n{tail_of(rank.log)}")
    if failures:
        first = failures[0]
        name = next((rank.name for rank in ended if rank.rank == first.rank), f"Rank {first.rank}")
        lines = "\n".join(first.traceback.rstrip().splitlines()[-TRACEBACK_LINES:])
        return TrainingFailed(f"{name} failed: {first.message}\n{lines}")
    return TrainingFailed(f"{ended[0].name} ended with exit code {ended[0].code}.\n{tail_of(ended[0].log)}")


def tail_of(log: Path) -> str:
    """The last lines of a log, with its path."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TRACEBACK_LINES:]
    return "\n".join([f"Last lines of {log}:", *lines])
