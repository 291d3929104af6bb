"""Launcher for the machines of a hostfile, through DeepSpeed (pdsh, Slurm or OpenMPI)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from fim_core.config.launchers import HostfileLauncher
from fim_core.errors import FimError
from fim_core.launchers.base import register
from fim_core.launchers.local import LocalRanks
from fim_core.process_group import Command
from fim_core.training.job import Job
from fim_core.training.lease import Lease

MASTER_PORT = 29500
BACKEND_PROGRAMS = {"pdsh": "pdsh", "slurm": "sinfo", "openmpi": "ompi_info"}
"""The program by which DeepSpeed finds out whether a backend is installed."""

_WORKER = Path(__file__).parents[1] / "training" / "worker.py"


@register("hostfile")
def start_hostfile(job: Job, lock: int, labels: Mapping[str, str]) -> HostfileRanks:
    """Start DeepSpeed's launcher, which starts the ranks."""
    command = Command(hostfile_command(job), {"PYTHONSAFEPATH": "1"}, job.log_folder / "launcher.log")
    return HostfileRanks(job, command, lock)


def hostfile_command(job: Job) -> list[str]:
    """The `deepspeed` command line for the experiment's hostfile, whose machines must share the work folder.

    Raises:
        FimError: the hostfile is missing or names no machine, or the backend's program is not installed here.
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
    # srun and mpirun merge the output of all ranks into one stream; these flags prefix each line with its rank.
    prefixes = {"pdsh": "", "slurm": "--label", "openmpi": "--tag-output"}[launcher.backend]
    if arguments := f"{prefixes} {launcher.launcher_args}".strip():
        # With `=`, as the value begins with a dash.
        command.append(f"--launcher_args={arguments}")
    if launcher.backend != "pdsh":
        # Slurm and OpenMPI have their own connections to the machines.
        command += ["--no_ssh_check", "--master_addr", master]
    if launcher.num_processes is not None:
        command += ["--num_gpus", str(launcher.num_processes)]
    # --force_multi: a single machine in the hostfile may still not be this one. The worker is given as a script, as
    # DeepSpeed cannot make srun start a module.
    command += ["--force_multi", "--no_local_rank", str(_WORKER)]
    return [*command, "--job", str(job.work.job), "--rendezvous", f"{master}:{MASTER_PORT}"]


def _first_host(hostfile: Path) -> str:
    if not hostfile.is_file():
        raise FimError(
            f"launcher.hostfile: {hostfile} does not exist. Create it with lines such as `worker-1 slots=8`."
        )
    lines = [line.split() for line in hostfile.read_text(encoding="utf-8").splitlines()]
    hosts = [words[0] for words in lines if words and not words[0].startswith("#")]
    if not hosts:
        raise FimError(f"launcher.hostfile: {hostfile} names no machine. Add lines such as `worker-1 slots=8`.")
    return hosts[0]


class HostfileRanks(LocalRanks):
    """DeepSpeed's launcher as a process of this machine, and its ranks on any machines.

    mpirun and srun put ranks into process groups of their own, even on this machine, so ranks are ended by the lease.
    """

    def __init__(self, job: Job, command: Command, lock: int) -> None:
        """Start the launcher."""
        self._lease = Lease(job)
        self._lease.renew()
        super().__init__(job, [command], lock, self._lease.renew)

    def _stack_report(self) -> str:
        """Empty, as the signal would kill DeepSpeed's launcher."""
        return ""

    def end(self) -> None:
        """End the ranks through their lease, and the launcher with its process group."""
        self._lease.end()
        super().end()
