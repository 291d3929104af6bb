"""Generated rows for the tables of a query: deterministic, and likely to match the query's conditions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

from sqlglot import exp

from fim_core.metrics.binding import ColumnTypes

NOW = datetime(2024, 6, 15, 12)
"""The current time of queries on generated rows."""

ROWS = 40
SHARE_OF_NULLS = 0.05
WORDS = ("amber", "birch", "cedar", "delta", "ember")
DAYS_AGO = (0, 1, 3, 8, 20, 45, 100, 200, 400)

Pools = Mapping[str, list[str]]


def column_pools(query: exp.Query) -> Pools:
    """The constants that a query compares each column with, as text, by column name."""
    pools: dict[str, list[str]] = defaultdict(list)
    for literal in query.find_all(exp.Literal):
        comparison = literal.find_ancestor(exp.Predicate)
        for column in comparison.find_all(exp.Column) if comparison else ():
            pools[column.name].append(literal.this.replace("%", "") if literal.is_string else literal.this)
    return pools


def table_rows(table: str, columns: ColumnTypes, pools: Pools, *, rows: int = ROWS) -> list[tuple[Any, ...]]:
    """Generate the rows of a table.

    Values come from small domains, so that joins match, with the constants of the query and their neighbours, and a few
    NULLs. Equal arguments give equal rows.
    """
    filled = []
    for name, kind in columns.items():
        rng = Random(f"{table}.{name}")
        domain = _domain(kind, sorted(set(pools.get(name, []))))
        filled.append([None if rng.random() < SHARE_OF_NULLS else rng.choice(domain) for _ in range(rows)])
    return list(zip(*filled, strict=True))


def _domain(kind: exp.DataType, constants: list[str]) -> list[Any]:
    if kind.this in exp.DataType.TEXT_TYPES:
        return [*constants, *WORDS] if len(constants) < 2 else [*constants, *WORDS[:2]]
    if kind.this in exp.DataType.TEMPORAL_TYPES:
        days = [NOW - timedelta(days=days) for days in DAYS_AGO] + _neighbours_of_days(constants)
        return [day.date() for day in days] if kind.this in {exp.DType.DATE, exp.DType.DATE32} else days
    if kind.this in exp.DataType.NUMERIC_TYPES:
        return [1, 2, 3, 4, 5, *_neighbours_of_numbers(constants, kind)]
    if kind.this == exp.DType.BOOLEAN:
        return [True, False]
    return [None]


def _neighbours_of_days(constants: list[str]) -> list[datetime]:
    days: list[datetime] = []
    for constant in constants:
        for offset in (-1, 0, 1):
            # The first and the last day of the calendar, both common as open ends, have one neighbour each.
            with suppress(ValueError, OverflowError):
                days.append(datetime.fromisoformat(constant).replace(tzinfo=None) + timedelta(days=offset))
    return days


def _neighbours_of_numbers(constants: list[str], kind: exp.DataType) -> list[Any]:
    numbers: list[Any] = []
    for constant in constants:
        with suppress(ValueError, ArithmeticError):
            number = Decimal(constant)
            if abs(number) < 10**8:
                numbers += [number - 1, number, number + 1]
    if kind.this in exp.DataType.INTEGER_TYPES:
        return [int(number) for number in numbers]
    return numbers
