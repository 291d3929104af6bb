"""Held-out rows, and what a predictor wrote for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = float | None
"""Value of a measure for one row; None where the measure does not apply."""


@dataclass(frozen=True, slots=True)
class EvalRow:
    """A held-out row.

    Attributes:
        row_id, type, group: as in fim_prompts.
        prefix, suffix: SQL left and right of the cursor.
        completion: the gold completion, which the user accepted.
        ddl: table definitions that the row brings as context.
        database: name of the database whose rows fill the tables; empty: rows are generated.
        is_placed: whether prefix and suffix are known. They are not in finished prompts without FIM tokens; measures
            that need them do not apply then.
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
    """The completion that a predictor wrote for a row and, from models, the loss of the gold completion.

    Attributes:
        text: the completion.
        stopped: whether generation ended before the limit of new tokens.
        nats: summed cross entropy of the gold completion and its end token, infinite if it is not a number; None from
            predictors without a model.
        tokens: number of tokens in that sum.
        end_nats: the part of `nats` at the end token.
        gold: the gold completion after the predictor's tokenizer has encoded and decoded it (normalised, for example):
            the closest text that it can write. None from predictors without a tokenizer.
        logprobs: log-probability of each token of the completion, end token included; None from predictors without a
            model.
    """

    text: str
    stopped: bool = True
    nats: float | None = None
    tokens: int | None = None
    end_nats: float | None = None
    gold: str | None = None
    logprobs: list[float] | None = None

    def sql(self, completion: str) -> str:
        """The text to judge as SQL: the gold `completion` where the predictor's tokenizer cannot tell the two apart."""
        return completion if self.text == self.gold else self.text


@dataclass(frozen=True, slots=True)
class CompletedRow:
    """A row with one prediction: everything that a measure is computed from.

    Attributes:
        row: the held-out row.
        prediction: what a predictor wrote for it.
        sql: values that the SQL workers measured (see sql_workers/measures.py); empty for rows that are not placed.
        shown: whether an editor would show the prediction; None for predictors that are not served, and for the rows that
            the completion filter was fitted to.
        rejected: whether a user rejected this very text.
    """

    row: EvalRow
    prediction: Prediction
    sql: Mapping[str, Value] = field(default_factory=dict)
    shown: bool | None = None
    rejected: bool = False

    @property
    def is_correct(self) -> bool:
        """Whether the prediction is what the user accepted: the same SQL tokens or, where they are not known, the same text."""
        if self.rejected:
            return False
        same_tokens = self.sql.get("exact_match_sql")
        return self.predicted.strip() == self.gold.strip() if same_tokens is None else same_tokens == 1

    @property
    def gold(self) -> str:
        """The gold completion as the predictor's tokenizer can write it."""
        return self.row.completion if self.prediction.gold is None else self.prediction.gold

    @property
    def predicted(self) -> str:
        """The predicted completion."""
        return self.prediction.text
