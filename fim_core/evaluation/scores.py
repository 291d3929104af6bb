"""All measures of every row, for several predictors at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fim_core.evaluation.metrics.binding import binds
from fim_core.evaluation.metrics.completed import CompletedSql, parses
from fim_core.evaluation.metrics.execution import Database, ExecutionMatch, Sandbox, execution_match
from fim_core.evaluation.metrics.text import (
    edit_similarity,
    exact_match,
    first_line_match,
    is_empty,
    prefix_match_chars,
    repeats_suffix,
)
from fim_core.evaluation.metrics.tokens import exact_match_sql, identifier_overlap

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


@dataclass
class Scores:
    """The measures of each predictor on the same rows, and why rows have no execution match."""

    columns: dict[str, Columns]
    executions: Counter[str] = field(default_factory=Counter)


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
    cells: dict[str, list[dict[str, Value]]] = {name: [] for name in predictions}
    executions: Counter[str] = Counter()
    sandbox = Sandbox()
    try:
        for index, row in enumerate(rows):
            of_row = {name: predicted[index] for name, predicted in predictions.items()}
            read = {name: prediction for name, prediction in of_row.items() if prediction is not None}
            if not row.is_placed:
                executions["not_placed"] += 1
                for name, prediction in of_row.items():
                    cells[name].append({} if prediction is None else _text_measures(row, prediction) | _NOT_PLACED)
                continue
            texts = {prediction.sql(row.completion) for prediction in read.values()}
            distinct = {text: CompletedSql(row.prefix, text, row.suffix, dialect) for text in sorted(texts)}
            gold = distinct.get(row.completion) or CompletedSql(row.prefix, row.completion, row.suffix, dialect)
            execution = execution_match(
                gold, list(distinct.values()), row.ddl, sandbox, (databases or {}).get(row.database)
            )
            executions["compared" if execution.excluded is None else execution.excluded.value] += 1
            on_sql = {
                text: _sql_measures(gold, sql, row.ddl) | {"execution_match": _verdict(execution, place)}
                for place, (text, sql) in enumerate(distinct.items())
            }
            for name, prediction in of_row.items():
                sql = None if prediction is None else on_sql[prediction.sql(row.completion)]
                cells[name].append({} if prediction is None or sql is None else _text_measures(row, prediction) | sql)
    finally:
        sandbox.close()
    names = next((list(measures) for values in cells.values() for measures in values if measures), [])
    return Scores({name: _columns(values, names) for name, values in cells.items()}, executions)


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


def _sql_measures(gold: CompletedSql, predicted: CompletedSql, ddl: str) -> dict[str, Value]:
    overlap = identifier_overlap(gold, predicted)
    matched, found, expected = (overlap.matched, overlap.predicted, overlap.gold) if overlap else (None, None, None)
    return {
        "exact_match_sql": exact_match_sql(gold, predicted),
        "parses": parses(gold, predicted),
        "binds": binds(gold, predicted, ddl),
        "identifiers_matched": matched,
        "identifiers_predicted": found,
        "identifiers_gold": expected,
    }


def _verdict(execution: ExecutionMatch, place: int) -> Value:
    return None if execution.matches is None else execution.matches[place]


def _columns(cells: list[dict[str, Value]], names: list[str]) -> Columns:
    values = {name: [row.get(name) for row in cells] for name in names}
    return {name: np.array([np.nan if v is None else v for v in column], float) for name, column in values.items()}
