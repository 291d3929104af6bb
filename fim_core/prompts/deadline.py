"""Time limits for chat templates, which may loop without end.

One thread watches all threads with a limit and raises an exception in those that exceed it. Python raises it between two
bytecode instructions, so a loop ends at once, but a call into C only when it returns.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_INTERVAL_S = 0.2


class OutOfTimeError(Exception):
    """The time limit was exceeded."""


class _Watch:
    def __init__(self) -> None:
        self._reset()
        # After a fork, the child has no watching thread, and the lock may be held.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        thread = threading.get_ident()
        with self._lock:
            self._deadlines[thread] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="time limits", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._deadlines.pop(thread, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_INTERVAL_S)
            with self._lock:
                for thread, deadline in list(self._deadlines.items()):
                    if time.monotonic() > deadline:
                        del self._deadlines[thread]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(OutOfTimeError)
                        )


_WATCH = _Watch()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the block when the limit is exceeded. Limits cannot be nested."""
    with _WATCH.limit(seconds):
        yield
