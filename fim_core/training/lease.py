"""Ranks on other machines end when nobody follows them any more, however whoever started them died.

The follower renews a file in the run's shared folder; on the other side its content must keep changing. Nothing is
compared between the clocks of two machines.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from fim_core.training.job import Job, TrainingFailed

RENEW_SECONDS = 5.0
LOOK_SECONDS = 1.0
LEASE_SECONDS = 60.0
ENDED = "ended"


class Lease:
    """The follower's side."""

    def __init__(self, job: Job) -> None:
        self._path = job.work.lease
        self._attempt = job.attempt
        self._count = 0
        self._renewed = -RENEW_SECONDS

    def renew(self) -> None:
        """Show that someone follows; called often, writes now and then."""
        if time.monotonic() - self._renewed >= RENEW_SECONDS:
            self._count += 1
            self._renewed = time.monotonic()
            self._path.write_text(f"{self._attempt} {self._count}\n", encoding="utf-8")

    def end(self) -> None:
        """Have the ranks end now."""
        self._path.write_text(ENDED, encoding="utf-8")


class LeaseCheck:
    """The side of the ranks."""

    def __init__(self, job: Job) -> None:
        self._path = job.work.lease
        self._attempt = job.attempt
        self._content = ""
        self._changed = self._looked = time.monotonic()

    def __call__(self) -> None:
        """Look whether someone follows this attempt.

        Raises:
            TrainingFailed: nobody has for a while, or a newer attempt has begun.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            content = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            content = ""
        # Empty is a file that is just being written.
        if content and content != self._content:
            self._content, self._changed = content, now
        if self._content and self._content.split()[0] != self._attempt:
            why = "It was ended." if self._content == ENDED else "A newer attempt at this run has begun."
            raise TrainingFailed(why)
        if now - self._changed > LEASE_SECONDS:
            raise TrainingFailed(f"Whoever started this run has not been seen for {LEASE_SECONDS:g} seconds.")


def die_without_follower(job: Job) -> None:
    """End this process, from a thread of its own, once nobody follows the run."""
    check = LeaseCheck(job)

    def watch() -> None:
        try:
            while True:
                check()
                time.sleep(LOOK_SECONDS)
        except TrainingFailed as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=watch, name="lease", daemon=True).start()
