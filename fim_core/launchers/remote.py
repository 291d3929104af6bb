"""Ranks on a machine of a cluster: the side that follows the cluster's job, and the program that the job executes.

The cluster's machine runs `python -m fim_core.launchers.remote`, which starts local ranks there. Both sides share the
run's folder, through which job, events, logs, states and failures pass as they do on one machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from fim_core.atomic import read_json_as, write_json
from fim_core.errors import DamagedFile, FimError
from fim_core.launchers.folder_lock import LOCK_SECONDS, lock_run_folder
from fim_core.launchers.local import LocalRanks, local_commands
from fim_core.launchers.monitor import follow
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.lease import LEASE_SECONDS, Lease, LeaseCheck

STATUS_SECONDS = 1.0
STOP_SECONDS = 30.0

Status = Literal["running", "succeeded", "failed"]


class RemoteJob(Protocol):
    """A submitted job of a cluster."""

    name: str
    """Name for messages, such as `Ray job fim-demo-1a2b3c4d`."""

    def status(self) -> Status:
        """Status of the job; `running` includes waiting for its resources."""

    def output(self) -> str:
        """The end of the job's output, and the cluster's message about it."""

    def stop(self) -> None:
        """Have the cluster end the job; may return before it has ended."""


@dataclass(frozen=True)
class LauncherFailure:
    """Why the launcher on the cluster's machine failed; with `user_error` the message is shown to users unchanged."""

    user_error: bool
    message: str


class RemoteRanks:
    """The ranks that a job of a cluster starts."""

    def __init__(self, job: Job, submit: Callable[[list[str]], RemoteJob], python: str = "python") -> None:
        """Submit the job.

        Args:
            submit: has the cluster run a command line.
            python: the program on the cluster that has this package installed.
        """
        self._job = job
        self._lease = Lease(job)
        # Before the job exists: if this process is interrupted while it submits, the job ends when the lease expires.
        self._lease.renew()
        self._remote = submit(
            [python, "-m", "fim_core.launchers.remote", "--job", str(job.work.job), "--directory", os.getcwd()]
        )
        print(f"[launcher] {self._remote.name}", file=sys.stderr, flush=True)
        self._status: Status = "running"
        self._asked = time.monotonic()

    @property
    def running(self) -> bool:
        """Whether the job waits or runs, as of a second ago."""
        if self._status == "running" and time.monotonic() - self._asked >= STATUS_SECONDS:
            self._status = self._remote.status()
            self._asked = time.monotonic()
        return self._status == "running"

    def check(self) -> None:
        """Renew the lease. The time limits are checked on the cluster's machine."""
        self._lease.renew()

    def failure(self) -> FimError | None:
        """The error that its launcher recorded, or else the job's output; None if the job has not failed."""
        if self._status != "failed":
            return None
        record = self._job.work.launcher_failure(self._job.attempt)
        with suppress(FileNotFoundError, DamagedFile):
            failure = read_json_as(record, LauncherFailure)
            return (FimError if failure.user_error else TrainingFailed)(failure.message)
        return TrainingFailed(f"{self._remote.name} has ended before its ranks did.\n{self._remote.output()}")

    def end(self) -> None:
        """Stop the job.

        Raises:
            TrainingFailed: the cluster does not stop it.
        """
        if self._status != "running":
            return
        self._remote.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self._remote.status() == "running":
            if time.monotonic() > deadline:
                raise TrainingFailed(
                    f"{self._remote.name} has not stopped in {STOP_SECONDS:g} seconds. If its machine still runs, its "
                    f"ranks end in {LEASE_SECONDS:g} seconds, when their lease expires."
                )
            time.sleep(0.2)


def main() -> int:
    """Run a job's ranks on this machine while another one follows them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--directory", type=Path, help="base of the experiment's relative paths, if it exists here")
    arguments = parser.parse_args()
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
        run_here(job)
    except FimError as error:
        failure = LauncherFailure(not isinstance(error, TrainingFailed), str(error))
        write_json(job.work.launcher_failure(job.attempt), asdict(failure))
        print(error, file=sys.stderr)
        return 1
    return 0


def run_here(job: Job) -> None:
    """Run the ranks on this machine until they end or the lease expires.

    Raises:
        FimError, TrainingFailed: as `launch` does.
    """
    # An earlier attempt whose follower has died sees that this one has begun, and ends; its ranks hold the lock until then.
    with lock_run_folder(job.work.ranks_lock, LEASE_SECONDS + LOCK_SECONDS) as lock:
        follow(job, LocalRanks(job, local_commands(job), lock, LeaseCheck(job)), lambda event: None)


if __name__ == "__main__":
    sys.exit(main())
