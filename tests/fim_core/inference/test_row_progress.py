"""Progress events of an evaluation."""

from __future__ import annotations

from pathlib import Path

from fim_core.evaluation.run import evaluate
from fim_core.inference.row_progress import RowProgress
from tests.fim_core.conftest import Evaluated


def test_events_count_up_to_the_total() -> None:
    events: list[dict[str, object]] = []
    advance = RowProgress(events.append, "champion").start("completions", 5)
    advance(2)
    advance(3)
    assert [event["done"] for event in events] == [0, 2, 5]
    assert {(event["event"], event["model"], event["task"], event["total"]) for event in events} == {
        ("rows", "champion", "completions", 5)
    }
    assert events[0]["seconds_left"] is None
    assert events[-1]["seconds_left"] == 0


def test_every_model_completes_and_scores_all_rows(evaluated: Evaluated, tmp_path: Path) -> None:
    events: list[dict[str, object]] = []
    figures = evaluate(
        evaluated.experiment,
        checkpoint=evaluated.checkpoint,
        raw=evaluated.raw,
        prompts=evaluated.prompts,
        dataset=evaluated.dataset,
        output=tmp_path,
        on_event=events.append,
    )
    last = {(event["model"], event["task"]): event["done"] for event in events}
    assert last == {
        ("model", "completions"): figures["rows"],
        ("model", "losses of gold completions"): figures["rows"],
    }
