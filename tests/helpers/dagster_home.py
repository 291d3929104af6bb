"""Dagster's own commands with the project's dagster.yaml, each in a separate DAGSTER_HOME."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import dagster as dg
import psutil
from dagster_graphql import DagsterGraphQLClient

ROOT = Path(__file__).parents[2]
MARK = "FIM_TEST_SERVICE"
"""Environment variable that marks every process of a home."""


class DagsterHome:
    """A DAGSTER_HOME with the project's settings and all processes that use it; a context manager."""

    def __init__(self, folder: Path, experiment: Path) -> None:
        """Prepare it.

        Args:
            folder: becomes DAGSTER_HOME.
            experiment: the experiment file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "dagster.yaml", folder / "dagster.yaml")
        self.folder = folder
        self.log = folder / "service.log"
        self.instance = dg.DagsterInstance.from_config(str(folder))
        self._environment = {
            **os.environ,
            "DAGSTER_HOME": str(folder),
            "FIM_EXPERIMENT": str(experiment),
            "PYTHONPATH": str(ROOT),
            MARK: str(folder),
        }

    def spawn(self, *module_and_arguments: str) -> subprocess.Popen[bytes]:
        """Start a Python module in this home; its output goes to the log."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command([sys.executable, "-m", *module_and_arguments]),
                env=self._environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(self, command: list[str]) -> list[str]:
        """The command line that starts a command where this home is: here, unless a subclass says otherwise."""
        return command

    def tail(self) -> str:
        """The last lines of output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def processes(self) -> list[psutil.Process]:
        """All processes with the home's mark, without zombies."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def on_gpu(self) -> set[str]:
        """The runs that hold a slot of the pool `gpu`."""
        return set(self.instance.event_log_storage.get_concurrency_info("gpu").active_run_ids)

    def stop(self) -> None:
        """End all processes with the mark."""
        while running := self.processes():
            for process in running:
                process.kill()
            time.sleep(0.1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the main process of this home."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.instance.dispose()


class DagsterService(DagsterHome):
    """`dagster dev`: web server, daemon and code server, used through the web API."""

    def start(self) -> None:
        """Start, and wait until jobs can be launched."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.web = DagsterGraphQLClient("127.0.0.1", port_number=port)
        workspace = str(ROOT / "workspace.yaml")
        self.spawn("dagster", "dev", "--workspace", workspace, "--host", "127.0.0.1", "--port", str(port))
        wait_for(self._answers, 120, lambda: f"the web server\n{self.tail()}")
        self._own = set(self.processes())

    def _answers(self) -> bool:
        try:
            return bool(self.web._get_repo_locations_and_names_with_pipeline("train"))
        except Exception:
            return False

    def of_runs(self) -> list[psutil.Process]:
        """The processes that belong to runs: all but the service's own and the helper that Python gives the code server
        when it starts its first process."""
        helpers = {
            child for process in self._own for child in children(process) if "resource_tracker" in cmdline(child)
        }
        return [process for process in self.processes() if process not in self._own | helpers]

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        """Status of a run."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status


def children(process: psutil.Process) -> list[psutil.Process]:
    """Children of a process; empty if it has ended."""
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def cmdline(process: psutil.Process) -> str:
    """Command line of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(happened: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Wait for a condition; fail with a description if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what()}"
        time.sleep(0.1)
