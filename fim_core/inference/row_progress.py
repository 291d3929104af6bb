"""Progress events of an evaluation, in rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

OnEvent = Callable[[dict[str, Any]], None]
Advance = Callable[[int], None]


class RowProgress:
    """Reports how many rows one model has processed in each task.

    Each event is `{"event": "rows", "model": …, "task": …, "done": …, "total": …, "rows_per_second": …,
    "seconds_left": …}`; `seconds_left` is None until a row is done. Events are not rate-limited; the
    display drops what it does not need.

    Args:
        on_event: receives the events.
        model: name of the model in the report.
    """

    def __init__(self, on_event: OnEvent = lambda event: None, model: str = "model") -> None:
        self._on_event = on_event
        self._model = model

    def start(self, task: str, total: int) -> Advance:
        """Begin a task of `total` rows; returns a function to call with the number of rows that have just been processed."""
        done, began = 0, time.monotonic()

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            seconds = time.monotonic() - began
            self._on_event(
                {
                    "event": "rows",
                    "model": self._model,
                    "task": task,
                    "done": done,
                    "total": total,
                    "rows_per_second": done / seconds if seconds else 0.0,
                    "seconds_left": seconds / done * (total - done) if done else None,
                }
            )

        advance(0)
        return advance
