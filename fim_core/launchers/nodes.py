"""The part of a run that one machine of a cluster does, where the run has several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fim_core.process_group import Command
from fim_core.training.job import RENDEZVOUS_FILE

_OF_ONE_MACHINE = {RENDEZVOUS_FILE, "GLOO_SOCKET_IFNAME"}


@dataclass(frozen=True)
class Node:
    """One of the machines of a run; all have the same number of ranks.

    Attributes:
        index: from 0.
        count: number of machines.
        rendezvous: `host:port` at which the ranks meet, on the machine with index 0; empty for a single machine.
    """

    index: int = 0
    count: int = 1
    rendezvous: str = ""

    def commands(self, local: Sequence[Command]) -> list[Command]:
        """The commands of this machine's ranks, numbered through all machines.

        Args:
            local: those of a run on this machine alone.
        """
        if self.count == 1:
            return list(local)
        host, _, port = self.rendezvous.rpartition(":")
        commands = []
        for local_rank, command in enumerate(local):
            rank = self.index * len(local) + local_rank
            kept = {name: value for name, value in command.environment.items() if name not in _OF_ONE_MACHINE}
            own = {"RANK": f"{rank}", "WORLD_SIZE": f"{self.count * len(local)}"}
            place = {"MASTER_ADDR": host, "MASTER_PORT": port}
            log = command.log.with_name(f"rank-{rank}.log")
            commands.append(replace(command, environment=kept | own | place, log=log))
        return commands
