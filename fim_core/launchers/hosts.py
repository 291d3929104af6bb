"""Ranks on several hosts: the side that follows them.

A transport (pdsh, Slurm, OpenMPI) starts an agent on each host, which starts the host's ranks. How they end is known from
the agents' reports in the run's folder, so that it does not depend on the transport which rank failed first, and why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from fim_core.atomic import read_json_as
from fim_core.config.hostfile import Host
from fim_core.errors import DamagedFile, FimError
from fim_core.launchers.host_records import HostReport, ranks_of
from fim_core.process_group import Successor
from fim_core.training.failures import Ended, failure_of, user_error_of
from fim_core.training.job import Job, TrainingFailed
from fim_core.training.lease import ENDED, Lease

START_SECONDS = 120.0
"""Time that the agents have to start; Python is slow to load from a network file system."""
SETTLE_SECONDS = 2.0
"""Time that other hosts have to report after the first failure: the first to be seen may be a consequence."""
QUIET_SECONDS = 5.0
"""A host that has shown no sign of life for this long may be lost."""
END_SECONDS = 10.0
"""Time that the hosts have to end their ranks."""

_END_LEASE = 'case "$(cat "$1")" in "$2 "*) printf %s "$3" > "$1" ;; esac; shift 3; [ $# = 0 ] || exec "$@"'
"""Ends the lease $1 of attempt $2 by writing $3 to it, unless a newer attempt holds it, and runs the rest of the arguments."""


class Transport(Protocol):
    """What starts the agents and connects them to this process."""

    name: str
    """Name for messages, such as `pdsh` or `Slurm job 12`."""

    @property
    def started(self) -> bool:
        """Whether the hosts are expected to run; false while they are queued for."""

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error, for at least one host."""

    @property
    def failed_hosts(self) -> Sequence[int]:
        """For which hosts it has failed, by their index; empty if that is not known."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""

    def check(self) -> None:
        """Check on it; called several times a second.

        Raises:
            FimError: the hosts will not be started.
        """

    def output(self) -> str:
        """The end of its output, and how it ended."""

    def end(self) -> None:
        """End it; returns when nothing is left of it on this machine, and no host is reserved."""


@dataclass
class _HostWatch:
    """What is known of a host: its last sign of life, how long ago it was in seconds, and its report."""

    sign: str | None = None
    quiet: float = 0.0
    present: bool = False
    report: HostReport | None = None


class HostRanks:
    """The ranks on several hosts."""

    def __init__(
        self,
        job: Job,
        hosts: Sequence[Host],
        start: Callable[[], Transport],
        timeout: float,
        on_death: Sequence[str] = (),
    ) -> None:
        """Start the agents.

        Args:
            start: starts the transport.
            timeout: seconds without a sign of life after which a host is lost.
            on_death: command that is run if this process dies.
        """
        self._job, self._hosts, self._timeout = job, hosts, timeout
        self._watches = [_HostWatch() for _ in hosts]
        self._folder = job.work.sign_of_life(job.attempt, 0).parent
        self._folder.mkdir(parents=True, exist_ok=True)
        self._waited = 0.0
        self._failed_at: float | None = None
        self._updated = time.monotonic()
        self._lease = Lease(job)
        self._lease.renew()
        self._successor = Successor(_END_LEASE, str(job.work.lease), job.attempt, ENDED, *on_death)
        try:
            self._transport = start()
        except BaseException:
            self._successor.dismiss()
            raise

    @property
    def running(self) -> bool:
        """Whether to keep waiting: false once all have ended, or one has failed and the others had time to say why."""
        self._update()
        now = time.monotonic()
        if self._failed_at is None and (
            self._transport.failed or self._lost() or self._unstarted() or self._reported_failure()
        ):
            self._failed_at = now
        if self._failed_at is None:
            return not self._transport.ended
        if self._lost() or self._unstarted() or all(watch.report is not None for watch in self._watches):
            return False
        # A host that has just fallen silent may be the cause: it will have been lost soon, or show a sign of life.
        silent = any(watch.sign and watch.report is None and watch.quiet > SETTLE_SECONDS for watch in self._watches)
        doubtful = silent and not self._refused()
        return now - self._failed_at < (self._timeout + SETTLE_SECONDS if doubtful else SETTLE_SECONDS)

    def check(self) -> None:
        """Renew the lease. The time limits of the run are checked by the agents.

        Raises:
            FimError: the hosts will not be started.
        """
        self._lease.renew()
        self._transport.check()

    def failure(self) -> FimError | None:
        """The error of a run that failed; None if all ranks have ended without one."""
        if (user_error := user_error_of(self._job)) is not None:
            return user_error
        if self._refused() and not any(watch.report and watch.report.ended for watch in self._watches):
            return self._failure_of_transport()
        if lost := self._lost():
            hosts = "; ".join(f"{self._hosts[index].name} ({_span(self._hosts, index)})" for index in lost)
            return TrainingFailed(
                f"Lost {hosts}: no sign of life for {max(self._watches[index].quiet for index in lost):.0f} seconds. The "
                "machine is down, or cut off from the storage folder; launcher.host_timeout_seconds sets how long to wait."
            )
        reports = [(index, watch.report) for index, watch in enumerate(self._watches) if watch.report is not None]
        ended = [
            Ended(rank, code, self._job.log_folder / f"rank-{rank}.log", self._hosts[index].name)
            for index, report in reports
            for rank, code in report.ended
        ]
        if ended:
            return failure_of(self._job, ended)
        if messages := [report for _, report in reports if report.message]:
            kind = FimError if any(report.user_error for report in messages) else TrainingFailed
            return kind("\n".join(dict.fromkeys(str(report.message) for report in messages)))
        if self._transport.failed or not all(watch.report and watch.report.complete for watch in self._watches):
            return self._failure_of_transport()
        return None

    def _failure_of_transport(self) -> FimError:
        """The error of a run of which some hosts have not reported."""
        indices = self._transport.failed_hosts or range(len(self._hosts))
        silent = [index for index in indices if self._watches[index].sign is None]
        missing = silent or [index for index in indices if self._watches[index].report is None]
        names = ", ".join(self._hosts[index].name for index in missing)
        ended = self._transport.ended or self._transport.failed
        when = f"{self._transport.name} has ended" if ended else f"{START_SECONDS:g} seconds have passed"
        # Without either, the agents were ended before their ranks, as by Slurm's time limit.
        what = f"No answer from {names}" if silent else f"No report from {names}" if missing else "The run was ended"
        return TrainingFailed(f"{what}: {when}.\n{self._transport.output()}")

    def end(self) -> None:
        """End the ranks through their lease, then the transport."""
        self._lease.end()
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            self._update()
            alive = any(watch.present and watch.quiet < QUIET_SECONDS for watch in self._watches)
            silent = any(watch.present and watch.quiet >= QUIET_SECONDS for watch in self._watches)
            # The transport waits for a host that has fallen silent, and may not wait for agents that it has terminated.
            if not alive and (silent or self._transport.ended or not self._transport.started):
                break
            time.sleep(0.05)
        self._transport.end()
        self._successor.dismiss()
        self._job.work.rendezvous(self._job.attempt).unlink(missing_ok=True)
        for path in self._folder.glob(f"{self._job.attempt}-*"):
            path.unlink(missing_ok=True)

    def _update(self) -> None:
        """Read signs of life and reports."""
        now = time.monotonic()
        # A pause of this process, as when the file system hangs, is not counted as silence of the hosts.
        passed, self._updated = min(now - self._updated, 1.0), now
        self._waited += passed if self._transport.started else 0.0
        present = set(os.listdir(self._folder))
        for index, watch in enumerate(self._watches):
            sign, report = (
                path(self._job.attempt, index) for path in (self._job.work.sign_of_life, self._job.work.host_report)
            )
            watch.present = sign.name in present
            if watch.report is None and report.name in present:
                with suppress(FileNotFoundError, DamagedFile):
                    watch.report = read_json_as(report, HostReport)
            content = ""
            with suppress(FileNotFoundError):
                content = sign.read_text(encoding="utf-8") if watch.present else ""
            # Empty for a moment while it is rewritten.
            changed = content not in ("", watch.sign)
            watch.sign = content if changed else watch.sign
            watch.quiet = 0.0 if changed or watch.sign is None else watch.quiet + passed

    def _lost(self) -> list[int]:
        """Hosts that have fallen silent, by their index."""
        watches = enumerate(self._watches)
        return [index for index, watch in watches if watch.report is None and watch.quiet > self._timeout]

    def _refused(self) -> bool:
        """Whether the transport has failed to start an agent; it may have killed those that it had started."""
        return self._transport.failed and any(watch.sign is None for watch in self._watches)

    def _unstarted(self) -> bool:
        """Whether the agent of a host has not started in time."""
        return self._waited > START_SECONDS and any(watch.sign is None for watch in self._watches)

    def _reported_failure(self) -> bool:
        return any(watch.report is not None and not watch.report.complete for watch in self._watches)


def _span(hosts: Sequence[Host], index: int) -> str:
    ranks = ranks_of(hosts, index)
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
