"""Launcher for ranks on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fim_core.device import cores, device_type, gpus
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.heartbeat import Heartbeat
from fim_core.launchers.stack_dumps import describe_stacks
from fim_core.process_group import PARENT, Command, ProcessGroup
from fim_core.training.failures import failure_of
from fim_core.training.job import RENDEZVOUS_FILE, Job, TrainingFailed
from fim_core.training.log_tail import LineTail


@register("local")
def start_local(job: Job, lock: int, labels: Mapping[str, str]) -> LocalRanks:
    """Start one process for each rank."""
    return LocalRanks(job, local_commands(job), lock)


def local_commands(job: Job) -> list[Command]:
    """The command of each rank. Ranks meet through a file, as another process may take a port that was free."""
    device = device_type()
    ranks = job.experiment.launcher.num_processes or (gpus() if device == "cuda" else 1)
    commands = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            PARENT: str(os.getpid()),
            RENDEZVOUS_FILE: str(job.work.rendezvous(job.attempt)),
            "DS_ACCELERATOR": device,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // ranks))),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        commands.append(Command(rank_command(job.work.job), environment, job.log_folder / f"rank-{rank}.log"))
    return commands


def rank_command(job: Path) -> list[str]:
    """The command line of a rank; its environment has RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    return [sys.executable, "-m", "fim_core.training.worker", "--job", str(job)]


class LocalRanks:
    """Ranks that are processes of this machine."""

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
        self._heartbeat = Heartbeat(job)
        self._group = ProcessGroup(commands, keep_open=[lock])

    @property
    def running(self) -> bool:
        """Whether some process still runs and none has failed."""
        return self._group.running and not self._group.failed()

    def check(self) -> None:
        """Check the time limits of the run.

        Raises:
            TrainingFailed: training takes too long, or its heartbeat has stopped.
        """
        self._also_check()
        if (why := self._heartbeat.why_stop()) is not None:
            self._fail(why)

    def _fail(self, why: str) -> None:
        raise TrainingFailed(
            f"{why} It resumes from its newest state.\n{self._stack_report()}Logs: {self._job.log_folder}"
        )

    def _stack_report(self) -> str:
        """The innermost frame of each rank; ranks answer a signal with a stack dump in their log (faulthandler)."""
        logs = {rank: LineTail(command.log, from_end=True) for rank, command in enumerate(self._commands)}
        self._group.send(signal.SIGUSR1)
        time.sleep(1.0)
        return describe_stacks({rank: log.read() for rank, log in logs.items()}) + "\n"

    def failure(self) -> FimError | None:
        """The error of the ranks that have failed; None if none has."""
        codes = {index: self._group.processes[index].returncode for index in self._group.failed()}
        return failure_of(self._job, codes, self._commands) if codes else None

    def end(self) -> None:
        """End the process group."""
        self._group.end()
        self._job.work.rendezvous(self._job.attempt).unlink(missing_ok=True)
