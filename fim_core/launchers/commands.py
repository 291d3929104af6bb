"""Transports that are processes of this machine: pdsh, mpirun, and srun inside an allocation."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fim_core.config.hostfile import Host
from fim_core.launchers.host_records import write_hosts
from fim_core.process_group import Command, ProcessGroup
from fim_core.training.failures import TRACEBACK_LINES
from fim_core.training.job import Job
from fim_core.training.log_tail import LineTail

CONNECT_SECONDS = 8
"""Time that ssh has to connect to a host."""
SSH_OPTIONS = f"-o BatchMode=yes -o ConnectTimeout={CONNECT_SECONDS}"

AGENT = ["-m", "fim_core.launchers.host_agent"]
"""Arguments of the interpreter that start an agent."""

FORWARDED = (
    *("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "NCCL_", "GLOO_", "UCX_", "MLFLOW"),
    *("TORCH", "PYTORCH_", "CUDA_LAUNCH_", "CUBLAS_", "TRITON_", "HF_", "TRANSFORMERS_", "TOKENIZERS_"),
)
"""Variables of the environment, by the beginning of their names, that every host gets."""
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""Endings of the names of variables that are not given to the hosts."""


def agent_command(job: Job, hosts: Sequence[Host], index: int | None) -> list[str]:
    """The command line of the agent of a host.

    Args:
        index: of the host; None for the agent to find out by its name in Slurm.
    """
    variables = [f"{name}={value}" for name, value in sorted(forwarded_environment(os.environ).items())]
    agent = [sys.executable, *AGENT, "--job", str(job.work.job)]
    place = ["--hosts", write_hosts(hosts), "--directory", os.getcwd()]
    # Slurm hands on the whole environment, but each host knows its own devices.
    return [
        "env",
        "-u",
        "DS_ACCELERATOR",
        *variables,
        *agent,
        *place,
        *([] if index is None else ["--index", str(index)]),
    ]


def forwarded_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that every host gets: those of FORWARDED, without secrets, and those of DeepSpeed's environment file.

    They become part of a command line, which every user of a machine can read. DeepSpeed's file has lines NAME=VALUE; it is
    `$DS_ENV_FILE`, or `.deepspeed_env`, in the home folder or in the current one.
    """
    chosen = {
        name: value for name, value in environment.items() if name.startswith(FORWARDED) and not name.endswith(_SECRET)
    }
    # The package is not to be taken from the current folder by accident.
    chosen["PYTHONSAFEPATH"] = "1"
    for folder in (Path.home(), Path()):
        file = folder / environment.get("DS_ENV_FILE", ".deepspeed_env")
        if file.is_file():
            lines = (line.partition("=") for line in file.read_text(encoding="utf-8").splitlines())
            chosen |= {name.strip(): value.strip() for name, sign, value in lines if sign}
    return chosen


class Commands:
    """Processes that start the agents, one for all hosts or one for each."""

    started = True

    def __init__(self, name: str, commands: Sequence[Command], lock: int) -> None:
        """Start them.

        Args:
            lock: descriptor that every process inherits.
        """
        self.name = name
        self._commands = commands
        self._logs = {command.log: LineTail(command.log, from_end=True) for command in commands}
        self._lines: list[str] = []
        self._group = ProcessGroup(commands, keep_open=[lock])

    @property
    def failed(self) -> bool:
        """Whether one has ended with an error."""
        return bool(self._group.failed())

    @property
    def failed_hosts(self) -> list[int]:
        """The hosts whose process has ended with an error, if each host has its own."""
        return self._group.failed() if len(self._commands) > 1 else []

    @property
    def ended(self) -> bool:
        """Whether all have ended."""
        return not self._group.running

    def check(self) -> None:
        """Nothing to check: how they end is known from their exit codes."""

    def output(self) -> str:
        """Exit codes, and the last lines of their output."""
        for log in self._logs.values():
            self._lines += log.read()
        codes = [
            f"`{shlex.join(self._commands[index].argv[:4])} …` ended with exit code {self._group.processes[index].returncode}."
            for index in self._group.failed()
        ]
        return "\n".join([*codes, *self._lines[-TRACEBACK_LINES:]])

    def end(self) -> None:
        """End them."""
        self._group.end()
