"""Ranks that have been started: what a launcher hands to whoever follows the run, and those of this machine."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from fim_core.errors import FimError
from fim_core.training.failures import failure_of
from fim_core.training.follow import LineTail
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.lease import Lease
from fim_core.training.processes import Command, ProcessGroup
from fim_core.training.standing import where_they_stand


class RunningRanks(Protocol):
    """All ranks of a run, wherever they are."""

    @property
    def running(self) -> bool:
        """Whether there is still something to wait for: not when all have ended, nor when one has failed."""

    def check(self) -> None:
        """Called several times a second while they run.

        Raises:
            TrainingFailed: the run must not go on, for example because it hangs.
        """

    def failure(self) -> FimError | None:
        """Why they ended; None if all ended well."""

    def end(self) -> None:
        """End those that still run. Returns when none is left."""


Start = Callable[[Job, int], RunningRanks]
"""Starts the ranks of a job. Processes of this machine inherit the descriptor, the lock of the job's folder."""


class LocalRanks:
    """Processes of this machine."""

    def __init__(
        self, job: Job, commands: Sequence[Command], lock: int, also_check: Callable[[], None] = lambda: None
    ) -> None:
        """Start the commands.

        Args:
            lock: descriptor that every process inherits.
            also_check: called with each `check`.
        """
        self._job = job
        self._commands = commands
        self._also_check = also_check
        self._began = self._alive = time.monotonic()
        self._beat: float | None = None
        self._group = ProcessGroup(commands, keep_open=[lock])

    @property
    def running(self) -> bool:
        """Whether all processes run that have not ended well."""
        return self._group.running and not self._group.failed()

    def check(self) -> None:
        """Find silence and lateness.

        Raises:
            TrainingFailed: one of both.
        """
        self._also_check()
        now = time.monotonic()
        try:
            beat = self._job.work.heartbeat.stat().st_mtime
        except FileNotFoundError:
            beat = None
        if beat != self._beat:
            self._beat, self._alive = beat, now
        launcher = self._job.experiment.launcher
        if launcher.timeout_minutes is not None and now - self._began > launcher.timeout_minutes * 60:
            self._give_up(f"Training took longer than launcher.timeout_minutes ({launcher.timeout_minutes:g}).")
        if now - self._alive > launcher.heartbeat_timeout_minutes * 60:
            self._give_up(
                "Training has shown no sign of life for launcher.heartbeat_timeout_minutes "
                f"({launcher.heartbeat_timeout_minutes:g})."
            )

    def _give_up(self, why: str) -> None:
        raise TrainingFailed(f"{why} It resumes from its newest state.\n{self._standing()}Logs: {self._job.log_folder}")

    def _standing(self) -> str:
        """Where each rank stands: they answer a signal with the stack of every thread (faulthandler)."""
        logs = {rank: LineTail(command.log, from_end=True) for rank, command in enumerate(self._commands)}
        self._group.send(signal.SIGUSR1)
        time.sleep(1.0)
        return where_they_stand({rank: log.read() for rank, log in logs.items()}) + "\n"

    def failure(self) -> FimError | None:
        """Why a process has ended badly."""
        codes = {index: self._group.processes[index].returncode for index in self._group.failed()}
        return failure_of(self._job, codes, self._commands) if codes else None

    def end(self) -> None:
        """End the process group."""
        self._group.end()
        self._job.work.rendezvous(self._job.attempt).unlink(missing_ok=True)


class HostfileRanks(LocalRanks):
    """A launcher of DeepSpeed on this machine, whose ranks may be on others.

    mpirun and srun give their ranks process groups of their own, even here; it is the lease that reaches all of them.
    """

    def __init__(self, job: Job, command: Command, lock: int) -> None:
        """Start the launcher."""
        self._lease = Lease(job)
        self._lease.renew()
        super().__init__(job, [command], lock, self._lease.renew)

    def _standing(self) -> str:
        """Nothing: a launcher of DeepSpeed would die of the signal."""
        return ""

    def end(self) -> None:
        """End the ranks by their lease, and the launcher's process group."""
        self._lease.end()
        super().end()
