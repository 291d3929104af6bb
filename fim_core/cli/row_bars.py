"""Progress of an evaluation: bars for a terminal, lines for a log."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from tqdm import tqdm


class RowBars:
    """Draws `RowProgress` events on standard error, one bar per model and task."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._shown = ""

    def show(self, event: dict[str, Any]) -> None:
        """Update the bar, or start another for a new model or task."""
        title = f"{event['model']}, {event['task']}"
        if self._bar is None or title != self._shown:
            self.close()
            self._bar, self._shown = tqdm(desc=title, total=event["total"], unit="row", file=sys.stderr), title
        self._bar.update(event["done"] - self._bar.n)
        if event["done"] == event["total"]:
            self.close()

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def rows_line(event: dict[str, Any]) -> str:
    """Format a `RowProgress` event as one log line."""
    left = event["seconds_left"]
    time_left = "" if left is None else f", {timedelta(seconds=round(left))} left"
    done = f"{event['done']:,} of {event['total']:,} rows"
    return f"{event['model']}, {event['task']}: {done}, {event['rows_per_second']:,.1f} rows/s{time_left}"
