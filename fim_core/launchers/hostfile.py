"""Ranks on the machines of a hostfile, started by DeepSpeed's launchers: pdsh, Slurm, OpenMPI."""

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
"""The program of each backend of a hostfile launch that DeepSpeed looks for."""

_WORKER = Path(__file__).parents[1] / "training" / "worker.py"


@register("hostfile")
def start_hostfile(job: Job, lock: int, labels: Mapping[str, str]) -> HostfileRanks:
    """Start DeepSpeed's launcher, which starts the ranks."""
    command = Command(hostfile_command(job), {"PYTHONSAFEPATH": "1"}, job.log_folder / "launcher.log")
    return HostfileRanks(job, command, lock)


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
    command += ["--force_multi", "--no_local_rank", str(_WORKER)]
    return [*command, "--job", str(job.work.job), "--rendezvous", f"{master}:{MASTER_PORT}"]


def _first_host(hostfile: Path) -> str:
    if not hostfile.is_file():
        raise FimError(f"launcher.hostfile: there is no file {hostfile}. It holds lines such as `worker-1 slots=8`.")
    lines = [line.split() for line in hostfile.read_text(encoding="utf-8").splitlines()]
    hosts = [words[0] for words in lines if words and not words[0].startswith("#")]
    if not hosts:
        raise FimError(f"launcher.hostfile: {hostfile} names no machine. It holds lines such as `worker-1 slots=8`.")
    return hosts[0]


class HostfileRanks(LocalRanks):
    """A launcher of DeepSpeed on this machine, whose ranks may be on others.

    mpirun and srun give their ranks process groups of their own, even here; it is the lease that reaches all of them.
    """

    def __init__(self, job: Job, command: Command, lock: int) -> None:
        """Start the launcher."""
        self._lease = Lease(job)
        self._lease.renew()
        super().__init__(job, [command], lock, self._lease.renew)

    def _standing(self) -> str:
        """Nothing: a launcher of DeepSpeed would die of the signal."""
        return ""

    def end(self) -> None:
        """End the ranks by their lease, and the launcher's process group."""
        self._lease.end()
        super().end()
