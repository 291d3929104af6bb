"""Measures of one row that tokenize, parse, bind and execute SQL, stage by stage."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

from fim_core.metrics.binding import binds, bound_queries
from fim_core.metrics.completed_sql import CompletedSql, parses
from fim_core.metrics.execution import Comparison, Database, Excluded, Sandbox
from fim_core.metrics.sql_tokens import exact_match_sql, identifier_overlap, names_in

STAGES = ("tokens", "parses", "binds", "execution")
"""In order: each stage uses the results of the stages before it."""

Measures = dict[str, float | None]
"""Values by measure; None where a measure does not apply."""


@dataclass(frozen=True)
class SqlRow:
    """The SQL around the cursor, the gold completion, and the distinct texts that predictors wrote."""

    prefix: str
    suffix: str
    gold: str
    texts: tuple[str, ...]
    dialect: str
    ddl: str = ""
    database: Database | None = None


@dataclass(frozen=True)
class OfGold:
    """The result of a stage for the gold completion.

    Attributes:
        applies: whether the stage can judge predictions.
        identifiers: of the stage `tokens`, the number of names in the gold completion.
        excluded: of the stage `execution`, why it cannot judge predictions.
    """

    applies: bool
    identifiers: int = 0
    excluded: Excluded | None = None


def judge(row: SqlRow, stages: Sequence[str], sandbox: Sandbox) -> Generator[OfGold | Measures, None, None]:
    """Yield the result of each stage for the gold completion, then the measures of each text at each stage.

    Args:
        row: the row to judge.
        stages: the first few of `STAGES`, or all.
        sandbox: runs the queries.
    """
    gold = CompletedSql(row.prefix, row.gold, row.suffix, row.dialect)
    with closing(Comparison(gold, row.ddl, sandbox, row.database)) as comparison:
        for stage in stages:
            yield _of_gold(stage, gold, row.ddl, comparison)
        for text in row.texts:
            predicted = gold if text == row.gold else CompletedSql(row.prefix, text, row.suffix, row.dialect)
            for stage in stages:
                yield _of_text(stage, gold, predicted, row.ddl, comparison)


def failed(stage: str, gold: OfGold) -> Measures:
    """The measures of a prediction that was stopped at a stage."""
    if stage == "tokens":
        counted = gold.applies
        return {
            "exact_match_sql": 0,
            "identifiers_matched": 0 if counted else None,
            "identifiers_predicted": 0 if counted else None,
            "identifiers_gold": gold.identifiers if counted else None,
        }
    return {_MEASURE[stage]: 0 if gold.applies else None}


def not_judged(stage: str, row: SqlRow, text: str) -> Measures:
    """The measures of a prediction where the gold completion was stopped at a stage."""
    if stage == "tokens":
        same = row.gold.split() == text.split()
        return {"exact_match_sql": same, **dict.fromkeys(_IDENTIFIERS)}
    return {_MEASURE[stage]: None}


_IDENTIFIERS = ("identifiers_matched", "identifiers_predicted", "identifiers_gold")
_MEASURE = {"parses": "parses", "binds": "binds", "execution": "execution_match"}


def _of_gold(stage: str, gold: CompletedSql, ddl: str, comparison: Comparison) -> OfGold:
    if stage == "tokens":
        return OfGold(gold.tokens is not None, names_in(gold).total())
    if stage == "parses":
        return OfGold(gold.trees is not None)
    if stage == "binds":
        return OfGold(bound_queries(gold, ddl) is not None)
    excluded = comparison.run_gold()
    return OfGold(excluded is None, excluded=excluded)


def _of_text(stage: str, gold: CompletedSql, predicted: CompletedSql, ddl: str, comparison: Comparison) -> Measures:
    if stage == "tokens":
        overlap = identifier_overlap(gold, predicted)
        counts = (overlap.matched, overlap.predicted, overlap.gold) if overlap else (None, None, None)
        return {"exact_match_sql": exact_match_sql(gold, predicted), **dict(zip(_IDENTIFIERS, counts, strict=True))}
    if stage == "parses":
        return {"parses": parses(gold, predicted)}
    if stage == "binds":
        return {"binds": binds(gold, predicted, ddl)}
    return {"execution_match": comparison.matches(predicted)}
