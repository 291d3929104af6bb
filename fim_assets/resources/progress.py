"""Live progress of training and evaluation in the Dagster run."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg

LIVE_METRICS = ("loss", "lr", "grad_norm", "rows_per_second", "tokens_per_second", "mfu", "memory_bytes")


class LiveProgress:
    """Writes events of training and evaluation to the run's log and as asset observations, which the UI plots live.

    Events `step` and `rows` are limited to one observation per `seconds_between` and one log line per
    `seconds_between_lines`, except the last `rows` event of a task. All other events are written.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        seconds_between: float = 5.0,
        seconds_between_lines: float = 30.0,
    ) -> None:
        self._context = context
        self._observations = _Interval(seconds_between)
        self._lines = _Interval(seconds_between_lines)

    def __call__(self, event: dict[str, Any]) -> None:
        """Log an event and record its numbers as an observation."""
        kind = event["event"]
        always = kind not in {"step", "rows"} or (kind == "rows" and event["done"] == event["total"])
        if always or self._lines.has_passed():
            self._log(kind, event)
        if always or self._observations.has_passed():
            self._observe(kind, event)

    def _log(self, kind: str, event: dict[str, Any]) -> None:
        shown = ("step", *LIVE_METRICS) if kind == "step" else [key for key in event if key != "event"]
        details = ", ".join(f"{key} {_short(event[key])}" for key in shown if event.get(key) is not None)
        log = self._context.log.warning if kind == "warning" else self._context.log.info
        log(f"{kind}: {details}")

    def _observe(self, kind: str, event: dict[str, Any]) -> None:
        metrics = {key: event[key] for key in ("step", *LIVE_METRICS) if isinstance(event.get(key), int | float)}
        if kind == "eval" and "loss" in metrics:
            metrics["held_out_loss"] = metrics.pop("loss")
        if kind == "rows":
            metrics["rows_done"] = event["done"]
        if kind in {"step", "eval", "rows"} and metrics:
            self._context.log_event(dg.AssetObservation(asset_key=self._context.asset_key, metadata=metrics))


class _Interval:
    """Rate limit: `has_passed` is true at the first call and then at most once per `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = float("-inf")

    def has_passed(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
