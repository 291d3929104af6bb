"""Metrics of what an editor shows: completions that are not empty and pass the model's completion filter.

They cover the rows that the filter was not fitted to, see evaluation/selection.py.
"""

from __future__ import annotations

from fim_core.metrics.abstention import is_empty
from fim_core.metrics.metric import Measure, Metric
from fim_core.metrics.rows import CompletedRow, Value


def _share_of_written(row: CompletedRow, value: bool) -> Value:
    return None if row.shown is None else float(value and not is_empty(row.predicted))


_SHOWN = Measure("shown", lambda row: _share_of_written(row, row.shown is True))
_WRITTEN = Measure("written", lambda row: _share_of_written(row, True))
_SHOWN_CORRECT = Measure("shown_correct", lambda row: _share_of_written(row, row.shown is True and row.is_correct))
_CORRECT = Measure("written_correct", lambda row: _share_of_written(row, row.is_correct))
_HIDDEN_CORRECT = Measure("hidden_correct", lambda row: _share_of_written(row, row.shown is False and row.is_correct))
_WRONG = Measure("written_wrong", lambda row: _share_of_written(row, not row.is_correct))
_HIDDEN_WRONG = Measure("hidden_wrong", lambda row: _share_of_written(row, row.shown is False and not row.is_correct))

SHOWN_PRECISION = Metric(
    name="shown_precision",
    title="Precision when shown",
    meaning="share of the completions that an editor would show that are correct (exact match by SQL tokens)",
    unit="share",
    over=_SHOWN_CORRECT,
    per=_SHOWN,
    headline=True,
)
COVERAGE = Metric(
    name="coverage",
    title="Coverage",
    meaning="share of the completions that are not empty that are confident enough to be shown",
    unit="share",
    over=_SHOWN,
    per=_WRITTEN,
)
CORRECT_HIDDEN = Metric(
    name="correct_hidden",
    title="Correct completions hidden",
    meaning="share of the correct completions that are not shown",
    unit="share",
    over=_HIDDEN_CORRECT,
    per=_CORRECT,
    higher_is_better=False,
)
WRONG_HIDDEN = Metric(
    name="wrong_hidden",
    title="Wrong completions hidden",
    meaning="share of the wrong completions that are not shown",
    unit="share",
    over=_HIDDEN_WRONG,
    per=_WRONG,
)
