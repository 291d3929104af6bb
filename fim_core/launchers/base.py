"""Interface and registry of launchers, which start the ranks of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fim_core.errors import FimError
from fim_core.training.job import Job


class RunningRanks(Protocol):
    """All ranks of a run, on whatever machines."""

    @property
    def running(self) -> bool:
        """Whether to keep waiting: false when all ranks have ended or one has failed."""

    def check(self) -> None:
        """Check on the ranks; called several times a second while they run.

        Raises:
            TrainingFailed: the run has to be ended, for example because it hangs.
        """

    def failure(self) -> FimError | None:
        """The error of a run that failed; None if all ranks ended without one."""

    def end(self) -> None:
        """End the ranks that still run; returns when none is left."""


StartRanks = Callable[[Job, int], RunningRanks]
"""Starts the ranks of a job. Its processes on this machine inherit the descriptor of the lock on the job's folder."""

Launcher = Callable[[Job, int, Mapping[str, str]], RunningRanks]
"""As StartRanks; a cluster attaches the labels to its job."""

_LAUNCHERS: dict[str, Launcher] = {}


def register(kind: str) -> Callable[[Launcher], Launcher]:
    """Make a function the launcher for experiments with `launcher.type: <kind>`.

    The class of its options is registered by `fim_core.config.experiment.register_launcher_options`.
    """

    def add(start: Launcher) -> Launcher:
        _LAUNCHERS[kind] = start
        return start

    return add


def start_ranks(job: Job, lock: int, labels: Mapping[str, str] | None = None) -> RunningRanks:
    """Start the ranks of a job by the launcher of its experiment.

    Args:
        lock: descriptor of the lock of the job's folder.
        labels: attached to the job of a cluster.

    Raises:
        FimError: no such launcher is registered, or something that it needs is missing.
    """
    kind = job.experiment.launcher.type
    if kind not in _LAUNCHERS:
        known = ", ".join(sorted(_LAUNCHERS))
        if kind == "kubernetes":
            raise FimError(
                "`launcher.type: kubernetes` is available only from Dagster: materialize trained_checkpoint there, or use "
                f"one of {known}."
            )
        raise FimError(f"No function is registered for `launcher.type: {kind}`, only for {known}.")
    return _LAUNCHERS[kind](job, lock, labels or {})
