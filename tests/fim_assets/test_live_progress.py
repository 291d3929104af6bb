"""Progress in a Dagster run: few lines in the log, however many steps there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest

from fim_assets.resources import progress
from fim_assets.resources.progress import LiveProgress

STEPS = 60


class Context:
    """Records what is logged."""

    asset_key = dg.AssetKey("trained_checkpoint")

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.observed: list[dict[str, Any]] = []
        self.log = SimpleNamespace(info=self.lines.append, warning=self.lines.append)

    def log_event(self, event: dg.AssetObservation) -> None:
        self.observed.append({key: entry.value for key, entry in event.metadata.items()})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def test_sixty_steps_in_a_minute_are_two_lines_and_twelve_observations(clock: SimpleNamespace) -> None:
    context = Context()
    show = LiveProgress(context)  # type: ignore[arg-type]
    for step in range(1, STEPS + 1):
        show({"event": "step", "step": step, "loss": 1.0, "rows_per_second": 3.0})
        clock.seconds += 1.0
    assert context.lines == [f"step: step {step}, loss 1, rows_per_second 3" for step in (1, 31)]
    progressed = [f"step {step}, loss 1, rows_per_second 3" for step in range(1, STEPS + 1, 5)]
    assert context.observed == [{"progress": line, "loss": 1.0} for line in progressed]


def test_what_happens_once_is_always_shown(clock: SimpleNamespace) -> None:
    context = Context()
    show = LiveProgress(context)  # type: ignore[arg-type]
    show({"event": "step", "step": 1, "loss": 2.0})
    show({"event": "eval", "step": 1, "loss": 1.5})
    show({"event": "warning", "message": "few steps"})
    show({"event": "rows", "task": "model", "done": 5, "total": 10})
    show({"event": "rows", "task": "model", "done": 10, "total": 10})
    assert [line.split(":")[0] for line in context.lines] == ["step", "eval", "warning", "rows"]
    assert context.observed[1] == {"progress": "step 1, loss 1.5", "loss": 2.0, "held_out_loss": 1.5}
