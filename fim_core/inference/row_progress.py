"""How many of the held-out rows an evaluation has behind it, as events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

OnEvent = Callable[[dict[str, Any]], None]
Advance = Callable[[int], None]


class RowProgress:
    """Reports the rows that one model has behind it, task by task.

    Each event is `{"event": "rows", "model": …, "task": …, "done": …, "total": …, "rows_per_second": …,
    "seconds_left": …}`; `seconds_left` is None until a row is done. Whoever shows them thins them out.

    Args:
        on_event: gets the events.
        model: the model's name in the report.
    """

    def __init__(self, on_event: OnEvent = lambda event: None, model: str = "model") -> None:
        self._on_event = on_event
        self._model = model

    def start(self, task: str, total: int) -> Advance:
        """Begin a task of so many rows; returns a function that takes the number of rows that have just been done."""
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
