"""Ranks on one machine of a cluster: our half, which follows a job of the cluster, and the half that the job executes.

The cluster's machine runs `python -m fim_core.launchers.remote`, which starts local ranks there. Storage is shared, so
the job's file, events, logs, states and failures pass through the run's folder as they do on one machine.
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
from fim_core.launchers.folder_lock import LOCK_SECONDS, exclusive
from fim_core.launchers.local import LocalRanks, local_commands
from fim_core.launchers.monitor import follow
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.lease import LEASE_SECONDS, Lease, LeaseCheck

STATUS_SECONDS = 1.0
STOP_SECONDS = 30.0

Status = Literal["running", "succeeded", "failed"]


class RemoteJob(Protocol):
    """A job of a cluster, submitted."""

    name: str
    """What people find it by, such as `Ray job fim-demo-1a2b3c4d`."""

    def status(self) -> Status:
        """How it stands; `running` includes waiting for its resources."""

    def output(self) -> str:
        """The last of what the job wrote, and what the cluster says of it."""

    def stop(self) -> None:
        """Have the cluster end it; may return before it has ended."""


@dataclass(frozen=True)
class LauncherFailure:
    """Why the launcher on the cluster's machine ended; `user_error`: the message is meant for users as it is."""

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
        # Before there is a job to end. Should we be interrupted while it is submitted, it ends for want of a follower.
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
        """Show that someone follows. Silence and lateness are found on the cluster's machine."""
        self._lease.renew()

    def failure(self) -> FimError | None:
        """Why the job has ended badly, in the words of its launcher if it could say anything."""
        if self._status != "failed":
            return None
        told = self._job.work.launcher_failure(self._job.attempt)
        with suppress(FileNotFoundError, DamagedFile):
            content = read_json_as(told, LauncherFailure)
            return (FimError if content.user_error else TrainingFailed)(content.message)
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
                    f"{self._remote.name} has not stopped in {STOP_SECONDS:g} seconds. Without a follower it ends "
                    f"itself in {LEASE_SECONDS:g} seconds, if its machine still runs."
                )
            time.sleep(0.2)


def main() -> int:
    """Run a job's ranks on this machine, for a follower elsewhere. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--directory", type=Path, help="where relative paths of the experiment begin, if it is here")
    arguments = parser.parse_args()
    # A cluster ends its jobs by SIGTERM; as an exception it ends the ranks in order.
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
        told = LauncherFailure(not isinstance(error, TrainingFailed), str(error))
        write_json(job.work.launcher_failure(job.attempt), asdict(told))
        print(error, file=sys.stderr)
        return 1
    return 0


def run_here(job: Job) -> None:
    """Run the ranks on this machine until they end, or nobody follows them any more.

    Raises:
        FimError, TrainingFailed: as `launch` does.
    """
    # An earlier attempt whose follower has died notices this one, and ends; its ranks hold the lock until then.
    with exclusive(job.work.ranks_lock, LEASE_SECONDS + LOCK_SECONDS) as lock:
        ranks = LocalRanks(job, local_commands(job), lock, LeaseCheck(job))
        try:
            follow(job, ranks, lambda event: None)
        finally:
            ranks.end()


if __name__ == "__main__":
    sys.exit(main())
