"""Training's metrics, live in the Dagster run."""

from __future__ import annotations

import time
from typing import Any

import dagster as dg

LIVE_METRICS = ("loss", "lr", "grad_norm", "rows_per_second", "tokens_per_second", "mfu", "memory_bytes")


class TrainingProgress:
    """Hears of training's events: writes them to the run's log, and as observations that the UI plots while it runs.

    Steps are thinned to one observation every `seconds_between`; evaluations, checkpoints and the end always show.
    """

    def __init__(self, context: dg.AssetExecutionContext, seconds_between: float = 5.0) -> None:
        self._context = context
        self._seconds_between = seconds_between
        self._last_shown = -seconds_between

    def __call__(self, event: dict[str, Any]) -> None:
        """Log an event, and observe its numbers."""
        now = time.monotonic()
        kind = event["event"]
        if kind == "step":
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
        if kind in {"step", "eval"} and metrics:
            self._context.log_event(dg.AssetObservation(asset_key=self._context.asset_key, metadata=metrics))


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
