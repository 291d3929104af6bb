"""The part of a run that one machine of a cluster does, where the run has several."""

from __future__ import annotations

from dataclasses import dataclass

from fim_core.launchers.local import commands_of_one_of_several, local_commands, ranks_here
from fim_core.process_group import Command
from fim_core.training.job import Job


@dataclass(frozen=True)
class Node:
    """One of the machines of a run; all have the same number of ranks.

    Attributes:
        index: from 0.
        count: number of machines.
        first_host: name of the machine with index 0, where the ranks meet; empty for a single machine.
    """

    index: int = 0
    count: int = 1
    first_host: str = ""

    def commands(self, job: Job) -> list[Command]:
        """The commands of this machine's ranks, which are numbered through all machines."""
        if self.count == 1:
            return local_commands(job)
        here = ranks_here(job)
        ranks = range(self.index * here, (self.index + 1) * here)
        return commands_of_one_of_several(job, self.count * here, ranks, self.first_host)
