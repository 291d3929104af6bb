"""SQL that needs excessive time or memory, by the component that it attacks."""

from __future__ import annotations

DDL = "CREATE TABLE t (a NUMBER, b NUMBER, s VARCHAR);"

RUNNING = {
    "repeat": "SELECT REPEAT('x', 1000000000) FROM t",
    "length_of_repeat": "SELECT LENGTH(REPEAT('x', 2000000000)) FROM t",
    "range": "SELECT range(1000000000) FROM t",
    "large_rows": "SELECT REPEAT('x', 10000000) || u.a FROM t CROSS JOIN t AS u",
    "levenshtein": "SELECT LEVENSHTEIN(REPEAT('ab', 200000), REPEAT('ba', 200000)) FROM t",
    "lpad": "SELECT LPAD('x', 2000000000, 'y') FROM t",
    "unnest": "SELECT COUNT(*) FROM (SELECT UNNEST(range(100000000)) FROM t) AS u",
    "cross_join": "SELECT COUNT(*) FROM t AS u, t AS v, t AS w, t AS x, t AS y, t AS z WHERE u.a + v.b + w.a <> x.b * y.a * z.b",
    "array_agg": "SELECT ARRAY_AGG(u.a) FROM t AS u, t AS v, t AS w, t AS x, t AS y, t AS z",
    "string_agg": "SELECT LISTAGG(REPEAT('x', 1000000), '') FROM t CROSS JOIN t AS u CROSS JOIN t AS v",
    "recursion": "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r) SELECT COUNT(*) FROM r",
    "sleep": "SELECT sleep_ms(1000000) FROM t",
}
"""Queries that bind on `DDL` and do not terminate in DuckDB."""

_STARS = 100
PARSING = {
    "or_chain": "SELECT a FROM t WHERE " + " OR ".join(["a = 1"] * 5000),
    "union_chain": " UNION ALL ".join(["SELECT a FROM t"] * 5000),
    "doubled_aliases": "SELECT a AS x0, "
    + ", ".join(f"x{i} + x{i} AS x{i + 1}" for i in range(30))
    + " FROM t WHERE x30 > 0",
    "stars": "WITH c0 AS (SELECT * FROM t), "
    + ", ".join(f"c{i} AS (SELECT {', '.join(['*'] * 10)} FROM c{i - 1})" for i in range(1, 8))
    + f" SELECT {', '.join(['*'] * _STARS)} FROM c7",
}
"""Queries that do not terminate in the parser or in name resolution."""

DEFINITIONS = {
    "wide_check": "CREATE TABLE t (a NUMBER CHECK (" + " OR ".join(["a = 1"] * 100000) + "));",
    "many_tables": "".join(f"CREATE TABLE t{i} (a NUMBER, b NUMBER, s VARCHAR);" for i in range(20000)) + DDL,
}
"""Table definitions that take too long to parse."""

DEEP = {
    "brackets": "SELECT " + "(" * 5000 + "a" + ")" * 5000 + " FROM t",
    "functions": "SELECT " + "ABS(" * 3000 + "a" + ")" * 3000 + " FROM t",
    "subqueries": "SELECT a FROM " + "(SELECT a FROM " * 500 + "t" + ")" * 500,
    "cases": "SELECT " + "CASE WHEN a = 1 THEN " * 500 + "1" + " END" * 500 + " FROM t",
}
"""Queries that are nested deeper than the stack. Any result is acceptable."""
