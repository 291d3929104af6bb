"""Leases of ranks on other machines, which end when the process that started them no longer renews the lease.

The follower (the process that started the ranks) rewrites a file in the run's shared folder; the ranks watch that its
content keeps changing. The clocks of the two machines are never compared.
"""

from __future__ import annotations

import time

from fim_core.training.job import Job, TrainingFailed

RENEW_SECONDS = 5.0
CHECK_SECONDS = 1.0
LEASE_SECONDS = 60.0
ENDED = "ended"


class Lease:
    """The side of the follower, which holds the lease."""

    def __init__(self, job: Job) -> None:
        self._path = job.work.lease
        self._attempt = job.attempt
        self._count = 0
        self._renewed = -RENEW_SECONDS

    def renew(self) -> None:
        """Renew the lease; may be called often, and writes every RENEW_SECONDS."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._count += 1
            self._renewed = time.monotonic()
            self._path.write_text(f"{self._attempt} {self._count}\n", encoding="utf-8")

    def end(self) -> None:
        """End the lease, so that the ranks end now."""
        self._path.write_text(ENDED, encoding="utf-8")


class LeaseEnded(TrainingFailed):
    """The lease has expired or was ended, or a newer attempt has begun."""


class LeaseCheck:
    """The side of the ranks."""

    def __init__(self, job: Job) -> None:
        self._path = job.work.lease
        self._attempt = job.attempt
        self._content = ""
        self._changed = self._checked = time.monotonic()

    def __call__(self) -> None:
        """Check that the lease of this attempt is being renewed.

        Raises:
            LeaseEnded: it is not.
        """
        now = time.monotonic()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        try:
            content = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            content = ""
        # The file is empty for a moment while it is being written.
        if content and content != self._content:
            self._content, self._changed = content, now
        if self._content and self._content.split()[0] != self._attempt:
            why = "It was ended." if self._content == ENDED else "A newer attempt at this run has begun."
            raise LeaseEnded(why)
        if now - self._changed > LEASE_SECONDS:
            raise LeaseEnded(f"The process that started this run has not been seen for {LEASE_SECONDS:g} seconds.")
