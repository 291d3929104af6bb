"""Launchers: how the ranks of a job are started, and what is known of them while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fim_core.errors import FimError
from fim_core.training.job import Job


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

Launcher = Callable[[Job, int, Mapping[str, str]], RunningRanks]
"""As Start; a cluster shows the labels with its job."""

_LAUNCHERS: dict[str, Launcher] = {}


def register(kind: str) -> Callable[[Launcher], Launcher]:
    """Make a function the launcher for experiments with `launcher.type: <kind>`.

    Its options are a class that `fim_core.config.experiment.register_launcher_options` makes known.
    """

    def add(start: Launcher) -> Launcher:
        _LAUNCHERS[kind] = start
        return start

    return add


def start_ranks(job: Job, lock: int, labels: Mapping[str, str] | None = None) -> RunningRanks:
    """Start the ranks of a job where its experiment says.

    Args:
        lock: descriptor of the lock of the job's folder.
        labels: for a cluster to show with its job.

    Raises:
        FimError: the launcher is not known here, or something that it needs is missing.
    """
    kind = job.experiment.launcher.type
    if kind not in _LAUNCHERS:
        raise FimError(
            f"`launcher.type: {kind}` is started from Dagster: materialize trained_checkpoint there. Here are: "
            f"{', '.join(sorted(_LAUNCHERS))}."
        )
    return _LAUNCHERS[kind](job, lock, labels or {})
