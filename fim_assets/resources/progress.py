"""The progress of training and evaluation, live in the Dagster run."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg

LIVE_METRICS = ("loss", "lr", "grad_norm", "rows_per_second", "tokens_per_second", "mfu", "memory_bytes")


class LiveProgress:
    """Writes events of training and evaluation to the run's log, and as observations that the UI plots while it runs.

    Steps and rows are thinned to one observation every `seconds_between`; other events always show, and so does the last
    row of a task.
    """

    def __init__(self, context: dg.AssetExecutionContext, seconds_between: float = 5.0) -> None:
        self._context = context
        self._seconds_between = seconds_between
        self._last_shown = -seconds_between

    def __call__(self, event: dict[str, Any]) -> None:
        """Log an event, and observe its numbers."""
        now = time.monotonic()
        kind = event["event"]
        ends_task = kind == "rows" and event["done"] == event["total"]
        if kind in {"step", "rows"} and not ends_task:
            if now - self._last_shown < self._seconds_between:
                return
            self._last_shown = now
        shown = ("step", *LIVE_METRICS) if kind == "step" else [key for key in event if key != "event"]
        details = ", ".join(f"{key} {_short(event[key])}" for key in shown if event.get(key) is not None)
        log = self._context.log.warning if kind == "warning" else self._context.log.info
        log(f"{kind}: {details}")
        metrics = {key: event[key] for key in ("step", *LIVE_METRICS) if isinstance(event.get(key), int | float)}
        if kind == "eval" and "loss" in metrics:
            metrics["held_out_loss"] = metrics.pop("loss")
        if kind == "rows":
            metrics["rows_done"] = event["done"]
        if kind in {"step", "eval", "rows"} and metrics:
            self._context.log_event(dg.AssetObservation(asset_key=self._context.asset_key, metadata=metrics))


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
