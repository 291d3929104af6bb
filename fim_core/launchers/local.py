"""Launcher for ranks on this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fim_core.device import RETURNED_FROM, cores, device_type, gpus, returned_from
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.heartbeat import Heartbeat
from fim_core.launchers.stack_dumps import describe_stacks
from fim_core.process_group import PARENT, Command, ProcessGroup
from fim_core.training.failures import Ended, failure_of
from fim_core.training.job import RENDEZVOUS_FILE, RENDEZVOUS_HOST, Job, TrainingFailed
from fim_core.training.log_tail import LineTail


@register("local")
def start_local(job: Job, lock: int, labels: Mapping[str, str]) -> LocalRanks:
    """Start one process for each rank."""
    return LocalRanks(job, local_commands(job), lock)


def local_commands(job: Job) -> list[Command]:
    """The command of each rank on this machine."""
    ranks = ranks_here(job)
    environment = {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
    return rank_commands(job, ranks, range(ranks), environment)


def ranks_here(job: Job) -> int:
    """Number of ranks on this machine: `num_processes`, or one per GPU, or one."""
    return job.experiment.launcher.num_processes or (gpus() if device_type() == "cuda" else 1)


def commands_of_one_of_several(job: Job, world_size: int, ranks: Sequence[int], first_host: str) -> list[Command]:
    """The commands of the ranks of this machine, in a run on several machines.

    Args:
        first_host: name of the machine of rank 0, where they meet.
    """
    return rank_commands(job, world_size, ranks, {RENDEZVOUS_HOST: first_host, "MASTER_ADDR": first_host})


def rank_commands(job: Job, world_size: int, ranks: Sequence[int], environment: Mapping[str, str]) -> list[Command]:
    """The commands of the ranks of this machine. Ranks meet through a file, as another process may take a port that was free.

    Args:
        world_size: number of ranks on all machines.
        ranks: those of this machine.
        environment: variables in addition to those that every rank gets.
    """
    commands = []
    for local_rank, rank in enumerate(ranks):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(len(ranks)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            PARENT: str(os.getpid()),
            RENDEZVOUS_FILE: str(job.work.rendezvous(job.attempt)),
            "DS_ACCELERATOR": device_type(),
            **({RETURNED_FROM: str(returned_from())} if device_type() == "cpu" else {}),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // len(ranks)))),
            **environment,
        }
        commands.append(Command(rank_command(job.work.job), variables, job.log_folder / f"rank-{rank}.log"))
    return commands


def rank_command(job: Path) -> list[str]:
    """The command line of a rank; its environment has RANK, LOCAL_RANK, WORLD_SIZE and RENDEZVOUS_FILE."""
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
        logs = {int(command.environment["RANK"]): LineTail(command.log, from_end=True) for command in self._commands}
        self._group.send(signal.SIGUSR1)
        time.sleep(1.0)
        return describe_stacks({rank: log.read() for rank, log in logs.items()}) + "\n"

    def failure(self) -> FimError | None:
        """The error of the ranks that have failed; None if none has."""
        ended = self.ended()
        return failure_of(self._job, ended) if ended else None

    def ended(self) -> list[Ended]:
        """The ranks that have ended with an error, in the order of their numbers."""
        return [
            Ended(int(command.environment["RANK"]), self._group.processes[index].returncode, command.log)
            for index, command in enumerate(self._commands)
            if index in self._group.failed()
        ]

    def end(self) -> None:
        """End the process group."""
        self._group.end()
        self._job.work.rendezvous(self._job.attempt).unlink(missing_ok=True)
