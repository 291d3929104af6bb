"""Snowflake idioms, each with a name that resolves and one that does not; `@` marks its position."""

from __future__ import annotations

DDL = """
CREATE TABLE orders (id NUMBER, cust NUMBER, status VARCHAR, total NUMBER(12, 2), placed_at TIMESTAMP_NTZ,
  doc VARIANT, tags ARRAY);
CREATE TABLE cust (id NUMBER, name VARCHAR, region VARCHAR, manager NUMBER);
CREATE TABLE events (event_id NUMBER, ts TIMESTAMP_NTZ, payload VARIANT, user_id NUMBER);
CREATE TABLE monthly (emp NUMBER, jan NUMBER, feb NUMBER, mar NUMBER);
CREATE VIEW open_orders AS SELECT * FROM orders WHERE status = 'open';
"""

IDIOMS = {
    "select": ("SELECT @ FROM orders", "total", "totl"),
    "where": ("SELECT id FROM orders WHERE @ > 2", "total", "totl"),
    "alias_in_where": ("SELECT total * 2 AS twice FROM orders WHERE @ > 2", "twice", "thrice"),
    "alias_in_select": ("SELECT total AS t, @ + 1 FROM orders", "t", "u"),
    "qualified": ("SELECT o.@ FROM orders AS o", "total", "name"),
    "wrong_alias": ("SELECT @.total FROM orders AS o", "o", "p"),
    "group_by": ("SELECT COUNT(*) FROM orders GROUP BY @", "status", "state"),
    "group_by_all": ("SELECT @, COUNT(*) FROM orders GROUP BY ALL", "status", "state"),
    "group_by_rollup": ("SELECT COUNT(*) FROM orders GROUP BY ROLLUP (@, cust)", "status", "state"),
    "grouping_sets": ("SELECT COUNT(*) FROM orders GROUP BY GROUPING SETS ((cust), (@))", "status", "state"),
    "having_aggregate": ("SELECT cust FROM orders GROUP BY cust HAVING SUM(@) > 10", "total", "amount"),
    "having_column": ("SELECT cust FROM orders GROUP BY cust HAVING @ > 10", "cust", "custo"),
    "having_alias": ("SELECT cust, SUM(total) AS s FROM orders GROUP BY cust HAVING @ > 10", "s", "t"),
    "having_qualified": ("SELECT o.cust FROM orders AS o GROUP BY o.cust HAVING MAX(o.@) > 1", "total", "amount"),
    "qualify_partition": (
        "SELECT id FROM orders QUALIFY ROW_NUMBER() OVER (PARTITION BY @ ORDER BY total) = 1", "cust", "customer"),
    "qualify_order": (
        "SELECT id FROM orders QUALIFY ROW_NUMBER() OVER (PARTITION BY cust ORDER BY @ DESC) = 1", "total", "amount"),
    "qualify_alias": (
        "SELECT id, RANK() OVER (ORDER BY total) AS r FROM orders QUALIFY @ <= 3", "r", "rnk"),
    "qualify_column": ("SELECT id FROM orders QUALIFY RANK() OVER (ORDER BY total) < @", "cust", "custo"),
    "window_partition": ("SELECT SUM(total) OVER (PARTITION BY @) FROM orders", "cust", "customer"),
    "window_order": ("SELECT SUM(total) OVER (ORDER BY @ ROWS UNBOUNDED PRECEDING) FROM orders", "placed_at", "placed"),
    "lag": ("SELECT LAG(@) OVER (PARTITION BY cust ORDER BY id) FROM orders", "total", "amount"),
    "lag_ignore_nulls": ("SELECT LAST_VALUE(@ IGNORE NULLS) OVER (ORDER BY id) FROM orders", "total", "amount"),
    "order_by": ("SELECT id FROM orders ORDER BY @ DESC NULLS LAST", "total", "amount"),
    "order_by_alias": ("SELECT id, total * 2 AS twice FROM orders ORDER BY @", "twice", "thrice"),
    "order_by_expression": ("SELECT id FROM orders ORDER BY COALESCE(@, 0)", "total", "amount"),
    "order_by_after_union": ("SELECT id AS n FROM orders UNION ALL SELECT id FROM cust ORDER BY @", "n", "name"),
    "within_group": ("SELECT LISTAGG(status, ',') WITHIN GROUP (ORDER BY @) FROM orders", "id", "idd"),
    "percentile": ("SELECT PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY @) FROM orders", "total", "amount"),
    "exclude_one": ("SELECT * EXCLUDE @ FROM orders", "doc", "docs"),
    "exclude_some": ("SELECT * EXCLUDE (tags, @) FROM orders", "doc", "docs"),
    "exclude_of_table": ("SELECT o.* EXCLUDE (@), c.name FROM orders AS o JOIN cust AS c ON c.id = o.cust", "doc", "name"),
    "exclude_of_join": ("SELECT * EXCLUDE (@) FROM orders AS o JOIN cust AS c ON c.id = o.cust", "name", "nme"),
    "exclude_of_subquery": ("SELECT * EXCLUDE (@) FROM (SELECT id, total AS t FROM orders)", "t", "total"),
    "used_after_exclude": ("SELECT @ FROM (SELECT * EXCLUDE (total) FROM orders)", "cust", "total"),
    "rename": ("SELECT * RENAME (@ AS amount) FROM orders", "total", "totl"),
    "rename_one": ("SELECT * RENAME @ AS amount FROM orders", "total", "totl"),
    "used_after_rename": ("SELECT @ FROM (SELECT * RENAME (total AS amount) FROM orders)", "amount", "total"),
    "exclude_and_rename": ("SELECT * EXCLUDE (doc) RENAME (@ AS amount) FROM orders", "total", "totl"),
    "replace": ("SELECT * REPLACE (total / 100 AS @) FROM orders", "total", "amount"),
    "replace_expression": ("SELECT * REPLACE (@ / 100 AS total) FROM orders", "total", "amount"),
    "star_ilike": ("SELECT * ILIKE '%d%' FROM @", "orders", "order"),
    "join_on": ("SELECT o.id FROM orders AS o JOIN cust AS c ON c.@ = o.cust", "id", "cust"),
    "join_using": ("SELECT name FROM orders JOIN cust USING (@)", "id", "region"),
    "left_join_where_null": ("SELECT o.id FROM orders AS o LEFT JOIN cust AS c ON c.id = o.cust WHERE c.@ IS NULL", "id", "ids"),
    "ambiguous": ("SELECT @ FROM orders AS o JOIN cust AS c ON c.id = o.cust", "o.id", "id"),
    "asof_join": (
        "SELECT e.event_id FROM events AS e ASOF JOIN orders AS o MATCH_CONDITION (e.ts >= o.@) ON e.user_id = o.cust",
        "placed_at", "ts"),
    "cte": ("WITH recent AS (SELECT id AS rid FROM orders) SELECT @ FROM recent", "rid", "id"),
    "cte_columns": ("WITH recent (a, b) AS (SELECT id, total FROM orders) SELECT @ FROM recent", "b", "total"),
    "cte_star": ("WITH recent AS (SELECT * FROM orders) SELECT @ FROM recent", "total", "name"),
    "recursive_cte": (
        "WITH RECURSIVE chain AS (SELECT id, manager FROM cust UNION ALL SELECT c.id, c.manager FROM cust AS c "
        "JOIN chain AS h ON c.manager = h.@) SELECT id FROM chain", "id", "name"),
    "subquery": ("SELECT @ FROM (SELECT id AS n FROM orders) AS s", "n", "id"),
    "scalar_subquery": ("SELECT id, (SELECT MAX(@) FROM cust) FROM orders", "region", "regio"),
    "correlated": ("SELECT id FROM orders AS o WHERE EXISTS (SELECT 1 FROM cust AS c WHERE c.id = o.@)", "cust", "name"),
    "correlated_bare": ("SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM cust WHERE manager = @)", "total", "totl"),
    "in_subquery": ("SELECT id FROM orders WHERE cust IN (SELECT @ FROM cust)", "manager", "mgr"),
    "not_in_tuple": ("SELECT id FROM orders WHERE (id, @) IN (SELECT id, manager FROM cust)", "cust", "custo"),
    "variant_path": ("SELECT @:items[0].sku::STRING FROM orders", "doc", "docs"),
    "variant_path_qualified": ("SELECT o.@:a.b FROM orders AS o", "doc", "payload"),
    "variant_brackets": ("SELECT @['a']['b'] FROM orders", "doc", "docs"),
    "flatten_value": ("SELECT f.@ FROM orders, LATERAL FLATTEN(input => doc:items) AS f", "value", "val"),
    "flatten_bare": ("SELECT id, @ FROM orders, LATERAL FLATTEN(input => tags)", "index", "idx"),
    "flatten_path": ("SELECT f.@:sku::STRING FROM orders, LATERAL FLATTEN(input => doc:items) AS f", "value", "item"),
    "flatten_input": ("SELECT f.value FROM orders AS o, LATERAL FLATTEN(input => o.@) AS f", "tags", "labels"),
    "flatten_table": ("SELECT f.@ FROM orders AS o, TABLE(FLATTEN(o.tags)) AS f", "seq", "sequence"),
    "flatten_twice": (
        "SELECT g.@ FROM orders, LATERAL FLATTEN(input => doc:a) AS f, LATERAL FLATTEN(input => f.value:b) AS g",
        "key", "name"),
    "flatten_of_flatten": (
        "SELECT g.value FROM orders, LATERAL FLATTEN(input => doc:a) AS f, LATERAL FLATTEN(input => f.@:b) AS g",
        "value", "values_"),
    "split_to_table": ("SELECT s.@ FROM orders AS o, LATERAL SPLIT_TO_TABLE(o.status, ',') AS s", "value", "word"),
    "generator": ("SELECT SEQ4() AS n FROM TABLE(GENERATOR(ROWCOUNT => 10)) WHERE @ > 2", "n", "m"),
    "values": ("SELECT @ FROM (VALUES (1, 'a'), (2, 'b')) AS v (k, w)", "w", "x"),
    "values_positional": ("SELECT @ FROM (VALUES (1, 'a')) AS v", "column2", "column3"),
    "pivot": (
        "SELECT @ FROM (SELECT cust, status, total FROM orders) PIVOT (SUM(total) FOR status IN ('open', 'shut')) AS p",
        "cust", "total"),
    "pivot_aggregate": (
        "SELECT * FROM (SELECT cust, status, total FROM orders) PIVOT (SUM(@) FOR status IN ('open', 'shut')) AS p",
        "total", "amount"),
    "pivot_for": (
        "SELECT * FROM (SELECT cust, status, total FROM orders) PIVOT (SUM(total) FOR @ IN ('open', 'shut')) AS p",
        "status", "state"),
    "pivot_names": (
        "SELECT @ FROM (SELECT cust, status, total FROM orders) PIVOT (SUM(total) FOR status IN ('open', 'shut')) "
        "AS p (c, o, s)", "o", "opn"),
    "unpivot": ("SELECT emp, @ FROM monthly UNPIVOT (sales FOR month IN (jan, feb, mar))", "sales", "jan"),
    "unpivot_in": ("SELECT emp, sales FROM monthly UNPIVOT (sales FOR month IN (jan, @))", "feb", "febr"),
    "match_recognize": (
        "SELECT * FROM orders MATCH_RECOGNIZE (PARTITION BY cust ORDER BY @ MEASURES COUNT(*) AS n "
        "PATTERN (up+) DEFINE up AS total > 1)", "placed_at", "placed"),
    "sample": ("SELECT @ FROM orders SAMPLE (10)", "total", "amount"),
    "time_travel": ("SELECT @ FROM orders AT (OFFSET => -60)", "total", "amount"),
    "connect_by": ("SELECT id FROM cust START WITH manager IS NULL CONNECT BY @ = PRIOR id", "manager", "boss"),
    "dateadd": ("SELECT DATEADD(day, 1, @) FROM orders", "placed_at", "placed"),
    "datediff": ("SELECT DATEDIFF('day', @, CURRENT_DATE) FROM orders", "placed_at", "placed"),
    "iff": ("SELECT IFF(@ > 1, 'a', 'b') FROM orders", "total", "amount"),
    "case": ("SELECT CASE WHEN total > 1 THEN @ END FROM orders", "status", "state"),
    "decode": ("SELECT DECODE(@, 'a', 1, 2) FROM orders", "status", "state"),
    "try_cast": ("SELECT TRY_CAST(@ AS NUMBER) FROM orders", "status", "state"),
    "any_like": ("SELECT id FROM orders WHERE @ LIKE ANY ('a%', 'b%')", "status", "state"),
    "object_construct": ("SELECT OBJECT_CONSTRUCT('k', @) FROM orders", "status", "state"),
    "array_agg": ("SELECT ARRAY_AGG(DISTINCT @) WITHIN GROUP (ORDER BY status) FROM orders", "status", "state"),
    "filter_lambda": ("SELECT FILTER(@, x -> x > 1) FROM orders", "tags", "labels"),
    "distinct": ("SELECT COUNT(DISTINCT @) FROM orders", "cust", "customer"),
    "top": ("SELECT TOP 10 @ FROM orders", "total", "amount"),
    "positional_order": ("SELECT @ FROM orders ORDER BY 1", "total", "amount"),
    "union": ("SELECT id FROM orders UNION SELECT @ FROM cust", "manager", "mgr"),
    "except": ("SELECT id FROM orders EXCEPT SELECT @ FROM cust", "manager", "mgr"),
    "view_of_star": ("SELECT @ FROM open_orders", "total", "amount"),
    "insert_columns": ("INSERT INTO cust (id, @) VALUES (1, 'x')", "name", "nme"),
    "insert_select": ("INSERT INTO cust (id) SELECT @ FROM orders", "cust", "customer"),
    "update_set": ("UPDATE orders SET @ = 1", "total", "amount"),
    "update_where": ("UPDATE orders SET total = 1 WHERE @ = 'x'", "status", "state"),
    "update_from": ("UPDATE orders SET total = 1 FROM cust WHERE cust.@ = orders.cust", "id", "ident"),
    "delete_where": ("DELETE FROM orders WHERE @ = 'x'", "status", "state"),
    "delete_using": ("DELETE FROM orders USING cust WHERE cust.@ = orders.cust", "id", "ident"),
    "merge_on": (
        "MERGE INTO cust AS t USING orders AS s ON t.id = s.@ WHEN MATCHED THEN UPDATE SET t.name = s.status", "cust", "customer"),
    "merge_set": (
        "MERGE INTO cust AS t USING orders AS s ON t.id = s.cust WHEN MATCHED THEN UPDATE SET t.name = s.@", "status", "state"),
    "merge_insert": (
        "MERGE INTO cust AS t USING orders AS s ON t.id = s.cust WHEN NOT MATCHED THEN INSERT (id, @) VALUES (s.cust, s.status)",
        "name", "nme"),
    "ctas": ("CREATE TABLE copy AS SELECT @ FROM orders", "total", "amount"),
    "create_view": ("CREATE OR REPLACE VIEW v AS SELECT @ FROM orders", "total", "amount"),
}  # fmt: skip
