"""Training by a Dagster Pipes client of the user's choice."""

from __future__ import annotations

import threading
from collections.abc import Callable

import dagster as dg

from fim_assets.resources.launcher import Launcher
from fim_core.launchers.remote import RemoteRanks, Status, launcher_command
from fim_core.training.job import Job

RunCommand = Callable[[dg.AssetExecutionContext, list[str]], object]


class PipesLauncher(Launcher):
    """Trains with a command line that a Pipes client runs, wherever the storage folder is mounted.

    Replaces the resource `launcher`; of the experiment's section `launcher`, only the options that all types share apply.
    The command starts all ranks of one machine. Events, logs and failures pass through the storage folder, and the ranks
    end by themselves, within a second or two, when the run is cancelled.
    """

    def __init__(self, run: RunCommand, python: str = "python") -> None:
        """Choose the client.

        Args:
            run: runs a command line with a client, and returns when it has ended; raises if it fails. For example
                `lambda context, command: PipesSubprocessClient().run(context=context, command=command)`.
            python: the interpreter, where the command runs, that has this package installed.
        """
        self._run = run
        self._python = python

    def run(self, context: dg.AssetExecutionContext, job: Job, lock: int) -> RemoteRanks:
        """Start the ranks."""

        def submit(command: list[str]) -> PipesJob:
            return PipesJob(lambda: self._run(context, command))

        return RemoteRanks(job, submit, launcher_command(self._python))


class PipesJob:
    """A command line that a Pipes client runs, in a thread, as clients return only when it has ended."""

    name = "The command of the Pipes client"

    def __init__(self, run: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._finish, args=[run], name="pipes", daemon=True)
        self._thread.start()

    def _finish(self, run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:
            self._error = error

    def status(self) -> Status:
        """Whether the client has returned, and how."""
        if self._thread.is_alive():
            return "running"
        return "succeeded" if self._error is None else "failed"

    def output(self) -> str:
        """The client's error."""
        return f"{type(self._error).__name__}: {self._error}" if self._error else ""

    def stop(self) -> None:
        """Nothing: the command ends by itself, as its lease has ended."""
