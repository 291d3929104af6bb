"""Program on each host of a run on several: starts the ranks of the host, watches them, and reports how they end.

    python -m fim_core.launchers.host_agent --job work/job.json --hosts worker-1:8,worker-2:8 --index 1

pdsh, Slurm and OpenMPI start one agent per host. The agent and the process that follows the run share the run's folder:
the follower renews the lease, without which the agent ends its ranks; the agent rewrites its sign of life, without which
the follower gives the host up.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from fim_core.atomic import write_json
from fim_core.config.hostfile import Host
from fim_core.errors import FimError
from fim_core.launchers.folder_lock import LOCK_SECONDS, lock_run_folder
from fim_core.launchers.host_records import HostReport, SignOfLife, ranks_of, read_hosts, write_hosts
from fim_core.launchers.local import LocalRanks, commands_of_one_of_several
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.lease import LEASE_SECONDS, LeaseCheck, LeaseEnded

POLL_SECONDS = 0.1


def index_of_node(hosts: Sequence[Host]) -> int:
    """The index of this node of Slurm among the hosts.

    Raises:
        FimError: Slurm's name of this node is not among them.
    """
    node = os.environ.get("SLURMD_NODENAME", "")
    for index, host in enumerate(hosts):
        if host.name == node:
            return index
    raise FimError(
        f"This node is {node!r} for Slurm, which is not a host of this run: {write_hosts(hosts)}. Use Slurm's names of "
        "nodes in launcher.hostfile."
    )


def run_ranks(job: Job, hosts: Sequence[Host], index: int) -> HostReport:
    """Run the ranks of this host until they end, one fails, or the lease expires; writes the report before it ends them."""
    sign, lease = SignOfLife(job.work.sign_of_life(job.attempt, index)), LeaseCheck(job)
    world_size = sum(host.slots for host in hosts)
    commands = commands_of_one_of_several(job, world_size, ranks_of(hosts, index), hosts[0].name)

    def check() -> None:
        sign.give()
        lease()

    # An earlier attempt whose follower has died sees that this one has begun, and ends.
    with lock_run_folder(job.work.host_lock(index), LEASE_SECONDS + LOCK_SECONDS) as lock:
        ranks = LocalRanks(job, commands, lock, check)
        report = HostReport([], None, False, complete=False)
        try:
            report = _watch(ranks)
        finally:
            write_json(job.work.host_report(job.attempt, index), asdict(report))
            ranks.end()
            sign.end()
    return report


def _watch(ranks: LocalRanks) -> HostReport:
    """Wait for the ranks of this host; returns how they ended."""
    try:
        while ranks.running:
            ranks.check()
            time.sleep(POLL_SECONDS)
    except LeaseEnded:
        return HostReport([], None, False, complete=False)
    except FimError as error:
        return HostReport([], str(error), not isinstance(error, TrainingFailed), complete=False)
    ended = [(rank.rank, rank.code) for rank in ranks.ended()]
    return HostReport(ended, None, False, complete=not ended)


def main() -> int:
    """Run this host's ranks. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--hosts", type=read_hosts, required=True, help="name:ranks of each host, joined by commas")
    parser.add_argument("--index", type=int, help="this host among them; default: by its name in Slurm")
    parser.add_argument("--directory", type=Path, required=True, help="base of relative paths, if it exists here")
    arguments = parser.parse_args()
    # Slurm and OpenMPI end their jobs by SIGTERM; raised as an exception, it lets the ranks be ended in order.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if arguments.directory.is_dir():
        os.chdir(arguments.directory)
    try:
        job = Job.read(arguments.job)
        index = index_of_node(arguments.hosts) if arguments.index is None else arguments.index
        return 0 if run_ranks(job, arguments.hosts, index).complete else 1
    except FileNotFoundError:
        message = f"{arguments.job} does not exist here. All hosts need the storage folder at the same path."
    except (OSError, FimError) as error:
        message = str(error)
    # The connection to the launcher may be gone.
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
