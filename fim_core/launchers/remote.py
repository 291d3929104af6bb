"""Ranks on machines of a cluster: the side that follows the cluster's job, and the program that the job executes.

Each machine of the run executes `python -m fim_core.launchers.remote`, which starts local ranks there. All sides share
the run's folder, through which job, events, logs, states and failures pass as they do on one machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from fim_core.atomic import read_json_as, write_json
from fim_core.errors import DamagedFile, FimError
from fim_core.launchers.folder_lock import LOCK_SECONDS, lock_run_folder
from fim_core.launchers.local import LocalRanks
from fim_core.launchers.monitor import follow
from fim_core.launchers.nodes import Node
from fim_core.process_group import die_with_parent
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.lease import LEASE_SECONDS, Lease, LeaseCheck

STATUS_SECONDS = 1.0
STOP_SECONDS = 30.0
SILENCE_SECONDS = 60.0
"""How long a cluster may not answer before the run is ended."""

NODE_VARIABLE = "JOB_COMPLETION_INDEX"
"""Environment variable by which Kubernetes numbers the pods of a Job."""

Status = Literal["running", "succeeded", "failed"]


class NoAnswer(Exception):
    """The cluster cannot be reached at the moment, or has an error of its own; it may answer later."""


class RemoteJob(Protocol):
    """A submitted job of a cluster."""

    name: str
    """Name for messages, such as `Ray job fim-demo-1a2b3c4d`."""

    def status(self) -> Status:
        """Status of the job; `running` includes waiting for its resources.

        Raises:
            NoAnswer: the cluster does not answer.
            TrainingFailed: the job can never run.
        """

    def output(self) -> str:
        """The end of the job's output, and the cluster's message about it.

        Raises:
            NoAnswer: the cluster does not answer.
        """

    def stop(self) -> None:
        """Have the cluster end the job; may return before it has ended.

        Raises:
            NoAnswer: the cluster does not answer.
        """


@dataclass(frozen=True)
class LauncherFailure:
    """Why a launcher on the cluster failed.

    Attributes:
        user_error: whether the message is shown to users unchanged.
        lost_machine: whether a machine was lost, which makes the ranks on the others fail.
    """

    user_error: bool
    message: str
    lost_machine: bool = False


def record_launcher_failure(job: Job, node: int | str, failure: LauncherFailure) -> None:
    """Record why a launcher on the cluster fails, for the process that follows the run."""
    write_json(job.work.launcher_failure(job.attempt, node), asdict(failure))


def recorded_launcher_failure(job: Job) -> LauncherFailure | None:
    """What the launchers of this attempt have recorded: a mistake of the user, a lost machine, or the first failure.

    Their age is that of the files: the clocks of the machines may differ.
    """
    found = []
    for file in job.work.launcher_failure(job.attempt).parent.glob(f"{job.attempt}-launcher-*.json"):
        with suppress(FileNotFoundError, DamagedFile):
            found.append((read_json_as(file, LauncherFailure), file.stat().st_mtime_ns))
    found.sort(key=lambda item: (not item[0].user_error, not item[0].lost_machine, item[1]))
    return found[0][0] if found else None


class RemoteRanks:
    """The ranks that a job of a cluster starts."""

    def __init__(self, job: Job, submit: Callable[[list[str]], RemoteJob], command: Sequence[str]) -> None:
        """Submit the job.

        Args:
            submit: has the cluster run a command line.
            command: the program on the cluster, without the arguments that name the job: see `launcher_command`.
        """
        self._job = job
        self._lease = Lease(job)
        # Before the job exists: if this process is interrupted while it submits, the job ends when the lease expires.
        self._lease.renew()
        self._remote = submit([*command, "--job", str(job.work.job), "--directory", os.getcwd()])
        self._stop_requested = False
        print(f"[launcher] {self._remote.name}", file=sys.stderr, flush=True)
        self._status: Status = "running"
        self._asked = self._answered = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the job waits or runs, as of a second ago."""
        if self._status == "running" and time.monotonic() - self._asked >= STATUS_SECONDS:
            self._asked = time.monotonic()
            self._status = self._ask()
        return self._status == "running"

    def _ask(self) -> Status:
        """The job's status; `running` while the cluster does not answer.

        Raises:
            TrainingFailed: it has not answered for a minute, or the job can never run.
        """
        try:
            status = self._remote.status()
        except NoAnswer as error:
            silence = time.monotonic() - self._answered
            if silence > SILENCE_SECONDS:
                raise TrainingFailed(
                    f"The cluster has not answered about {self._remote.name} for {silence:.0f} seconds: {error}"
                ) from error
            return "running"
        self._answered = time.monotonic()
        return status

    def check(self) -> None:
        """Renew the lease. The time limits are checked on the cluster's machine."""
        self._lease.renew()

    def failure(self) -> FimError | None:
        """The error that its launcher recorded, or else the job's output; None if the job has not failed."""
        if self._status != "failed":
            return None
        if (failure := recorded_launcher_failure(self._job)) is not None:
            return (FimError if failure.user_error else TrainingFailed)(failure.message)
        try:
            output = self._remote.output()
        except NoAnswer as error:
            output = f"Its output cannot be read: {error}"
        return TrainingFailed(f"{self._remote.name} has ended before its ranks did.\n{output}")

    def end(self) -> None:
        """Stop the job.

        Raises:
            TrainingFailed: the cluster does not stop it.
        """
        # For machines that the cluster has lost, or that outlive a job of which one machine has failed.
        self._lease.end()
        if self._status != "running":
            return
        deadline = time.monotonic() + STOP_SECONDS
        while self._stop() == "running":
            if time.monotonic() > deadline:
                raise TrainingFailed(
                    f"{self._remote.name} has not stopped in {STOP_SECONDS:g} seconds. If its machine still runs, its "
                    f"ranks end in {LEASE_SECONDS:g} seconds, when their lease expires."
                )
            time.sleep(0.2)

    def _stop(self) -> Status:
        """Have the cluster end the job, once; returns its status."""
        try:
            if not self._stop_requested:
                self._remote.stop()
                self._stop_requested = True
            return self._remote.status()
        except NoAnswer:
            return "running"


def launcher_command(python: str, nodes: int = 1, first_host: str = "") -> list[str]:
    """The program that each machine of a run executes, without the arguments that name the job.

    Args:
        python: the interpreter on the cluster that has this package installed.
        nodes: number of machines.
        first_host: name of the machine where their ranks meet, if there are several.
    """
    several = ["--nodes", str(nodes), "--first-host", first_host] if nodes > 1 else []
    return [python, "-m", "fim_core.launchers.remote", *several]


def main() -> int:
    """Run a job's ranks on this machine while another one follows them. Returns the exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--directory", type=Path, help="base of the experiment's relative paths, if it exists here")
    parser.add_argument("--nodes", type=int, default=1, help="number of machines of the run")
    parser.add_argument("--node", type=int, default=int(os.environ.get(NODE_VARIABLE, 0)), help="index of this one")
    parser.add_argument("--first-host", default="", help="name of machine 0, where the ranks of several machines meet")
    arguments = parser.parse_args()
    node = Node(arguments.node, arguments.nodes, arguments.first_host)
    # A cluster ends its jobs by SIGTERM; raised as an exception, it lets the ranks be ended in order.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if arguments.directory and arguments.directory.is_dir():
        os.chdir(arguments.directory)
    try:
        job = Job.read(arguments.job)
    except (OSError, FimError) as error:
        print(error, file=sys.stderr)
        return 1
    try:
        run_here(job, node)
    except FimError as error:
        record_launcher_failure(job, node.index, LauncherFailure(not isinstance(error, TrainingFailed), str(error)))
        print(error, file=sys.stderr)
        return 1
    return 0


def run_here(job: Job, node: Node) -> None:
    """Run the ranks on this machine until they end or the lease expires.

    Raises:
        FimError, TrainingFailed: as `launch` does.
    """
    # An earlier attempt whose follower has died sees that this one has begun, and ends; its ranks hold the lock until then.
    with lock_run_folder(job.work.ranks_lock(node.index), LEASE_SECONDS + LOCK_SECONDS) as lock:
        ranks = LocalRanks(job, node.commands(job), lock, LeaseCheck(job))
        follow(job, ranks, lambda event: None)


if __name__ == "__main__":
    sys.exit(main())
