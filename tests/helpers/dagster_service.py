"""Dagster as people run it: `dagster dev` with the shipped settings in a home of its own, used through its web API."""

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

import dagster as dg
import psutil
from dagster_graphql import DagsterGraphQLClient

ROOT = Path(__file__).parents[2]
MARK = "FIM_TEST_SERVICE"
"""Environment variable that every process of a service carries, wherever it was started."""


class DagsterService:
    """A web server, a daemon and a code server, started and ended together; a context manager."""

    def __init__(self, home: Path, experiment: Path, **environment: str) -> None:
        """Prepare it.

        Args:
            home: becomes DAGSTER_HOME, with the shipped `dagster.yaml`.
            experiment: the experiment file.
            environment: variables for all of its processes.
        """
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
        self._home, self._mark = home, str(home)
        self._environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "FIM_EXPERIMENT": str(experiment),
            "PYTHONPATH": str(ROOT),
            MARK: self._mark,
            **environment,
        }
        self._port = free_port()
        self.log = home / "service.log"
        self.instance = dg.DagsterInstance.from_config(str(home))
        self.web = DagsterGraphQLClient("127.0.0.1", port_number=self._port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when jobs can be launched."""
        command = ("dagster", "dev", "--workspace", str(ROOT / "workspace.yaml"), "--host", "127.0.0.1")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command, "--port", str(self._port)],
                env=self._environment,
                cwd=self._home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, 120, lambda: f"the web server\n{self.tail()}")
        self.own = set(self.processes())

    def tail(self) -> str:
        """The last lines that its processes wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def _answers(self) -> bool:
        try:
            return bool(self.web._get_repo_locations_and_names_with_pipeline("train"))
        except Exception:
            return False

    def processes(self) -> list[psutil.Process]:
        """Every process on this machine that carries the service's mark, without zombies."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def of_runs(self) -> list[psutil.Process]:
        """The processes that belong to runs: all but the service's own and the helper that Python gives the code server
        when it starts its first process."""
        helpers = {child for process in self.own for child in children(process) if "resource_tracker" in cmdline(child)}
        return [process for process in self.processes() if process not in self.own | helpers]

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        """Where a run stands."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def stop(self) -> None:
        """End everything that carries the mark."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        for process in self.processes():
            process.kill()

    def __enter__(self) -> DagsterService:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.instance.dispose()


def children(process: psutil.Process) -> list[psutil.Process]:
    """The children of a process; none of one that has ended."""
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def cmdline(process: psutil.Process) -> str:
    """The command of a process; empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(happened: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Return when something has happened; fail, with words for it, when it has not in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what()}"
        time.sleep(0.1)
