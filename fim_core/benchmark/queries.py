"""Random queries on a benchmark schema, with one clause per line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fim_core.benchmark.schemas import BenchmarkSchema, BenchmarkTable


@dataclass(frozen=True)
class QueryTerms:
    """Random tables, columns and constants of a query."""

    fact: BenchmarkTable
    parent: BenchmarkTable
    text: str
    value: str
    parent_text: str
    number: str
    bound: int
    days: int
    limit: int


def choose(schema: BenchmarkSchema, rng: Random) -> QueryTerms:
    """Choose the tables, columns and constants of a query."""
    fact = rng.choice(schema.facts)
    parent = schema.parent_of(fact)
    text, values = rng.choice(list(fact.texts.items()))
    number, most = rng.choice(list(fact.numbers.items()))
    return QueryTerms(
        fact=fact,
        parent=parent,
        text=text,
        value=rng.choice(values),
        parent_text=rng.choice(list(parent.texts)),
        number=number,
        bound=rng.randint(1, max(1, most // 2)),
        days=rng.choice((45, 60, 90, 120)),
        limit=rng.choice((3, 5, 8, 10)),
    )


def write_query(schema: BenchmarkSchema, rng: Random) -> str:
    """Write a query of a random kind."""
    return "\n".join(rng.choice(KINDS)(choose(schema, rng)))


def _listing(n: QueryTerms) -> list[str]:
    return [
        f"SELECT {n.fact.key}, {n.text}, {n.number}",
        f"FROM {n.fact.name}",
        f"WHERE {n.text} = '{n.value}' AND {n.number} > {n.bound}",
        f"ORDER BY {n.number} DESC, {n.fact.key}",
        f"LIMIT {n.limit};",
    ]


def _totals(n: QueryTerms) -> list[str]:
    return [
        f"SELECT {n.text}, COUNT(*) AS entries, SUM({n.number}) AS total_{n.number}",
        f"FROM {n.fact.name}",
        f"WHERE {n.fact.time} >= DATEADD(day, -{n.days}, CURRENT_DATE)",
        f"GROUP BY {n.text}",
        f"HAVING SUM({n.number}) > {n.bound}",
        f"ORDER BY total_{n.number} DESC;",
    ]


def _joined(n: QueryTerms) -> list[str]:
    a, b = n.fact.alias, n.parent.alias
    return [
        f"SELECT {b}.{n.parent_text}, {a}.{n.text}, AVG({a}.{n.number}) AS mean_{n.number}",
        f"FROM {n.fact.name} AS {a}",
        f"JOIN {n.parent.name} AS {b} ON {a}.{n.parent.key} = {b}.{n.parent.key}",
        f"WHERE {a}.{n.text} <> '{n.value}'",
        f"GROUP BY {b}.{n.parent_text}, {a}.{n.text}",
        f"ORDER BY mean_{n.number}, {b}.{n.parent_text}, {a}.{n.text};",
    ]


def _newest(n: QueryTerms) -> list[str]:
    return [
        f"SELECT {n.parent.key}, {n.text}, {n.fact.time}",
        f"FROM {n.fact.name}",
        f"WHERE {n.number} IS NOT NULL",
        f"QUALIFY ROW_NUMBER() OVER (PARTITION BY {n.parent.key} ORDER BY {n.fact.time} DESC) = 1",
        f"ORDER BY {n.parent.key};",
    ]


def _cases(n: QueryTerms) -> list[str]:
    return [
        "SELECT",
        f"  DATE_TRUNC('month', {n.fact.time}) AS month,",
        f"  SUM(CASE WHEN {n.text} = '{n.value}' THEN {n.number} ELSE 0 END) AS {n.number}_of_one,",
        f"  COUNT(DISTINCT {n.parent.key}) AS {n.parent.name}_seen",
        f"FROM {n.fact.name}",
        "GROUP BY 1",
        "ORDER BY month;",
    ]


def _common_table(n: QueryTerms) -> list[str]:
    return [
        "WITH sums AS (",
        f"  SELECT {n.parent.key}, SUM({n.number}) AS total",
        f"  FROM {n.fact.name}",
        f"  WHERE {n.text} = '{n.value}' OR {n.number} > {n.bound}",
        f"  GROUP BY {n.parent.key}",
        ")",
        f"SELECT {n.parent.alias}.{n.parent_text}, MAX(sums.total) AS largest",
        "FROM sums",
        f"JOIN {n.parent.name} AS {n.parent.alias} ON sums.{n.parent.key} = {n.parent.alias}.{n.parent.key}",
        f"GROUP BY {n.parent.alias}.{n.parent_text};",
    ]


def _missing(n: QueryTerms) -> list[str]:
    a, b = n.fact.alias, n.parent.alias
    return [
        f"SELECT {b}.{n.parent.key}, COALESCE({b}.{n.parent_text}, 'unknown') AS {n.parent_text}",
        f"FROM {n.parent.name} AS {b}",
        "WHERE NOT EXISTS (",
        "  SELECT 1",
        f"  FROM {n.fact.name} AS {a}",
        f"  WHERE {a}.{n.parent.key} = {b}.{n.parent.key} AND {a}.{n.text} = '{n.value}'",
        f") AND {b}.{n.parent.time} < CURRENT_TIMESTAMP",
        f"ORDER BY {b}.{n.parent.key};",
    ]


KINDS: tuple[Callable[[QueryTerms], list[str]], ...] = (
    _listing,
    _totals,
    _joined,
    _newest,
    _cases,
    _common_table,
    _missing,
)
