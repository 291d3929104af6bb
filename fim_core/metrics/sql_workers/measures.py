"""Measures of one row that tokenize, parse, bind and execute SQL, stage by stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

from fim_core.metrics.binding import binds, bound_queries, resolves
from fim_core.metrics.completed_sql import CompletedSql, parses
from fim_core.metrics.execution import Comparison, Database, Excluded, Sandbox
from fim_core.metrics.sql_tokens import exact_match_sql, identifier_overlap, names_in

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


@dataclass(frozen=True)
class Gold:
    """The gold completion of a row, and what predictions are judged against."""

    sql: CompletedSql
    ddl: str
    comparison: Comparison


class JudgingStage(ABC):
    """A step of judging a row. It defines its measures for every outcome."""

    measures: ClassVar[tuple[str, ...]]

    @abstractmethod
    def of_gold(self, gold: Gold) -> OfGold:
        """Judge the gold completion, before any prediction."""

    @abstractmethod
    def of_prediction(self, gold: Gold, predicted: CompletedSql) -> Measures:
        """Judge a prediction."""

    def failed(self, gold: OfGold) -> Measures:
        """The measures of a prediction that was stopped at this stage or before."""
        return dict.fromkeys(self.measures, 0 if gold.applies else None)

    def not_judged(self, row: SqlRow, text: str) -> Measures:
        """The measures of a prediction where the gold completion was stopped at this stage or before."""
        return dict.fromkeys(self.measures)


class Tokens(JudgingStage):
    """Comparison of SQL tokens and names."""

    measures = ("exact_match_sql", "identifiers_matched", "identifiers_predicted", "identifiers_gold")

    def of_gold(self, gold: Gold) -> OfGold:
        return OfGold(gold.sql.tokens is not None, names_in(gold.sql).total())

    def of_prediction(self, gold: Gold, predicted: CompletedSql) -> Measures:
        overlap = identifier_overlap(gold.sql, predicted)
        counts = (overlap.matched, overlap.predicted, overlap.gold) if overlap else (None, None, None)
        return dict(zip(self.measures, (exact_match_sql(gold.sql, predicted), *counts), strict=True))

    def failed(self, gold: OfGold) -> Measures:
        counts = (0, 0, gold.identifiers) if gold.applies else (None, None, None)
        return dict(zip(self.measures, (0, *counts), strict=True))

    def not_judged(self, row: SqlRow, text: str) -> Measures:
        return super().not_judged(row, text) | {"exact_match_sql": row.gold.split() == text.split()}


class Parses(JudgingStage):
    """Parsing of the completed statements."""

    measures = ("parses",)

    def of_gold(self, gold: Gold) -> OfGold:
        return OfGold(gold.sql.trees is not None)

    def of_prediction(self, gold: Gold, predicted: CompletedSql) -> Measures:
        return {"parses": parses(gold.sql, predicted)}


class Binds(JudgingStage):
    """Resolution of names against the DDL."""

    measures = ("binds",)

    def of_gold(self, gold: Gold) -> OfGold:
        return OfGold(bound_queries(gold.sql, gold.ddl) is not None)

    def of_prediction(self, gold: Gold, predicted: CompletedSql) -> Measures:
        return {"binds": binds(gold.sql, predicted, gold.ddl)}


class Statement(JudgingStage):
    """Parsing and name resolution of the completed statements by themselves, as a server can do without a gold completion."""

    measures = ("statement_parses", "statement_binds")

    def of_gold(self, gold: Gold) -> OfGold:
        # Parses the definitions, which are cached, so that the limits of a prediction are for its own statement.
        resolves(gold.sql, gold.ddl)
        return OfGold(applies=True)

    def of_prediction(self, gold: Gold, predicted: CompletedSql) -> Measures:
        return {"statement_parses": predicted.trees is not None, "statement_binds": resolves(predicted, gold.ddl)}


class Execution(JudgingStage):
    """Comparison of query results."""

    measures = ("execution_match",)

    def of_gold(self, gold: Gold) -> OfGold:
        excluded = gold.comparison.run_gold()
        return OfGold(excluded is None, excluded=excluded)

    def of_prediction(self, gold: Gold, predicted: CompletedSql) -> Measures:
        return {"execution_match": gold.comparison.matches(predicted)}


STAGES: dict[str, JudgingStage] = {
    "tokens": Tokens(),
    "parses": Parses(),
    "binds": Binds(),
    "statement": Statement(),
    "execution": Execution(),
}
"""By name, in order: each stage uses the results of the stages before it."""


def judge(row: SqlRow, stages: Iterable[str], sandbox: Sandbox) -> Generator[OfGold | Measures, None, None]:
    """Yield the result of each stage for the gold completion, then the measures of each text at each stage.

    Args:
        row: the row to judge.
        stages: names of `STAGES`, in their order.
        sandbox: runs the queries.
    """
    sql = CompletedSql(row.prefix, row.gold, row.suffix, row.dialect)
    steps = [STAGES[name] for name in stages]
    with closing(Comparison(sql, row.ddl, sandbox, row.database)) as comparison:
        gold = Gold(sql, row.ddl, comparison)
        for stage in steps:
            yield stage.of_gold(gold)
        for text in row.texts:
            predicted = sql if text == row.gold else CompletedSql(row.prefix, text, row.suffix, row.dialect)
            for stage in steps:
                yield stage.of_prediction(gold, predicted)
