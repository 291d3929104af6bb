"""All measures of every row, for several predictors at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fim_core.metrics.execution import Database
from fim_core.metrics.sql_workers.measures import SqlRow
from fim_core.metrics.sql_workers.pool import JudgedRow, shared_workers
from fim_core.metrics.text import (
    edit_similarity,
    exact_match,
    first_line_match,
    is_empty,
    prefix_match_chars,
    repeats_suffix,
)

Value = float | None
Columns = dict[str, np.ndarray]
"""Scores by column name: float64, one value a row, NaN where a measure does not apply."""


@dataclass(frozen=True, slots=True)
class EvalRow:
    """A held-out row: where the cursor stood, what the user accepted, and the DDL that was known.

    `database` names the rows that its tables hold; without one, rows are made up for it. `is_placed`: prefix and suffix
    are known; where they are not (finished prompts without FIM tokens), measures that need them do not apply.
    """

    row_id: str
    type: str
    group: str
    prefix: str
    suffix: str
    completion: str
    ddl: str = ""
    database: str = ""
    is_placed: bool = True


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a predictor wrote for a row, and, from models, how probable the gold completion was.

    Attributes:
        text: the completion.
        stopped: it ended by itself, within the limit of tokens.
        nats: summed cross entropy of the gold completion and its end token, infinite if it is no number; None from
            predictors without a model.
        tokens: how many tokens that sum is over.
        end_nats: the part of `nats` at the end token.
        gold: the gold completion as the predictor's tokenizer gives it back (normalised, say), which is all that it can
            write; None from predictors without a tokenizer.
    """

    text: str
    stopped: bool = True
    nats: float | None = None
    tokens: int | None = None
    end_nats: float | None = None
    gold: str | None = None

    def sql(self, completion: str) -> str:
        """The completion as SQL: the gold `completion` where the predictor's tokenizer knows no difference to it."""
        return completion if self.text == self.gold else self.text


_NOT_PLACED: dict[str, Value] = dict.fromkeys(
    (
        "repeats_suffix",
        "exact_match_sql",
        "parses",
        "binds",
        "identifiers_matched",
        "identifiers_predicted",
        "identifiers_gold",
        "execution_match",
    )
)
"""The measures of the whole statement in rows that do not tell it."""


ACCEPTED = "accepted"


@dataclass
class Scores:
    """The measures of each predictor on the same rows.

    Attributes:
        columns: by predictor.
        executions: rows by the reason why they have no execution match; `compared` are those that have one.
        over_limit: completions whose SQL was stopped, by whose they are (`accepted`, or the predictor) and the limit.
            Where it is the accepted one, the measures from there on do not apply; a prediction fails them.
    """

    columns: dict[str, Columns]
    executions: Counter[str] = field(default_factory=Counter)
    over_limit: dict[str, Counter[str]] = field(default_factory=dict)


def score(
    rows: Sequence[EvalRow],
    predictions: Mapping[str, Sequence[Prediction | None]],
    *,
    dialect: str,
    databases: Mapping[str, Database] | None = None,
) -> Scores:
    """Every measure of every predictor on every row.

    Args:
        rows: held-out rows.
        predictions: by predictor, one prediction a row; None where it cannot read the row, which has no measures then.
        dialect: sqlglot dialect of the rows.
        databases: by the names that rows use.
    """
    judged = iter(shared_workers().judge([
        _sql_row(row, _texts(row, predictions, index), dialect, databases or {})
        for index, row in enumerate(rows) if row.is_placed
    ]))  # fmt: skip
    cells: dict[str, list[dict[str, Value]]] = {name: [] for name in predictions}
    executions: Counter[str] = Counter()
    over_limit: dict[str, Counter[str]] = {name: Counter() for name in (ACCEPTED, *predictions)}
    for index, row in enumerate(rows):
        on_sql = next(judged) if row.is_placed else None
        executions[_execution(on_sql)] += 1
        if on_sql and on_sql.gold_limit:
            over_limit[ACCEPTED][on_sql.gold_limit] += 1
        for name, predicted in predictions.items():
            prediction = predicted[index]
            if prediction is None:
                cells[name].append({})
                continue
            sql = prediction.sql(row.completion)
            measures = on_sql.measures[sql] if on_sql else _NOT_PLACED
            cells[name].append(_text_measures(row, prediction) | measures)
            if on_sql and sql in on_sql.limits:
                over_limit[name][on_sql.limits[sql]] += 1
    names = next((list(measures) for values in cells.values() for measures in values if measures), [])
    columns = {name: _columns(values, names) for name, values in cells.items()}
    return Scores(columns, executions, {name: counts for name, counts in over_limit.items() if counts})


def _texts(row: EvalRow, predictions: Mapping[str, Sequence[Prediction | None]], index: int) -> list[str]:
    """The distinct texts predicted for a row."""
    made = (predicted[index] for predicted in predictions.values())
    return list(dict.fromkeys(prediction.sql(row.completion) for prediction in made if prediction is not None))


def _sql_row(row: EvalRow, texts: Sequence[str], dialect: str, databases: Mapping[str, Database]) -> SqlRow:
    database = databases.get(row.database)
    return SqlRow(row.prefix, row.suffix, row.completion, tuple(texts), dialect, row.ddl, database)


def _execution(judged: JudgedRow | None) -> str:
    """Why a row has no execution match, or `compared`."""
    if judged is None:
        return "not_placed"
    return judged.gold_limit or judged.excluded or "compared"


def _text_measures(row: EvalRow, prediction: Prediction) -> dict[str, Value]:
    gold, predicted = row.completion if prediction.gold is None else prediction.gold, prediction.text
    return {
        "exact_match": exact_match(gold, predicted),
        "edit_similarity": edit_similarity(gold, predicted),
        "first_line_match": first_line_match(gold, predicted),
        "prefix_match_chars": prefix_match_chars(gold, predicted),
        "repeats_suffix": repeats_suffix(gold, predicted, row.suffix),
        "runaway": not prediction.stopped,
        "gold_empty": is_empty(gold),
        "predicted_empty": is_empty(predicted),
        "both_empty": is_empty(gold) and is_empty(predicted),
        "gold_chars": len(row.completion),
        "gold_bytes": len(row.completion.encode(errors="surrogatepass")),
        "loss_nats": prediction.nats,
        "loss_bits": None if prediction.nats is None else prediction.nats / math.log(2),
        "loss_tokens": prediction.tokens,
        **_loss_parts(prediction),
    }


def _loss_parts(prediction: Prediction) -> dict[str, Value]:
    """The loss at the end token, and over the completion's own tokens."""
    nats, end, tokens = prediction.nats, prediction.end_nats, prediction.tokens
    if nats is None or end is None or tokens is None:
        return {"loss_end_nats": None, "loss_text_nats": None, "loss_text_tokens": None}
    text = 0.0 if tokens == 1 else math.inf if math.isinf(nats) else nats - end
    return {"loss_end_nats": end, "loss_text_nats": text, "loss_text_tokens": tokens - 1}


def _columns(cells: list[dict[str, Value]], names: list[str]) -> Columns:
    values = {name: [row.get(name) for row in cells] for name in names}
    return {name: np.array([np.nan if v is None else v for v in column], float) for name, column in values.items()}
