"""Name resolution against the DDL of the context."""

from __future__ import annotations

import pytest
from snowflake_idioms import DDL as IDIOMS_DDL
from snowflake_idioms import IDIOMS

from fim_core.metrics.binding import binds, bound_queries
from fim_core.metrics.completed_sql import CompletedSql

DDL = """
CREATE OR REPLACE TABLE db.shop.orders (id NUMBER PRIMARY KEY, total NUMBER(12, 2), cust NUMBER,
  doc VARIANT, "Mixed" INT);
create table cust (id int, name varchar(10) comment 'who; what', constraint p primary key (id));
CREATE VIEW big AS SELECT id AS big_id FROM orders WHERE total > 100;
CREATE TABLE everything AS SELECT * FROM orders;
CREATE VIEW renamed (key, amount) AS SELECT id, total FROM orders;
CREATE TABLE copied CLONE orders;
CREATE TABLE nowhere AS SELECT * FROM elsewhere;
this is no DDL;
"""


def bound(statement: str, ddl: str = DDL) -> bool:
    return bound_queries(CompletedSql("", statement, "", "snowflake"), ddl) is not None


@pytest.mark.parametrize("idiom", IDIOMS)
def test_idioms_of_snowflake_with_a_right_and_a_wrong_name(idiom: str) -> None:
    statement, right, wrong = IDIOMS[idiom]
    assert bound(statement.replace("@", right), IDIOMS_DDL)
    assert not bound(statement.replace("@", wrong), IDIOMS_DDL)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT ID, Total FROM Orders",
        "SELECT o.id FROM shop.orders o",
        "SELECT db.shop.orders.id FROM db.shop.orders",
        'SELECT "Mixed" FROM orders',
        "SELECT c.name, SUM(o.total) AS s FROM orders o JOIN cust c ON c.id = o.cust GROUP BY ALL ORDER BY s",
        "WITH orders AS (SELECT name FROM cust) SELECT name FROM orders",
        "SELECT id FROM orders o WHERE EXISTS (SELECT 1 FROM cust WHERE cust.id = o.cust)",
        "SELECT doc:Items[0].sku::string, f.value:x FROM orders, LATERAL FLATTEN(input => doc:Items) f",
        "SELECT total AS t, t + 1 FROM orders WHERE t > 2",
        "SELECT big_id FROM big",
        "SELECT id, total FROM everything",
        "SELECT amount FROM renamed",
        "SELECT id FROM copied",
        "UPDATE orders o SET id = c.id FROM cust c WHERE o.cust = c.id",
        "INSERT INTO cust (id, name) SELECT id, 'x' FROM orders",
        "UPDATE orders SET total = 1 WHERE cust = 2",
        "DELETE FROM cust WHERE id IN (SELECT cust FROM orders)",
        "CREATE TABLE copy AS SELECT id FROM orders",
        "SELECT id FROM orders; SELECT name FROM cust;",
    ],
)
def test_names_that_resolve(statement: str) -> None:
    assert bound(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT made_up FROM orders",
        "SELECT o.made_up FROM orders o",
        "SELECT id FROM made_up",
        "SELECT made_up.id FROM orders",
        "SELECT id FROM other.orders",
        "SELECT Mixed FROM orders",
        "SELECT id FROM orders o JOIN cust c ON c.id = o.cust",
        "WITH orders AS (SELECT name FROM cust) SELECT total FROM orders",
        "SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM cust WHERE nme = 'x')",
        "INSERT INTO cust (id, nme) VALUES (1, 'x')",
        "UPDATE orders SET totl = 1",
        "DELETE FROM cust WHERE idd = 3",
        "SELECT name FROM everything",
        "SELECT total FROM renamed",
        "SELECT name FROM copied",
        "SELECT id FROM nowhere",
        "SELECT id FROM orders; SELECT nme FROM cust;",
        "GRANT SELECT ON TABLE orders TO ROLE x",
        "SELECT id FROM",
    ],
)
def test_names_that_do_not(statement: str) -> None:
    assert not bound(statement)


def test_a_made_up_column_parses_and_does_not_bind() -> None:
    gold = CompletedSql("SELECT ", "total", " FROM orders", "snowflake")
    assert binds(gold, gold, DDL) is True
    assert binds(gold, CompletedSql("SELECT ", "made_up", " FROM orders", "snowflake"), DDL) is False
    assert binds(gold, CompletedSql("SELECT ", "'total'", " FROM orders", "snowflake"), DDL) is True


def test_binding_does_not_apply_where_the_context_lacks_definitions() -> None:
    gold = CompletedSql("SELECT ", "total", " FROM orders", "snowflake")
    assert binds(gold, gold, "") is None
    assert binds(gold, gold, "CREATE TABLE other (total INT)") is None
    assert binds(gold, gold, "CREATE TABLE orders (id INT, 'broken") is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@stage t", None),
        ("TABLE(RESULT_SCAN(LAST_QUERY_ID())) t", None),
        ("orders o, TABLE(my_function(o.id)) t", None),
        ("orders o, LATERAL my_function(o.id) t", None),
        ("IDENTIFIER('orders') t", None),
        ("nowhere t", None),
        ("orders t", False),
        ("(SELECT id FROM orders) t", False),
        ("orders, LATERAL FLATTEN(doc) t", False),
        ("made_up t", False),
    ],
)
def test_columns_of_sources_that_the_context_does_not_define_are_not_judged(source: str, expected: bool | None) -> None:
    gold = CompletedSql("SELECT ", "id FROM orders", "", "snowflake")
    predicted = CompletedSql("SELECT ", f"t.some FROM {source}", "", "snowflake")
    assert binds(gold, predicted, DDL) is expected
    assert binds(predicted, gold, DDL) is None


def test_tables_created_earlier_in_the_document_resolve() -> None:
    prefix = "CREATE TEMPORARY TABLE recent AS SELECT id AS rid FROM orders;\nSELECT "
    gold = CompletedSql(prefix, "rid", " FROM recent", "snowflake")
    assert binds(gold, gold, DDL) is True
    assert binds(gold, CompletedSql(prefix, "id", " FROM recent", "snowflake"), DDL) is False
