"""Metrics of abstention: completions left empty, and places where nothing was missing."""

from __future__ import annotations

from fim_core.metrics.metric import Measure, Metric


def is_empty(completion: str) -> bool:
    """Whether a completion abstains: it holds only white space."""
    return not completion.strip()


_BOTH_EMPTY = Measure("both_empty", lambda row: is_empty(row.gold) and is_empty(row.predicted))

ABSTENTION_PRECISION = Metric(
    name="abstention_precision",
    title="Abstention precision",
    meaning="share of the empty completions where nothing was missing",
    unit="share",
    over=_BOTH_EMPTY,
    per=Measure("predicted_empty", lambda row: is_empty(row.predicted)),
    headline=True,
    by_slice=False,  # the TYPE and the length of a row mostly tell whether its completion is empty
)
ABSTENTION_RECALL = Metric(
    name="abstention_recall",
    title="Abstention recall",
    meaning="share of the places where nothing was missing that were left empty",
    unit="share",
    over=_BOTH_EMPTY,
    per=Measure("gold_empty", lambda row: is_empty(row.gold)),
    headline=True,
    by_slice=False,
)
