"""Hostfiles: the machines of a run, as DeepSpeed and OpenMPI read them, and the nodes of a Slurm allocation."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fim_core.errors import FimError

_LINE = re.compile(r"(?P<name>\S+)\s+slots\s*=\s*(?P<slots>[1-9][0-9]*)")
_TASKS = re.compile(r"(?P<tasks>[0-9]+)(?:\(x(?P<nodes>[0-9]+)\))?")


@dataclass(frozen=True)
class Host:
    """A machine of a run.

    Attributes:
        name: by which the other machines reach it.
        slots: number of ranks on it.
    """

    name: str
    slots: int


def read_hostfile(path: Path, slots: int | None = None) -> list[Host]:
    """Read the machines of a hostfile, in order.

    Args:
        slots: ranks of every machine; None for those of the file.

    Raises:
        FimError: the file is missing, names no machine or one twice, or has a line of another format.
    """
    if not path.is_file():
        raise FimError(f"launcher.hostfile: {path} does not exist. Create it with lines such as `worker-1 slots=8`.")
    hosts: dict[str, Host] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise FimError(f"launcher.hostfile: line {number} of {path} is {text!r}; write it as `worker-1 slots=8`.")
        if match["name"] in hosts:
            raise FimError(f"launcher.hostfile: {path} names {match['name']} twice. Leave it once, with all its slots.")
        hosts[match["name"]] = Host(match["name"], slots or int(match["slots"]))
    if not hosts:
        raise FimError(f"launcher.hostfile: {path} names no machine. Add lines such as `worker-1 slots=8`.")
    return list(hosts.values())


def in_allocation() -> bool:
    """Whether this process runs inside a Slurm allocation, as under `sbatch` and `salloc`."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_JOB_NODELIST" in os.environ


def slots_of_allocation(slots: int | None = None) -> list[int]:
    """Ranks on each node of this process's Slurm allocation, in the order of the nodes.

    Args:
        slots: ranks of every node; None for the GPUs that the allocation has on each node, or else its tasks.
    """
    counts: list[int] = []
    for match in _TASKS.finditer(os.environ.get("SLURM_TASKS_PER_NODE", "1")):
        counts += [int(match["tasks"])] * int(match["nodes"] or 1)
    counts += counts[-1:] * (int(os.environ.get("SLURM_JOB_NUM_NODES", len(counts))) - len(counts))
    # Of the form `8` or `a100:8`.
    gpus = os.environ.get("SLURM_GPUS_ON_NODE") or os.environ.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2]
    every = slots or (int(gpus) if gpus.isdigit() else 0)
    return [every or count for count in counts]
