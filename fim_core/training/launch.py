"""Start the ranks of a training run, follow it, and leave nothing behind."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.config.training import HostfileLauncher
from fim_core.errors import FimError
from fim_core.training.job import Job, TrainResult, Work
from fim_core.training.processes import PARENT, Command
from fim_core.training.progress import progress_bar
from fim_core.training.ranks import HostfileRanks, LocalRanks, RunningRanks, Start
from fim_core.training.watch import POLL_SECONDS, OnEvent, follow

RENDEZVOUS_FILE = "FIM_RENDEZVOUS_FILE"
"""Names the file through which the ranks of one machine meet."""

LOCK = "lock"
LOCK_SECONDS = 20.0
MASTER_PORT = 29500
BACKEND_PROGRAMS = {"pdsh": "pdsh", "slurm": "sinfo", "openmpi": "ompi_info"}
"""The program of each backend of a hostfile launch that DeepSpeed looks for."""


def launch(
    experiment: Experiment,
    dataset: Path,
    tokenizer: Path,
    work: Path,
    *,
    on_event: OnEvent | None = None,
    provenance: Mapping[str, Any] | None = None,
    start: Start | None = None,
) -> TrainResult:
    """Train, and return when the model lies in `work/model`.

    However this function is left (an error, Ctrl-C, SIGKILL of this process), no rank survives: those of this machine
    are in a process group that dies with it, those of other machines end when nobody follows them. A second launch in
    the same folder resumes from the newest whole state.

    Args:
        dataset: folder of tokenize_prompts, with the splits train and eval.
        tokenizer: folder of the tokenizer that the rows were made with.
        work: the run's folder; kept between attempts.
        on_event: gets each event of the run as it happens, from this attempt's `start` on.
        provenance: what the model is made of (versions, digests), for its card.
        start: starts the ranks where the experiment's `launcher` says. Default: `start_ranks`.

    Raises:
        FimError: the mistake that a rank found, in its words; or `work` holds something else.
        TrainingFailed: a rank broke down, was killed, hung, or ran out of time.
    """
    require_work_folder(work)
    with exclusive(Work(work.absolute())) as lock:
        job = prepare_job(experiment, dataset, tokenizer, work, provenance)
        with progress_bar(experiment.name) as show:

            def pass_on(event: dict[str, Any]) -> None:
                show(event)
                if on_event is not None:
                    on_event(event)

            ranks = (start or start_ranks)(job, lock)
            try:
                follow(job, ranks, pass_on)
            finally:
                ranks.end()
        return TrainResult.read(job.work.result)


def require_work_folder(folder: Path) -> None:
    """Go on if a folder is free, or that of a training run.

    Raises:
        FimError: it holds something else.
    """
    work = Work(folder)
    holds = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # A kill may have left a job file half written.
    foreign = [name for name in holds if name != LOCK and not name.startswith(f".{work.job.name}-")]
    if foreign and not work.job.is_file():
        raise FimError(
            f"{folder} holds files, but no training run: {work.job.name} is missing. Give training a folder of its own."
        )


def start_ranks(job: Job, lock: int) -> RunningRanks:
    """Start the ranks of a job where its experiment says.

    Raises:
        FimError: that place needs Dagster, or something that is missing.
    """
    match job.experiment.launcher.type:
        case "local":
            return LocalRanks(job, local_commands(job), lock)
        case "hostfile":
            command = Command(hostfile_command(job), {"PYTHONSAFEPATH": "1"}, job.log_folder / "launcher.log")
            return HostfileRanks(job, command, lock)
        case "ray":
            from fim_core.training.ray_job import start_ray

            return start_ray(job)
        case "kubernetes":
            raise FimError(
                "`launcher.type: kubernetes` starts its Job from Dagster: materialize trained_checkpoint there."
            )


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


def local_commands(job: Job) -> list[Command]:
    """One process a rank on this machine. They find each other through a file, as a free port may be lost in a race."""
    device = device_type()
    ranks = job.experiment.launcher.num_processes or (_gpus() if device == "cuda" else 1)
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
            RENDEZVOUS_FILE: str(job.work.rendezvous(job.attempt)),
            "DS_ACCELERATOR": device,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // ranks))),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        commands.append(Command(rank_command(job.work.job), environment, job.log_folder / f"rank-{rank}.log"))
    return commands


def rank_command(job: Path) -> list[str]:
    """What each rank runs, given its RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    return [sys.executable, "-m", "fim_core.training.main", "--job", str(job)]


def hostfile_command(job: Job) -> list[str]:
    """The `deepspeed` command line for the experiment's hostfile. The work folder must be shared by its machines.

    Raises:
        FimError: no such hostfile, no machine in it, or the backend's program is not installed here.
    """
    launcher = job.experiment.launcher
    assert isinstance(launcher, HostfileLauncher)
    master = _first_host(Path(launcher.hostfile))
    program = BACKEND_PROGRAMS[launcher.backend]
    if shutil.which(program) is None:
        raise FimError(
            f"launcher.backend {launcher.backend}: the program {program} is not on this machine. Install "
            f"{launcher.backend}, or choose another backend ({', '.join(BACKEND_PROGRAMS)})."
        )
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--hostfile", str(Path(launcher.hostfile).absolute())),
        *("--launcher", launcher.backend),
        *("--enable_each_rank_log", str(job.log_folder)),
    ]
    # srun and mpirun write what all ranks say in one stream; with this, each line names its rank.
    marks = {"pdsh": "", "slurm": "--label", "openmpi": "--tag-output"}[launcher.backend]
    if arguments := f"{marks} {launcher.launcher_args}".strip():
        # With `=`, as the value begins with a dash.
        command.append(f"--launcher_args={arguments}")
    if launcher.backend != "pdsh":
        # These reach the machines by means of their own.
        command += ["--no_ssh_check", "--master_addr", master]
    if launcher.num_processes is not None:
        command += ["--num_gpus", str(launcher.num_processes)]
    # One machine in the hostfile is still another machine. A script, as DeepSpeed cannot have srun start a module.
    command += ["--force_multi", "--no_local_rank", str(Path(__file__).with_name("main.py"))]
    return [*command, "--job", str(job.work.job), "--rendezvous", f"{master}:{MASTER_PORT}"]


def _first_host(hostfile: Path) -> str:
    if not hostfile.is_file():
        raise FimError(f"launcher.hostfile: there is no file {hostfile}. It holds lines such as `worker-1 slots=8`.")
    lines = [line.split() for line in hostfile.read_text(encoding="utf-8").splitlines()]
    hosts = [words[0] for words in lines if words and not words[0].startswith("#")]
    if not hosts:
        raise FimError(f"launcher.hostfile: {hostfile} names no machine. It holds lines such as `worker-1 slots=8`.")
    return hosts[0]


def device_type() -> str:
    """`cuda` on a machine with NVIDIA GPUs, else `cpu`; $DS_ACCELERATOR overrules. Found without importing torch."""
    return os.environ.get("DS_ACCELERATOR") or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def exclusive(work: Work, name: str = LOCK, seconds: float | None = None) -> Iterator[int]:
    """Hold a lock of the work folder; yields its descriptor. The ranks inherit it, so that it is free only once the
    last rank of an earlier attempt is gone, whatever became of that attempt's launcher.

    Args:
        name: which lock; ranks on a cluster's machine have one of their own.
        seconds: how long to wait for it. Default: `LOCK_SECONDS`.

    Raises:
        FimError: another run trains in this folder.
    """
    work.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work.root / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + (LOCK_SECONDS if seconds is None else seconds)
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
