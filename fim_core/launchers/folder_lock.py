"""Lock of a training run's folder, held by its launcher and by every rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fim_core.errors import FimError
from fim_core.locks import acquire, open_lock

LOCK_SECONDS = 20.0


@contextmanager
def lock_run_folder(file: Path, seconds: float | None = None) -> Iterator[int]:
    """Hold a lock of the run's folder; yields its descriptor.

    Ranks inherit the descriptor, so the lock is free only when the last rank of an earlier attempt is gone.

    Args:
        file: the lock file.
        seconds: how long to wait for the lock. Default: `LOCK_SECONDS`.

    Raises:
        FimError: another run trains in this folder.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(file)
    try:
        try:
            acquire(descriptor, LOCK_SECONDS if seconds is None else seconds)
        except TimeoutError as error:
            raise FimError(f"Another run trains in {file.parent}. Wait for it, or end it.") from error
        yield descriptor
    finally:
        os.close(descriptor)
