"""Launcher for the machines of a hostfile or of a Slurm allocation, through pdsh, Slurm or OpenMPI."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fim_core.config.hostfile import Host, in_allocation, read_hostfile
from fim_core.config.launchers import HostfileLauncher
from fim_core.errors import FimError
from fim_core.launchers import slurm
from fim_core.launchers.base import register
from fim_core.launchers.hosts import HostRanks, Transport
from fim_core.launchers.openmpi import start_mpirun
from fim_core.launchers.pdsh import start_pdsh
from fim_core.training.job import Job

PROGRAMS = {"pdsh": "pdsh", "slurm": "sbatch", "openmpi": "mpirun"}
"""The program that starts the agents, by backend."""


@register("hostfile")
def start_hostfile(job: Job, lock: int, labels: Mapping[str, str]) -> HostRanks:
    """Start an agent on each host, which starts the ranks.

    Raises:
        FimError: the hosts are not known, the backend's program is not installed here, or Slurm refuses the job.
    """
    launcher = job.experiment.launcher
    assert isinstance(launcher, HostfileLauncher)
    _require_program(launcher.backend)
    hosts = hosts_of(launcher)
    arguments = shlex.split(launcher.launcher_args)
    on_death: list[str] = []
    start: Callable[[], Transport]
    if launcher.backend == "pdsh":
        start = partial(start_pdsh, job, hosts, arguments, lock)
    elif launcher.backend == "openmpi":
        start = partial(start_mpirun, job, hosts, arguments, lock)
    elif in_allocation():
        start = partial(slurm.start_step, job, hosts, arguments, lock)
    else:
        slurm.cancel_earlier(job.work)
        start = partial(slurm.BatchJob, job, hosts, arguments)
        on_death = slurm.cancel_command(slurm.job_name(job))
    return HostRanks(job, hosts, start, launcher.host_timeout_seconds, on_death)


def hosts_of(launcher: HostfileLauncher) -> list[Host]:
    """The hosts of a run, in the order of their ranks.

    Raises:
        FimError: they are not known, or are not those of the allocation that this process is in.
    """
    if launcher.hostfile is None:
        if not in_allocation():
            raise FimError(
                "launcher.hostfile is missing, and this is no Slurm allocation. Name a hostfile, or start the run by sbatch or "
                "salloc, which choose the nodes."
            )
        return slurm.hosts_of_allocation(launcher.num_processes)
    hosts = read_hostfile(Path(launcher.hostfile), launcher.num_processes)
    if launcher.backend == "slurm" and in_allocation():
        slurm.require_in_allocation(hosts)
    return hosts


def _require_program(backend: str) -> None:
    if shutil.which(PROGRAMS[backend]) is None:
        raise FimError(
            f"launcher.backend {backend}: the program {PROGRAMS[backend]} is not on this machine. Install {backend}, or choose "
            f"another backend ({', '.join(PROGRAMS)})."
        )
