"""Locks between processes (flock).

The kernel frees the lock of a process that dies. A process that inherits the descriptor holds the lock as well: so the
folder of a training run stays locked until its last rank is gone, whatever happens to the launcher. The library
filelock does not fit, as its descriptors are not inherited.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


def open_lock(path: Path) -> int:
    """Open a lock file, created if missing, and return its descriptor; does not follow a symbolic link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def acquire(descriptor: int, seconds: float = math.inf, on_wait: Callable[[], None] = lambda: None) -> None:
    """Take the lock, and wait while another process holds it.

    Args:
        seconds: maximum time to wait.
        on_wait: called once if the lock is held.

    Raises:
        TimeoutError: it is still locked after that time.
    """
    if try_acquire(descriptor):
        return
    on_wait()
    if math.isinf(seconds):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + seconds
    while not try_acquire(descriptor):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still locked after {seconds:g} s")
        time.sleep(_POLL_SECONDS)


def try_acquire(descriptor: int) -> bool:
    """Take the lock if it is free; returns whether it was."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, seconds: float = math.inf) -> Iterator[int]:
    """Hold the lock of a file; yields its descriptor.

    Raises:
        TimeoutError: another process holds it for all of `seconds`.
    """
    descriptor = open_lock(path)
    try:
        acquire(descriptor, seconds)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process on this machine holds the lock of a file; assumed if the file cannot be opened."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not try_acquire(descriptor)
    finally:
        os.close(descriptor)
