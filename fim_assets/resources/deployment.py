"""Which of Dagster's run launchers starts the runs, and what this project can do under it (see docs/deployment.md)."""

from __future__ import annotations

import dagster as dg

LOCAL = "LocalRunLauncher"
_PROCESSES = {LOCAL, "DefaultRunLauncher"}
"""Launchers that start runs as processes of the code server's machine."""
_CONTAINERS = {"K8sRunLauncher", "DockerRunLauncher"}
"""Launchers that start each run in a container, and notice its death by themselves."""


def run_launcher_of(instance: dg.DagsterInstance) -> str | None:
    """Class name of the instance's run launcher; None for an instance in memory. The launcher itself is not loaded."""
    if instance.is_ephemeral:
        return None
    configured = instance.get_ref().run_launcher_data
    return configured.class_name if configured is not None else "DefaultRunLauncher"


def runs_are_processes(instance: dg.DagsterInstance) -> bool:
    """Whether a run is a process whose number means something on this machine after the run has died."""
    return run_launcher_of(instance) in _PROCESSES


def notice(instance: dg.DagsterInstance) -> str | None:
    """What does not hold under the instance's run launcher; None if everything does."""
    launcher = run_launcher_of(instance)
    if launcher in {None, LOCAL} | _CONTAINERS:
        return None
    if launcher == "DefaultRunLauncher":
        return (
            "Dagster's DefaultRunLauncher does not notice a run whose process dies while the code server is restarted: the "
            "run stays started and keeps its slot of the pool gpu. Set run_launcher and run_monitoring in "
            "$DAGSTER_HOME/dagster.yaml as this project's dagster.yaml does."
        )
    return (
        f"The run launcher {launcher} is not known to this project. Whether a run whose process dies is noticed, and frees "
        "its slot of the pool gpu, depends on it: see docs/deployment.md."
    )
