"""The events that a finished training run has recorded in its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fim_core.charts import Point
from fim_core.training.log_tail import event_of


def read_events(file: Path) -> list[dict[str, Any]]:
    """All events of a checkpoint's `metrics.jsonl`; lines that cannot be read are left out."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return [event for line in lines if (event := event_of(line)) is not None]


def curve(events: Sequence[dict[str, Any]], kind: str, key: str) -> list[Point]:
    """(optimizer step, number) of all events of a kind that have a number under `key`."""
    return [
        (event["step"], event[key])
        for event in events
        if event["event"] == kind and isinstance(event.get(key), int | float)
    ]
