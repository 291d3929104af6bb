"""Start the ranks of a training run, follow it, and leave nothing behind."""

from __future__ import annotations

import fcntl
import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.training.failures import failure_of
from fim_core.training.follow import EventTail, LineTail
from fim_core.training.job import Job, TrainingFailed, TrainResult, Work
from fim_core.training.processes import PARENT, Command, ProcessGroup
from fim_core.training.progress import progress_bar
from fim_core.training.standing import where_they_stand

OnEvent = Callable[[dict[str, Any]], None]

POLL_SECONDS = 0.1
LOCK_SECONDS = 20.0


@dataclass(frozen=True)
class Launch:
    """How to start the ranks of a job.

    Attributes:
        commands: one for each rank on this machine, or the one of DeepSpeed's launcher.
        logs: log file of each rank, by rank, as far as known beforehand.
    """

    commands: list[Command]
    logs: dict[int, Path]


def launch(
    experiment: Experiment,
    dataset: Path,
    tokenizer: Path,
    work: Path,
    *,
    on_event: OnEvent | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train, and return when the model lies in `work/model`.

    The ranks run in a process group of their own. However this function is left (an error, Ctrl-C, SIGKILL of this
    process), no process of it survives. A second launch in the same folder resumes from the newest whole state.

    Args:
        dataset: folder of tokenize_prompts, with the splits train and eval.
        tokenizer: folder of the tokenizer that the rows were made with.
        work: the run's folder; kept between attempts.
        on_event: gets each event of the run as it happens, from this attempt's `start` on.
        provenance: what the model is made of (versions, digests), for its card.

    Raises:
        FimError: the mistake that a rank found, in its words.
        TrainingFailed: a rank broke down, was killed, hung, or ran out of time.
    """
    with exclusive(Work(work.absolute())) as lock:
        job = prepare_job(experiment, dataset, tokenizer, work, provenance)
        plan = local_launch(job) if experiment.launcher.type == "local" else hostfile_launch(job)
        with progress_bar(experiment.name) as show:

            def pass_on(event: dict[str, Any]) -> None:
                show(event)
                if on_event is not None:
                    on_event(event)

            try:
                with ProcessGroup(plan.commands, keep_open=[lock]) as group:
                    Watch(job, plan, group, pass_on).until_done()
            finally:
                job.work.rendezvous(job.attempt).unlink(missing_ok=True)
        return TrainResult.read(job.work.result)


def prepare_job(
    experiment: Experiment, dataset: Path, tokenizer: Path, work: Path, provenance: Mapping[str, Any] | None = None
) -> Job:
    """Write the job file of a new attempt."""
    job = Job(
        experiment=experiment,
        dataset=dataset.absolute(),
        tokenizer=tokenizer.absolute(),
        work=Work(work.absolute()),
        attempt=secrets.token_hex(4),
        provenance=provenance or {},
    )
    job.write()
    job.work.result.unlink(missing_ok=True)
    return job


def local_launch(job: Job) -> Launch:
    """One process a rank on this machine. They find each other through a file, as a free port may be lost in a race."""
    launcher = job.experiment.launcher
    device = device_type()
    ranks = launcher.num_processes or (_gpus() if device == "cuda" else 1)
    folder = log_folder(job)
    logs = {rank: folder / f"rank-{rank}.log" for rank in range(ranks)}
    commands = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            PARENT: str(os.getpid()),
            "FIM_INIT_METHOD": job.work.rendezvous(job.attempt).as_uri(),
            "DS_ACCELERATOR": device,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // ranks))),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        commands.append(Command(rank_command(job.work.job), environment, logs[rank]))
    return Launch(commands, logs)


def hostfile_launch(job: Job) -> Launch:
    """DeepSpeed's launcher over the machines of a hostfile. The work folder must lie on a shared file system."""
    log = log_folder(job) / "launcher.log"
    return Launch([Command(hostfile_command(job), {}, log)], {})


def rank_command(job: Path) -> list[str]:
    """What each rank runs, given its RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    return [sys.executable, "-m", "fim_core.training.main", "--job", str(job)]


def hostfile_command(job: Job) -> list[str]:
    """The `deepspeed` command line for the experiment's hostfile.

    Raises:
        FimError: no such hostfile.
    """
    launcher = job.experiment.launcher
    hostfile = Path(launcher.hostfile or "")
    if not hostfile.is_file():
        raise FimError(f"launcher.hostfile: there is no file {hostfile}. It holds lines such as `worker-1 slots=8`.")
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--hostfile", str(hostfile.absolute())),
        *("--launcher", launcher.backend),
        *("--enable_each_rank_log", str(log_folder(job))),
    ]
    if launcher.num_processes is not None:
        command += ["--num_gpus", str(launcher.num_processes)]
    # One machine in the hostfile is still another machine.
    command += ["--force_multi", "--no_local_rank", "--module"]
    return [*command, "fim_core.training.main", "--job", str(job.work.job)]


def device_type() -> str:
    """`cuda` on a machine with NVIDIA GPUs, else `cpu`; $DS_ACCELERATOR overrules. Found without importing torch."""
    return os.environ.get("DS_ACCELERATOR") or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")


def log_folder(job: Job) -> Path:
    """Where ranks write their logs."""
    chosen = job.experiment.logger.output_dir
    return Path(chosen).absolute() if chosen else job.work.logs


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def exclusive(work: Work) -> Iterator[int]:
    """Hold the work folder's lock; yields its descriptor. The ranks inherit it, so that it is free only once the last
    rank of an earlier attempt is gone, whatever became of that attempt's launcher.

    Raises:
        FimError: another run trains in this folder.
    """
    work.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work.root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise FimError(f"Another run trains in {work.root}. Wait for it, or end it.") from error
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


class Watch:
    """Follows a running job: passes its events on, shows its logs, and finds failure, silence and lateness."""

    def __init__(self, job: Job, launch: Launch, group: ProcessGroup, on_event: OnEvent) -> None:
        self._job = job
        self._launch = launch
        self._group = group
        self._on_event = on_event
        self._events = EventTail(job.work.metrics, job.attempt)
        shown = job.experiment.logger.print_output_ranks
        ranks = launch.logs if shown == "all" else [rank for rank in shown if rank in launch.logs]
        self._logs = {rank: LineTail(log, from_end=True) for rank, log in launch.logs.items()}
        self._shown = set(ranks)
        self._began = self._alive = time.monotonic()
        self._beat: float | None = None

    def until_done(self) -> None:
        """Return when every rank has ended well.

        Raises:
            FimError, TrainingFailed: one has not.
        """
        while self._group.running and not self._group.failed():
            self._report()
            self._check_time()
            time.sleep(POLL_SECONDS)
        self._report()
        if failed := self._group.failed():
            # The first to break down takes others with it; give all a moment to write what they know.
            time.sleep(POLL_SECONDS)
            self._report()
            codes = {rank: self._group.processes[rank].returncode for rank in failed}
            raise failure_of(self._job, codes, self._launch)

    def _report(self) -> None:
        for event in self._events.read():
            self._on_event(event)
        for rank, log in self._logs.items():
            lines = log.read()
            if rank in self._shown and lines:
                print(*(f"[rank {rank}] {line}" for line in lines), sep="\n", file=sys.stderr, flush=True)

    def _check_time(self) -> None:
        now = time.monotonic()
        try:
            beat = self._job.work.heartbeat.stat().st_mtime
        except FileNotFoundError:
            beat = None
        if beat != self._beat:
            self._beat, self._alive = beat, now
        launcher = self._job.experiment.launcher
        if launcher.timeout_minutes is not None and now - self._began > launcher.timeout_minutes * 60:
            self._stop(f"Training took longer than launcher.timeout_minutes ({launcher.timeout_minutes:g}).")
        if now - self._alive > launcher.heartbeat_timeout_minutes * 60:
            self._stop(
                "Training has shown no sign of life for launcher.heartbeat_timeout_minutes "
                f"({launcher.heartbeat_timeout_minutes:g})."
            )

    def _stop(self, why: str) -> None:
        # The ranks answer with the stack of every thread (faulthandler).
        self._group.send(signal.SIGUSR1)
        time.sleep(1.0)
        standing = where_they_stand({rank: log.read() for rank, log in self._logs.items()})
        logs = " ".join(shlex.quote(str(log)) for log in self._launch.logs.values())
        raise TrainingFailed(f"{why} It resumes from its newest state.\n{standing}\nLogs: {logs}")
