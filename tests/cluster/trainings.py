"""Runs of `fim train` on the hosts of the cluster."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from hosts import HEAD, Cluster, wait_for
from tiny_pipeline import TINY

from fim_core.config import load_experiment
from fim_core.pipeline import run

BACKENDS = ("pdsh", "slurm", "openmpi")
TWO_HOSTS = ("worker-1 slots=1", "worker-2 slots=1")
"""Lines of a hostfile."""
ENDLESS = 3_000
"""Optimizer steps of a run that a test ends. All their packs are planned before the first."""

_ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "PYTHONPATH": str(_ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    # mpirun refuses to run for root otherwise.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


class Trainings:
    """A folder with prepared data, in which experiments are trained."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        """Make the tokenized dataset once, on this machine."""
        self.cluster = cluster
        self._folder = folder
        self._started: list[Training] = []
        self._prepared = folder / "prepared"
        self._prepared.mkdir()
        self._write(self._prepared, {}, {})
        run(load_experiment(self._prepared / "experiment.yaml"), until="tokenized_dataset")

    def _write(self, folder: Path, launcher: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        content = {**TINY, "name": "tiny", "storage": str(folder / "store"), "launcher": dict(launcher)}
        content |= {"data": {**TINY["data"], "pack_length": 512}, "batch_rows": 8, "epochs": None, **options}
        (folder / "experiment.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def folder(self, name: str) -> Path:
        """A new folder with the prepared data."""
        folder = self._folder / name
        shutil.copytree(self._prepared, folder, symlinks=True)
        return folder

    def start(
        self,
        folder: Path,
        backend: str = "local",
        hosts: Sequence[str] = TWO_HOSTS,
        *,
        steps: int = ENDLESS,
        environment: Mapping[str, str] | None = None,
        launcher: Mapping[str, Any] | None = None,
        before: Sequence[str] = (),
        **options: Any,
    ) -> Training:
        """Start `fim train` on the head; arguments as those of `configure`.

        Args:
            before: words to put before the command line, such as `salloc`.
        """
        self.configure(folder, backend, hosts, steps=steps, launcher=launcher, **options)
        training = Training(self.cluster, folder, {**ENVIRONMENT, **(environment or {})}, before)
        self._started.append(training)
        return training

    def configure(
        self,
        folder: Path,
        backend: str = "local",
        hosts: Sequence[str] = TWO_HOSTS,
        *,
        steps: int = ENDLESS,
        launcher: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Path:
        """Write the experiment file of a folder; returns its path.

        Args:
            backend: of the launcher `hostfile`, or `local` for two ranks on the head.
            hosts: lines of the hostfile; without any, the launcher has none.
            launcher: further options of the launcher.
        """
        section: dict[str, Any] = {"num_processes": 2}
        if backend != "local":
            section = {"type": "hostfile", "backend": backend}
            if hosts:
                (folder / "hosts").write_text("".join(f"{line}\n" for line in hosts))
                section["hostfile"] = str(folder / "hosts")
        options.setdefault("checkpoint", {"type": "deepspeed", "save_every_n_steps": 5})
        self._write(folder, section | dict(launcher or {}), {"max_steps": steps, **options})
        return folder / "experiment.yaml"

    def end(self) -> None:
        """End what a failed test has left."""
        for training in self._started:
            training.cleanup()
        self._started.clear()


class RunFolder:
    """The folder of an experiment that is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def launched(self) -> float:
        """Seconds since it has written its job, just before it starts the ranks."""
        assert self.work is not None
        return time.time() - (self.work / "job.json").stat().st_mtime

    @property
    def newest_state(self) -> int:
        """The step of its newest complete state."""
        assert self.work is not None
        return max(int(state.name.split("-")[1]) for state in (self.work / "state").glob("step-*"))

    @property
    def work(self) -> Path | None:
        """Its work folder, once there is one."""
        return next(iter((self.folder / "store" / "work" / "trained_checkpoint").glob("*")), None)

    @property
    def steps(self) -> int:
        """The last optimizer step of this attempt so far."""
        if self.work is None or not (self.work / "metrics.jsonl").exists():
            return 0
        events = [json.loads(line) for line in (self.work / "metrics.jsonl").read_text().splitlines()[-50:]]
        job = json.loads((self.work / "job.json").read_text())
        start = [index for index, event in enumerate(events) if event["event"] == "start"]
        if start and events[start[-1]].get("attempt") not in json.dumps(job):
            return 0
        return max((event["step"] for event in events if event["event"] == "step"), default=0)

    def events(self) -> str:
        """The events of its trained checkpoint, one JSON object a line."""
        return (self._checkpoint / "metrics.jsonl").read_text(encoding="utf-8")

    def weights(self) -> str:
        """Digest of the trained weights."""
        return hashlib.sha256((self._checkpoint / "model.safetensors").read_bytes()).hexdigest()

    @property
    def _checkpoint(self) -> Path:
        return (self.folder / "store" / "trained_checkpoint" / "current").resolve()


class Training(RunFolder):
    """One run of `fim train` on the head."""

    def __init__(self, cluster: Cluster, folder: Path, environment: Mapping[str, str], before: Sequence[str]) -> None:
        super().__init__(folder)
        self._log = folder / f"{time.time_ns()}.log"
        self.began = time.monotonic()
        program = [str(Path(sys.executable).with_name("fim")), "train", "experiment.yaml"]
        self._process = cluster.popen(HEAD, [*before, *program], environment, folder, self._log)

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for_steps(self, steps: int = 8, seconds: float = 240) -> None:
        """Wait until it has trained so many steps."""

        def trained() -> bool:
            assert self._process.poll() is None, self.output
            return self.steps >= steps

        try:
            wait_for(trained, seconds, "the run trains")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.output}") from error

    def wait_for_output(self, text: str, seconds: float = 300) -> float:
        """Wait until it has printed a text; returns when it did, by the monotonic clock."""

        def printed() -> bool:
            assert self._process.poll() is None or text in self.output, self.output
            return text in self.output

        wait_for(printed, seconds, text)
        return time.monotonic()

    def wait(self, seconds: float = 300) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"not ended in {seconds:g} s\n{self.output}") from error

    @property
    def front_door(self) -> psutil.Process:
        """The process of `fim train` itself."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        return next(process for process in family if any(word.endswith("/fim") for word in process.cmdline()[:2]))

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.front_door.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL of `fim train` alone."""
        self.front_door.kill()

    def cleanup(self) -> None:
        """End it, if a failed test has left it running."""
        if self._process.poll() is None:
            for process in psutil.Process(self._process.pid).children(recursive=True):
                process.kill()
            self._process.kill()
        self._process.wait()
