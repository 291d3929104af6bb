"""Fault injection for the soak test: a scheduled experiment on a small disk, a daemon, and random disturbances."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import dagster as dg
import psutil
from dagster_home import DagsterHome, children, cmdline, wait_for
from tiny_pipeline import TINY, write_experiment

from fim_assets.resources.run_worker import worker_of
from fim_core.config import load_experiment
from fim_core.demo.export import write_export
from fim_core.pipeline.garbage import find_garbage, remove
from fim_core.store import Store

SETTLE_SECONDS = 2.0
DISK_MEGABYTES = 192
EVERY_TWO_MINUTES = "*/2 * * * *"


class FaultInjection(DagsterHome):
    """`dagster-daemon run` with schedule and sensor switched on, and disturbances chosen by a seeded generator."""

    def __init__(self, folder: Path, seed: int, *, small_disk: bool) -> None:
        """Prepare exports, experiment and DAGSTER_HOME in a folder.

        Args:
            small_disk: whether `folder/store` is a separate file system that can be filled up.
        """
        self.exports = folder / "exports"
        self.exports.mkdir()
        self.experiment = write_experiment(
            folder,
            data=TINY["data"] | {"sources": [{"name_or_path": str(self.exports)}], "eval_fraction": 0.1},
            epochs=100,
            max_steps=120,
            checkpoint={"type": "deepspeed", "save_every_n_steps": 10},
            launcher={"num_processes": 2},
            retraining={"cron": EVERY_TWO_MINUTES, "enabled": True},
            exports={"folder": str(self.exports), "settle_seconds": SETTLE_SECONDS, "enabled": True},
        )
        super().__init__(folder / "dagster", self.experiment)
        self.store = Store(load_experiment(self.experiment).storage)
        self.journal = folder / "journal.txt"
        self._random = Random(seed)
        self._began = time.monotonic()
        self._filler = self.store.root / "filler" if small_disk else None
        self._truncated: Path | None = None
        self._arrivals = 0
        self._daemon: subprocess.Popen[bytes] | None = None
        for _ in range(2):
            self.export_arrives(rows=150)

    def start(self) -> None:
        """Start the daemon; it starts the code server."""
        self._daemon = self.spawn("dagster._daemon", "run", "-m", "fim_assets.definitions")

    def note(self, text: str) -> None:
        """Write an entry to the journal."""
        with self.journal.open("a") as journal:
            journal.write(f"{time.monotonic() - self._began:7.1f} s  {text}\n")

    def disturb(self) -> None:
        """Cause one random disturbance of those that are possible now."""
        ranks = [process for process in self.processes() if "fim_core.training.worker" in cmdline(process)]
        workers = self.workers()
        steps = [child for worker in workers for child in children(worker) if "resource_tracker" not in cmdline(child)]
        disturbances: list[tuple[int, Callable[[], object]]] = [
            (2, self.export_arrives),
            (1, self.export_is_written_slowly),
            (2, self.export_is_truncated) if self._truncated is None else (20, self.repair_truncated),
            (1, self.export_changes),
            (1, self.export_goes),
            (1, self.garbage_is_collected),
            (1 if self._filler else 0, self.disk_is_full),
            (1 if workers else 0, self.daemon_is_killed),
            (1 if workers else 0, lambda: self.kill("the process of a run", workers)),
            (1 if steps else 0, lambda: self.kill("the process of a step", steps)),
            (20 if ranks else 0, lambda: self.kill("a rank", ranks)),
        ]
        [(_, disturbance)] = self._random.choices(disturbances, [weight for weight, _ in disturbances])
        disturbance()

    def export_arrives(self, rows: int = 60) -> Path:
        """Add a file atomically."""
        self._arrivals += 1
        path = self.exports / f"export-{self._arrivals:03}.{self._random.choice(['csv', 'parquet'])}"
        hidden = path.with_name(f".{path.name}")
        write_export(hidden, rows=rows, seed=self._random.randrange(10**6))
        os.replace(hidden, path)
        self.note(f"{path.name} arrives")
        return path

    def export_is_written_slowly(self) -> None:
        """Add a file that is written for longer than the settle time."""
        path = self.export_arrives()
        content = path.read_bytes()
        pieces = 4
        with path.open("wb") as file:
            for piece in range(pieces):
                file.write(content[piece * len(content) // pieces : (piece + 1) * len(content) // pieces])
                file.flush()
                time.sleep(SETTLE_SECONDS / 3)
        self.note(f"{path.name} was written slowly")

    def export_is_truncated(self) -> None:
        """Add a file whose end is missing, for a while."""
        path = self.export_arrives()
        whole = path.with_name(f".{path.name}")
        shutil.copyfile(path, whole)
        os.truncate(path, path.stat().st_size * 2 // 3)
        self._truncated = path
        self.note(f"{path.name} is truncated")

    def repair_truncated(self) -> None:
        """Replace the truncated file by the complete one."""
        if self._truncated is not None:
            os.replace(self._truncated.with_name(f".{self._truncated.name}"), self._truncated)
            self.note(f"{self._truncated.name} is whole")
            self._truncated = None

    def export_changes(self) -> None:
        """Replace the rows of an existing file."""
        path = self._random.choice(self._sound())
        write_export(path, rows=80, seed=self._random.randrange(10**6))
        self.note(f"{path.name} changes")

    def export_goes(self) -> None:
        """Remove a file."""
        if len(self._sound()) > 2:
            path = self._random.choice(self._sound())
            path.unlink()
            self.note(f"{path.name} goes")

    def _sound(self) -> list[Path]:
        files = (path for path in self.exports.iterdir() if not path.name.startswith("."))
        return sorted(path for path in files if path != self._truncated)

    def workers(self) -> list[psutil.Process]:
        """Worker processes of the current runs."""
        runs = self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        found = (worker for run in runs if (worker := worker_of(self.instance, run)) and not worker.is_gone)
        return [psutil.Process(worker.pid) for worker in found if psutil.pid_exists(worker.pid)]

    def kill(self, what: str, candidates: list[psutil.Process]) -> None:
        """Kill a process, as the kernel does when memory runs out, or as a shutdown does."""
        victim = self._random.choice(sorted(candidates, key=lambda process: process.pid))
        number = self._random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            return
        self.note(f"{what} gets {number.name} ({victim.pid})")

    def daemon_is_killed(self) -> None:
        """Kill the daemon, sometimes with the code server, and restart it after a pause."""
        assert self._daemon is not None
        servers = [process for process in self.processes() if "api grpc" in cmdline(process)]
        self._daemon.kill()
        self._daemon.wait()
        with_server = self._random.random() < 0.5
        if with_server:
            for server in servers:
                server.kill()
        self.note(f"the daemon is killed{', the code server too' if with_server else ''}")
        time.sleep(self._random.uniform(0, 5))
        self.start()

    def garbage_is_collected(self) -> None:
        """Run `fim gc` while runs are active."""
        garbage = find_garbage(self.store, keep_checkpoints=1, fresh_minutes=0.5) if self.store.root.is_dir() else []
        remove(self.store, garbage)
        self.note(f"{len(garbage)} folders are collected")

    def disk_is_full(self) -> None:
        """Fill the disk of the store for some seconds."""
        assert self._filler is not None
        # Without a buffer, which closing the file would write once more.
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(2**16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        self.note("the disk is full")
        time.sleep(self._random.uniform(2, 15))
        self._filler.unlink()
        self.note("the disk has room again")

    def let_runs_end(self, seconds: float) -> None:
        """End the daemon, wait for the runs that it has started, and end the code server."""
        assert self._daemon is not None
        self._daemon.kill()
        under_way = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
        wait_for(lambda: not self.instance.get_runs(under_way), seconds, lambda: f"the last runs\n{self.tail()}")
        self.stop()

    def calm(self) -> float:
        """Stop all disturbances; returns the time in seconds since the epoch."""
        self.repair_truncated()
        if self._daemon is None or self._daemon.poll() is not None:
            self.start()
        self.note("calm")
        return time.time()


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Mount a file system of DISK_MEGABYTES at a path, if this process may; yields whether it could."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(place)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
