"""Hosts reached by pdsh, that is, by ssh."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from fim_core.config.hostfile import Host
from fim_core.launchers.commands import SSH_OPTIONS, Commands, agent_command
from fim_core.process_group import Command
from fim_core.training.job import Job


def pdsh_commands(job: Job, hosts: Sequence[Host], arguments: Sequence[str]) -> list[Command]:
    """One pdsh per host, whose end tells which host cannot be reached: one for all would wait for the others."""
    environment = {
        "PDSH_RCMD_TYPE": os.environ.get("PDSH_RCMD_TYPE", "ssh"),
        "PDSH_SSH_ARGS_APPEND": f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {SSH_OPTIONS}".strip(),
    }
    commands = []
    for index, host in enumerate(hosts):
        # pdsh replaces %h, %u and %n.
        remote = shlex.join(agent_command(job, hosts, index)).replace("%", "%%")
        argv = ["pdsh", "-S", "-w", host.name, *arguments, f"exec {remote}"]
        commands.append(Command(argv, environment, job.log_folder / "launcher.log"))
    return commands


def start_pdsh(job: Job, hosts: Sequence[Host], arguments: Sequence[str], lock: int) -> Commands:
    """Start the agents by pdsh."""
    return Commands("pdsh", pdsh_commands(job, hosts, arguments), lock)
