"""The measures of every row, for several predictors at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fim_core.metrics.execution import Database
from fim_core.metrics.registry import measures
from fim_core.metrics.rows import CompletedRow, EvalRow, Prediction
from fim_core.metrics.sql_workers.measures import STAGES, SqlRow
from fim_core.metrics.sql_workers.pool import JudgedRow, shared_workers

ACCEPTED = "accepted"
"""Key of the gold completion in `Scores.over_limit`, next to the predictors."""

Columns = dict[str, np.ndarray]
"""Scores by measure: float64, one value per row, NaN where the measure does not apply."""


@dataclass
class Scores:
    """The measures of each predictor on the same rows.

    Attributes:
        columns: by predictor.
        read: by predictor, the rows that it could read: bool, one value per row. The measures of others are NaN.
        executions: number of rows by the reason why they have no execution match; `compared` counts those that have one.
        over_limit: number of completions whose SQL was stopped, by ACCEPTED or the predictor, and by the limit. Where the
            accepted completion is stopped, the measures from there on do not apply; a prediction that is stopped fails
            them.
    """

    columns: dict[str, Columns]
    read: dict[str, np.ndarray]
    executions: Counter[str] = field(default_factory=Counter)
    over_limit: dict[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """Predictions with what the SQL workers measured.

    Attributes:
        completed: by predictor, one per row; None where the predictor cannot read the row.
        of_rows: one per row; None for rows that are not placed.
    """

    completed: dict[str, list[CompletedRow | None]]
    of_rows: list[JudgedRow | None]


def judge_predictions(
    rows: Sequence[EvalRow],
    predictions: Mapping[str, Sequence[Prediction | None]],
    *,
    dialect: str,
    databases: Mapping[str, Database] | None = None,
    stages: Sequence[str] = tuple(STAGES),
) -> Judged:
    """Parse, bind and execute every prediction with its row.

    Args:
        rows: held-out rows.
        predictions: by predictor, one prediction per row; None where the predictor cannot read the row.
        dialect: sqlglot dialect of the rows.
        databases: by the names that rows use.
        stages: what the SQL workers do, see sql_workers/measures.py. Measures of other stages do not apply.
    """
    judged = _judge(rows, predictions, dialect, databases or {}, stages)
    completed = {
        name: [
            None if prediction is None else CompletedRow(row, prediction, _sql_measures(row, prediction, found))
            for row, prediction, found in zip(rows, predicted, judged, strict=True)
        ]
        for name, predicted in predictions.items()
    }
    return Judged(completed, judged)


def score(judged: Judged) -> Scores:
    """Compute every measure of the registered metrics, for every predictor and row."""
    completed = judged.completed
    return Scores(
        columns={name: _columns(each) for name, each in completed.items()},
        read={name: np.array([row is not None for row in each], bool) for name, each in completed.items()},
        executions=Counter(map(_execution, judged.of_rows)),
        over_limit=_over_limit(completed, judged.of_rows),
    )


def _judge(
    rows: Sequence[EvalRow],
    predictions: Mapping[str, Sequence[Prediction | None]],
    dialect: str,
    databases: Mapping[str, Database],
    stages: Sequence[str],
) -> list[JudgedRow | None]:
    """What the SQL workers measured of each row's distinct predictions; None for rows that are not placed."""
    placed = [
        SqlRow(
            row.prefix,
            row.suffix,
            row.completion,
            _distinct_texts(row, predictions, index),
            dialect,
            row.ddl,
            databases.get(row.database),
        )
        for index, row in enumerate(rows)
        if row.is_placed
    ]
    judged = iter(shared_workers().judge(placed, stages))
    return [next(judged) if row.is_placed else None for row in rows]


def _distinct_texts(
    row: EvalRow, predictions: Mapping[str, Sequence[Prediction | None]], index: int
) -> tuple[str, ...]:
    made = (predicted[index] for predicted in predictions.values())
    return tuple(dict.fromkeys(prediction.sql(row.completion) for prediction in made if prediction is not None))


def _sql_measures(row: EvalRow, prediction: Prediction, judged: JudgedRow | None) -> Mapping[str, float | None]:
    return judged.measures[prediction.sql(row.completion)] if judged else {}


def _columns(rows: Sequence[CompletedRow | None]) -> Columns:
    values = {measure.name: [None if row is None else measure.of(row) for row in rows] for measure in measures()}
    return {name: np.array([np.nan if v is None else v for v in column], float) for name, column in values.items()}


def _execution(judged: JudgedRow | None) -> str:
    """Why a row has no execution match, or `compared`."""
    if judged is None:
        return "not_placed"
    return judged.gold_limit or judged.excluded or "compared"


def _over_limit(
    completed: Mapping[str, Sequence[CompletedRow | None]], judged: Sequence[JudgedRow | None]
) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {
        ACCEPTED: Counter(found.gold_limit for found in judged if found and found.gold_limit)
    }
    for name, rows in completed.items():
        texts = [
            (row.prediction.sql(row.row.completion), found) for row, found in zip(rows, judged, strict=True) if row
        ]
        counts[name] = Counter(found.limits[text] for text, found in texts if found and text in found.limits)
    return {name: counted for name, counted in counts.items() if counted}
