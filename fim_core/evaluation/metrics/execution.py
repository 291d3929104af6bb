"""Whether a completed query gives the same result as the gold one, on generated rows in DuckDB."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import duckdb
from sqlglot import exp

from fim_core.evaluation.metrics.binding import BoundQuery, ColumnTypes, bound_queries
from fim_core.evaluation.metrics.completed import CompletedSql
from fim_core.evaluation.metrics.filler import NOW, column_pools, table_rows

SECONDS = 2.0
MEMORY = "256MB"
LARGEST_RESULT = 10_000

Rows = list[tuple[Any, ...]]
Database = Mapping[str, Rows]
"""Rows of tables, by the table's name as the dialect folds it."""
Tables = Mapping[str, tuple[ColumnTypes, Rows]]
"""Columns and rows of tables, by the same name."""


class Excluded(StrEnum):
    """Why a row has no execution match."""

    NOT_BOUND = "not_bound"
    """The DDL does not define what the gold statement names."""
    NOT_A_QUERY = "not_a_query"
    """The cursor is not in one statement that is a query."""
    FAILED = "failed"
    """DuckDB cannot run the gold query: a function it lacks, too slow, too large."""
    EMPTY = "empty_result"
    """The gold query finds nothing, so that any wrong filter would seem right."""
    UNSTABLE = "unstable"
    """Two runs of the gold query differ."""


@dataclass(frozen=True)
class ExecutionMatch:
    """One verdict for each prediction, or the reason why there is none."""

    matches: list[bool] | None
    excluded: Excluded | None = None


class Sandbox:
    """An in-memory DuckDB that reaches no file and no network, with bounds on time and memory.

    Untrusted SQL runs here: only queries, translated from their syntax trees.
    """

    def __init__(self, *, seconds: float = SECONDS, memory: str = MEMORY) -> None:
        self.seconds = seconds
        self._connection = duckdb.connect(":memory:")
        # In this order: each of the last two forbids to change what stands above it.
        for setting in (
            "threads = 1",
            f"memory_limit = '{memory}'",
            "temp_directory = ''",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            self._connection.execute(f"SET {setting}")

    def close(self) -> None:
        """Free the database."""
        self._connection.close()

    @contextmanager
    def tables(self, tables: Tables) -> Iterator[None]:
        """Have these tables, filled, inside the block.

        Raises:
            duckdb.Error: a type or value that DuckDB does not know.
        """
        try:
            for name, (columns, rows) in tables.items():
                kinds = ", ".join(f"{_quoted(column)} {kind.sql('duckdb')}" for column, kind in columns.items())
                self._connection.execute(f"CREATE OR REPLACE TABLE {_quoted(name)} ({kinds})")
                places = ", ".join([f"({', '.join('?' * len(columns))})"] * len(rows))
                values = [value for row in rows for value in row]
                self._connection.execute(f"INSERT INTO {_quoted(name)} VALUES {places}", values)
            yield
        finally:
            for name in tables:
                self._connection.execute(f"DROP TABLE IF EXISTS {_quoted(name)}")

    def run(self, query: exp.Expr) -> Rows | None:
        """The rows of a query, or None where DuckDB refuses it or it exceeds time, memory or 10,000 rows."""
        timer = threading.Timer(self.seconds, self._connection.interrupt)
        timer.start()
        try:
            rows = self._connection.execute(query.sql("duckdb")).fetchmany(LARGEST_RESULT + 1)
        # A translation that fails is sqlglot's error, a query that fails DuckDB's.
        except Exception:
            return None
        finally:
            timer.cancel()
            timer.join()
        return rows if len(rows) <= LARGEST_RESULT else None


def execution_match(
    gold: CompletedSql, predicted: Sequence[CompletedSql], ddl: str, sandbox: Sandbox, database: Database | None = None
) -> ExecutionMatch:
    """Whether each completed query gives the rows that the query with the gold completion gives.

    The execution accuracy of text-to-SQL (Yu et al., "Spider", 2018; Zhong et al., "Semantic Evaluation for
    Text-to-SQL with Distilled Test Suites", 2020), on tables made from the row's DDL. Without a database of their own
    they are filled with deterministic rows whose columns hold the constants that the gold query compares them with.
    The current date and time are pinned. Results are compared as multisets, as lists where the gold query ends in
    ORDER BY; column names do not count, floats count to 9 digits.

    Equal results do not prove equal queries. Rows where the gold query gives no rows are excluded.
    """
    bound = bound_queries(gold, ddl)
    if bound is None:
        return ExecutionMatch(None, Excluded.NOT_BOUND)
    if len(bound) != 1 or not _is_query(gold):
        return ExecutionMatch(None, Excluded.NOT_A_QUERY)
    candidates = [_only_query(sql, ddl) for sql in predicted]
    pools = column_pools(bound[0].query)

    def filled(tables: Mapping[str, ColumnTypes]) -> Tables:
        return {
            name: (columns, database[name] if database else table_rows(name, columns, pools))
            for name, columns in tables.items()
        }

    try:
        with sandbox.tables(filled(bound[0].tables)):
            return _compare(bound[0], candidates, sandbox, filled)
    except duckdb.Error:
        return ExecutionMatch(None, Excluded.FAILED)


def same_rows(gold: Rows, predicted: Rows, *, ordered: bool) -> bool:
    """Whether two results are equal: as lists, or as multisets of rows."""
    left, right = ([tuple(_canonical(v) for v in row) for row in rows] for rows in (gold, predicted))
    return left == right if ordered else Counter(left) == Counter(right)


def _compare(
    gold: BoundQuery,
    candidates: Sequence[BoundQuery | None],
    sandbox: Sandbox,
    filled: Callable[[Mapping[str, ColumnTypes]], Tables],
) -> ExecutionMatch:
    """The verdicts, while gold's tables are there; a candidate's further tables are made for it alone, so that one with
    a type that DuckDB lacks counts against the candidate and does not exclude the row."""
    ordered = gold.query.args.get("order") is not None
    expected = sandbox.run(_pinned(gold.query))
    if expected is None:
        return ExecutionMatch(None, Excluded.FAILED)
    if not expected:
        return ExecutionMatch(None, Excluded.EMPTY)
    again = sandbox.run(_pinned(gold.query))
    if again is None or not same_rows(expected, again, ordered=ordered):
        return ExecutionMatch(None, Excluded.UNSTABLE)
    written = gold.query.sql()

    def matches(candidate: BoundQuery | None) -> bool:
        if candidate is None:
            return False
        if candidate.query.sql() == written:
            return True
        try:
            with sandbox.tables(filled({n: c for n, c in candidate.tables.items() if n not in gold.tables})):
                rows = sandbox.run(_pinned(candidate.query))
        except duckdb.Error:
            return False
        return rows is not None and same_rows(expected, rows, ordered=ordered)

    return ExecutionMatch([matches(candidate) for candidate in candidates])


def _is_query(sql: CompletedSql) -> bool:
    return sql.trees is not None and len(sql.trees) == 1 and isinstance(sql.trees[0], exp.Query)


def _only_query(sql: CompletedSql, ddl: str) -> BoundQuery | None:
    bound = bound_queries(sql, ddl) if _is_query(sql) else None
    return bound[0] if bound and len(bound) == 1 else None


def _pinned(query: exp.Query) -> exp.Expr:
    """The query as if it ran at noon of a fixed day, when the generated rows were new."""

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
