"""Live progress of training and evaluation in the Dagster run."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg

PLOTTED = ("loss", "lr", "grad_norm", "tokens_per_second")
"""Numbers of training steps that the UI plots live, with the held-out loss. The others are in the text of each point."""

LIVE_METRICS = (*PLOTTED, "rows_per_second", "mfu", "memory_bytes")


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
        self._plotted: dict[str, float] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        """Log an event and record its numbers as an observation."""
        kind = event["event"]
        always = kind not in {"step", "rows"} or (kind == "rows" and event["done"] == event["total"])
        if always or self._lines.has_passed():
            self._log(kind, event)
        if always or self._observations.has_passed():
            self._observe(kind, event)

    def _log(self, kind: str, event: dict[str, Any]) -> None:
        log = self._context.log.warning if kind == "warning" else self._context.log.info
        log(f"{kind}: {_details(kind, event)}")

    def _observe(self, kind: str, event: dict[str, Any]) -> None:
        """Record the newest value of every plotted number: the UI interrupts a line at points that lack its number."""
        if kind not in {"step", "eval", "rows"}:
            return
        names = {key: key for key in PLOTTED} if kind == "step" else {"loss": "held_out_loss"}
        self._plotted |= {name: event[key] for key, name in names.items() if isinstance(event.get(key), int | float)}
        metadata = {"progress": _details(kind, event)} | self._plotted
        self._context.log_event(dg.AssetObservation(asset_key=self._context.asset_key, metadata=metadata))


def _details(kind: str, event: dict[str, Any]) -> str:
    shown = ("step", *LIVE_METRICS) if kind == "step" else [key for key in event if key != "event"]
    return ", ".join(f"{key} {_short(event[key])}" for key in shown if event.get(key) is not None)


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
