"""Dagster on the head of the cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from dagster_home import DagsterService
from hosts import HEAD, SYSTEM_PATH, Cluster
from trainings import ENVIRONMENT


class HeadService(DagsterService):
    """`dagster dev` on the head; its web API is used inside `network`."""

    def __init__(self, cluster: Cluster, folder: Path, experiment: Path) -> None:
        super().__init__(folder, experiment)
        self._cluster = cluster

    def command(self, command: list[str]) -> list[str]:
        variables = {"PATH": SYSTEM_PATH, "HOME": "/root", **ENVIRONMENT}
        settings = [f"{name}={value}" for name, value in variables.items()]
        return self._cluster.command(HEAD, ["env", "-C", str(self.folder), *settings, *command])

    def network(self) -> AbstractContextManager[None]:
        """The network of the head."""
        return self._cluster.network_of(HEAD)

    def start(self) -> None:
        with self.network():
            super().start()
