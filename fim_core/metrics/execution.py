"""Execution match: whether a completed query returns the rows of the gold query, in DuckDB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import duckdb
from sqlglot import exp

from fim_core.metrics.binding import BoundQuery, ColumnTypes, bound_queries
from fim_core.metrics.completed_sql import CompletedSql
from fim_core.metrics.generated_rows import NOW, Pools, column_pools, table_rows

MEMORY = "256MB"
LARGEST_RESULT = 10_000

RowTuples = list[tuple[Any, ...]]
Database = Mapping[str, RowTuples]
"""Rows by table name, in the case that the dialect folds it to."""
Tables = Mapping[str, tuple[ColumnTypes, RowTuples]]
"""Columns and rows by table name."""


class Excluded(StrEnum):
    """Why a row has no execution match."""

    NOT_BOUND = "not_bound"
    """A name of the gold statement does not resolve against the DDL."""
    NOT_A_QUERY = "not_a_query"
    """The completion does not touch exactly one statement that is a query."""
    FAILED = "failed"
    """DuckDB cannot run the gold query: it lacks a function or type, or the result exceeds 10,000 rows."""
    EMPTY = "empty_result"
    """The gold query returns no rows, so that any wrong filter could pass."""
    UNSTABLE = "unstable"
    """Two runs of the gold query return different rows."""


class Sandbox:
    """An in-memory DuckDB without access to files and network, for untrusted SQL.

    It runs only queries, translated from their syntax trees. Some functions of DuckDB exceed its memory limit or ignore
    interrupts, so the process of the sandbox enforces hard limits (see sql_workers/worker.py).
    """

    def __init__(self) -> None:
        self._connection = duckdb.connect(":memory:", config={"threads": 1, "memory_limit": MEMORY})
        # The order matters: each of the last two settings locks the ones above it.
        for setting in (
            "temp_directory = ''",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            self._connection.execute(f"SET {setting}")

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def create(self, tables: Tables) -> None:
        """Create tables and insert their rows.

        Raises:
            duckdb.Error: DuckDB does not support a type or value.
            MemoryError: the tables exceed the memory limit of DuckDB or the process.
        """
        for name, (columns, rows) in tables.items():
            kinds = ", ".join(f"{_quoted(column)} {kind.sql('duckdb')}" for column, kind in columns.items())
            places = ", ".join([f"({', '.join('?' * len(columns))})"] * len(rows))
            values = [value for row in rows for value in row]
            with _memory_errors():
                self._connection.execute(f"CREATE OR REPLACE TABLE {_quoted(name)} ({kinds})")
                self._connection.execute(f"INSERT INTO {_quoted(name)} VALUES {places}", values)

    def drop(self, names: Iterable[str]) -> None:
        """Drop the tables that exist."""
        for name in names:
            self._connection.execute(f"DROP TABLE IF EXISTS {_quoted(name)}")

    def run(self, query: exp.Expr) -> RowTuples | None:
        """Run a query and return its rows; None if it fails or returns more than 10,000.

        Raises:
            MemoryError: it exceeds the memory limit of DuckDB or the process.
        """
        try:
            with _memory_errors():
                rows = self._connection.execute(query.sql("duckdb")).fetchmany(LARGEST_RESULT + 1)
        except MemoryError:
            raise
        # sqlglot raises if it cannot translate the query, DuckDB if it cannot run it.
        except Exception:
            return None
        return rows if len(rows) <= LARGEST_RESULT else None


class Comparison:
    """The gold query and its result, which predictions are compared with.

    This is the execution accuracy of text-to-SQL (Yu et al., "Spider", 2018; Zhong et al., "Semantic Evaluation for
    Text-to-SQL with Distilled Test Suites", 2020), on tables created from the row's DDL. Tables without given rows are
    filled with deterministic rows that contain the constants of the gold query. The current date and time are fixed.
    Results are compared as multisets, or as lists if the gold query ends in ORDER BY; column names are ignored, and floats
    are compared to 9 digits.

    Equal results do not prove equal queries. Rows whose gold query returns nothing are excluded.
    """

    def __init__(self, gold: CompletedSql, ddl: str, sandbox: Sandbox, database: Database | None = None) -> None:
        self._gold = gold
        self._ddl = ddl
        self._sandbox = sandbox
        self._database = database
        self._query: BoundQuery | None = None
        self._expected: RowTuples | None = None
        self._pools: Pools = {}

    def run_gold(self) -> Excluded | None:
        """Create the tables and run the gold query; returns the reason if nothing can be compared with it."""
        bound = bound_queries(self._gold, self._ddl)
        if bound is None:
            return Excluded.NOT_BOUND
        if len(bound) != 1 or not _is_query(self._gold):
            return Excluded.NOT_A_QUERY
        query = self._query = bound[0]
        self._pools = column_pools(query.query)
        try:
            self._sandbox.create(self._filled(query.tables))
        except duckdb.Error:
            return Excluded.FAILED
        rows = self._sandbox.run(_pinned(query.query))
        if rows is None:
            return Excluded.FAILED
        if not rows:
            return Excluded.EMPTY
        again = self._sandbox.run(_pinned(query.query))
        if again is None or not same_rows(rows, again, ordered=_is_ordered(query)):
            return Excluded.UNSTABLE
        self._expected = rows
        return None

    def matches(self, predicted: CompletedSql) -> bool | None:
        """Whether a completed query returns the rows of the gold query; None if `run_gold` returned a reason."""
        if self._query is None or self._expected is None:
            return None
        candidate = _only_query(predicted, self._ddl)
        if candidate is None:
            return False
        if candidate.query.sql() == self._query.query.sql():
            return True
        rows = self._rows_of(candidate, known=self._query.tables)
        return rows is not None and same_rows(self._expected, rows, ordered=_is_ordered(self._query))

    def close(self) -> None:
        """Drop the tables."""
        if self._query is not None:
            self._sandbox.drop(self._query.tables)

    def _rows_of(self, candidate: BoundQuery, known: Mapping[str, ColumnTypes]) -> RowTuples | None:
        """The result of a candidate. Tables that only it uses are created here, so that one with a type that DuckDB lacks
        fails the candidate instead of excluding the row."""
        further = {name: columns for name, columns in candidate.tables.items() if name not in known}
        try:
            self._sandbox.create(self._filled(further))
            return self._sandbox.run(_pinned(candidate.query))
        except duckdb.Error:
            return None
        finally:
            self._sandbox.drop(further)

    def _filled(self, tables: Mapping[str, ColumnTypes]) -> Tables:
        return {
            name: (columns, self._database[name] if self._database else table_rows(name, columns, self._pools))
            for name, columns in tables.items()
        }


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MemoryError from error


def same_rows(gold: RowTuples, predicted: RowTuples, *, ordered: bool) -> bool:
    """Whether two results are equal: as lists if ordered, else as multisets of rows."""
    left, right = ([tuple(_canonical(v) for v in row) for row in rows] for rows in (gold, predicted))
    return left == right if ordered else Counter(left) == Counter(right)


def _is_ordered(query: BoundQuery) -> bool:
    return query.query.args.get("order") is not None


def _is_query(sql: CompletedSql) -> bool:
    return sql.trees is not None and len(sql.trees) == 1 and isinstance(sql.trees[0], exp.Query)


def _only_query(sql: CompletedSql, ddl: str) -> BoundQuery | None:
    bound = bound_queries(sql, ddl) if _is_query(sql) else None
    return bound[0] if bound and len(bound) == 1 else None


def _pinned(query: exp.Query) -> exp.Expr:
    """The query with the current date and time replaced by those of the generated rows."""

    def pin(node: exp.Expr) -> exp.Expr:
        if isinstance(node, exp.CurrentDate):
            return exp.cast(exp.Literal.string(NOW.date().isoformat()), "date")
        if isinstance(node, exp.CurrentTimestamp | exp.CurrentDatetime):
            return exp.cast(exp.Literal.string(NOW.isoformat(" ")), "timestamp")
        return node

    return query.transform(pin)


def _canonical(value: Any) -> Any:
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float) or type(value).__name__ == "Decimal":
        return float(f"{float(value):.9g}") if value == value else "NaN"
    return repr(value)


def _quoted(name: str) -> str:
    return exp.to_identifier(name, quoted=True).sql("duckdb")
