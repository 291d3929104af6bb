"""Hosts reached by OpenMPI's mpirun. Ranks do not use MPI to communicate."""

from __future__ import annotations

from collections.abc import Sequence

from fim_core.config.hostfile import Host
from fim_core.launchers.commands import SSH_OPTIONS, Commands, agent_command
from fim_core.process_group import Command
from fim_core.training.job import Job


def mpirun_command(job: Job, hosts: Sequence[Host], arguments: Sequence[str]) -> Command:
    """One mpirun, in which each host has a part of its own, so that its index does not depend on how OpenMPI sorts hosts."""
    # Without binding, as it would leave all ranks of a host the core of the agent.
    argv = ["mpirun", "--bind-to", "none", "--mca", "plm_rsh_args", SSH_OPTIONS, *arguments]
    for index, host in enumerate(hosts):
        argv += [*([":"] if index else []), "--host", f"{host.name}:1", "-n", "1", *agent_command(job, hosts, index)]
    return Command(argv, {}, job.log_folder / "launcher.log")


def start_mpirun(job: Job, hosts: Sequence[Host], arguments: Sequence[str], lock: int) -> Commands:
    """Start the agents by mpirun."""
    return Commands("mpirun", [mpirun_command(job, hosts, arguments)], lock)
