"""Execution match: comparison, exclusions, and the limits of untrusted SQL."""

from __future__ import annotations

import math
from contextlib import closing
from decimal import Decimal

import pytest

from fim_core.metrics.completed_sql import CompletedSql, parse_statement
from fim_core.metrics.execution import Comparison, Excluded, Sandbox, same_rows
from fim_core.metrics.generated_rows import table_rows

DDL = """CREATE TABLE orders (id NUMBER, cust NUMBER, status VARCHAR, total NUMBER(12, 2),
  at TIMESTAMP_NTZ, doc VARIANT);
CREATE TABLE cust (id NUMBER, name VARCHAR(10), vip BOOLEAN, born DATE);
CREATE TABLE place (id NUMBER, spot GEOGRAPHY);"""


def matches(gold: str, predicted: str, sandbox: Sandbox) -> bool | Excluded | None:
    sql = [CompletedSql("", text, "", "snowflake") for text in (gold, predicted)]
    with closing(Comparison(sql[0], DDL, sandbox)) as comparison:
        return comparison.run_gold() or comparison.matches(sql[1])


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("SELECT id FROM orders WHERE status = 'open'", "SELECT o.id FROM orders o WHERE status IN ('open')", True),
        ("SELECT id FROM orders WHERE status = 'open'", "SELECT id FROM orders WHERE status = 'shut'", False),
        ("SELECT id FROM orders WHERE status = 'open'", "SELECT id FROM orders", False),
        ("SELECT id AS a FROM orders", "SELECT id AS b FROM orders", True),
        ("SELECT id FROM orders", "SELECT id FROM orders ORDER BY total", True),
        ("SELECT id FROM orders ORDER BY total, id", "SELECT id FROM orders ORDER BY total DESC, id", False),
        ("SELECT id FROM orders", "SELECT DISTINCT id FROM orders", False),
        ("SELECT SUM(total) / 3 FROM orders", "SELECT SUM(total / 3) FROM orders", True),
        ("SELECT name FROM cust WHERE born < '2024-01-01'", "SELECT name FROM cust WHERE born > '2024-01-01'", False),
        (
            "SELECT id FROM orders WHERE at >= DATEADD(day, -30, CURRENT_DATE)",
            "SELECT id FROM orders WHERE at >= CURRENT_DATE - INTERVAL '30 days'",
            True,
        ),
        ("SELECT id FROM orders WHERE total > 1000", "SELECT id FROM orders WHERE total >= 1000", False),
        ("SELECT id FROM orders", "SELECT id FROM", False),
        ("SELECT id FROM orders", "SELECT made_up FROM orders", False),
        ("SELECT id FROM orders", "DROP TABLE orders", False),
        ("SELECT id FROM orders", "SELECT id FROM orders; SELECT 1", False),
        ("SELECT id FROM cust WHERE born < '9999-12-31'", "SELECT id FROM cust WHERE born <= '9999-12-30'", True),
        ("SELECT id FROM cust WHERE born > '0001-01-01'", "SELECT id FROM cust WHERE born < '0001-01-01'", False),
        ("SELECT id FROM cust", "SELECT cust.id FROM cust JOIN place ON cust.id = place.id", False),
        ("SELECT id FROM place", "SELECT id FROM place", Excluded.FAILED),
        ("SELECT id FROM orders WHERE 1 = 0", "SELECT 1", Excluded.EMPTY),
        ("SELECT RANDOM() FROM orders", "SELECT 1", Excluded.UNSTABLE),
        ("SELECT id FROM unknown", "SELECT 1", Excluded.NOT_BOUND),
        ("DELETE FROM orders WHERE id = 1", "SELECT 1", Excluded.NOT_A_QUERY),
        ("SELECT NO_SUCH_FUNCTION(id) FROM orders", "SELECT 1", Excluded.FAILED),
        ("SELECT 1 FROM orders a, orders b, orders c", "SELECT 1", Excluded.FAILED),
    ],
)
def test_execution_match_by_hand(gold: str, predicted: str, expected: object, sandbox: Sandbox) -> None:
    assert matches(gold, predicted, sandbox) == expected


def test_a_failing_candidate_does_not_affect_others(sandbox: Sandbox) -> None:
    gold, bad = (CompletedSql("", text, "", "snowflake") for text in ("SELECT id FROM cust", "SELECT id FROM place"))
    with closing(Comparison(gold, DDL, sandbox)) as comparison:
        assert comparison.run_gold() is None
        assert [comparison.matches(each) for each in (bad, gold)] == [False, True]


def test_rows_of_a_given_database_are_used(sandbox: Sandbox) -> None:
    gold, other = (CompletedSql("", f"SELECT id FROM cust WHERE name = '{n}'", "", "snowflake") for n in ("a", "b"))
    database = {"CUST": [(1, "a", True, None), (1, "b", True, None)]}
    with closing(Comparison(gold, DDL, sandbox, database)) as comparison:
        assert comparison.run_gold() is None
        assert comparison.matches(other) is True
    with closing(Comparison(gold, DDL, sandbox, {"CUST": [(1, "b", True, None)]})) as comparison:
        assert comparison.run_gold() == Excluded.EMPTY


def test_results_are_compared_as_multisets_or_lists() -> None:
    assert same_rows([(1,), (2,), (1,)], [(2,), (1,), (1,)], ordered=False)
    assert not same_rows([(1,), (2,)], [(2,), (1,)], ordered=True)
    assert not same_rows([(1,), (1,)], [(1,)], ordered=False)
    assert same_rows([(0.1 + 0.2, Decimal("1.50"), None)], [(0.3, 1.5, None)], ordered=False)
    assert same_rows([(math.nan,)], [(math.nan,)], ordered=False)
    assert not same_rows([("1",)], [(1,)], ordered=False)
    assert not same_rows([(2**60,)], [(2**60 + 1,)], ordered=False)
    assert same_rows([([1, 2],)], [([1, 2],)], ordered=False)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_parquet('https://example.org/x.parquet')",
        "SELECT getenv('HOME')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_duckdb('/tmp/x.db')",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "SELECT * FROM query('SET threads = 4')",
        "SELECT * FROM query_table('/etc/passwd')",
        "SELECT * FROM enable_logging(storage = 'file', storage_path = '/tmp/x')",
        "SELECT * FROM disable_logging()",
    ],
)
def test_the_sandbox_has_no_access_to_files_and_network(query: str, sandbox: Sandbox) -> None:
    assert sandbox.run(parse_statement(query, "duckdb")) is None


def test_queries_cannot_unlock_the_sandbox(sandbox: Sandbox) -> None:
    import duckdb

    for command in (
        "SET enable_external_access = true",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "COPY (SELECT 1) TO '/tmp/x'",
        "EXPORT DATABASE '/tmp/x'",
        "SET memory_limit = '9GB'",
        "SET threads = 8",
        "SET temp_directory = '/tmp'",
        "RESET lock_configuration",
        "PRAGMA enable_profiling = 'json'",
        "SET profiling_output = '/tmp/x'",
        "SET log_query_path = '/tmp/x'",
    ):
        with pytest.raises(duckdb.Error):
            sandbox._connection.execute(command)


def test_generated_rows_are_deterministic_and_contain_the_constants() -> None:
    from sqlglot import exp

    columns = {"S": exp.DataType.build("varchar"), "N": exp.DataType.build("int"), "D": exp.DataType.build("date")}
    pools = {"S": ["open"], "N": ["70"], "D": ["2021-03-04"]}
    rows = table_rows("T", columns, pools)
    assert rows == table_rows("T", columns, pools)
    assert rows != table_rows("U", columns, pools)
    assert {"open"} < {row[0] for row in rows}
    assert {69, 70, 71} & {row[1] for row in rows}
    assert any(row[i] is None for row in rows for i in range(3))
