"""What the agents of hosts and the process that follows them exchange: names of hosts, signs of life and reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fim_core.config.hostfile import Host

SIGN_SECONDS = 1.0


@dataclass(frozen=True)
class HostReport:
    """How the ranks of a host have ended.

    Attributes:
        ended: rank and exit code of each rank that ended with an error, without those that the agent ended.
        message: why the agent ends the ranks, if not for one of these; None also if it was asked to.
        user_error: whether the message is shown to users unchanged.
        complete: whether all ranks have ended without an error.
    """

    ended: list[tuple[int, int]]
    message: str | None
    user_error: bool
    complete: bool


def ranks_of(hosts: Sequence[Host], index: int) -> range:
    """The ranks of a host: they are numbered host by host."""
    first = sum(host.slots for host in hosts[:index])
    return range(first, first + hosts[index].slots)


def write_hosts(hosts: Sequence[Host]) -> str:
    """The hosts as an argument of the command line."""
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def read_hosts(argument: str) -> list[Host]:
    """Read what `write_hosts` wrote."""
    pairs = (word.rpartition(":") for word in argument.split(","))
    return [Host(name, int(slots)) for name, _, slots in pairs]


class SignOfLife:
    """The file by which the follower knows that this host runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._given = -SIGN_SECONDS

    def give(self) -> None:
        """Rewrite the file; may be called often, and writes every SIGN_SECONDS."""
        if time.monotonic() - self._given >= SIGN_SECONDS:
            self._count += 1
            self._given = time.monotonic()
            self._path.write_text(str(self._count), encoding="utf-8")

    def end(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
