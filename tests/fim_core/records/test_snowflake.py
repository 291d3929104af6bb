"""Snowflake sources, through the real connector, against a server that speaks Snowflake's protocol."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from snowflake_server import PASSWORD, SnowflakeServer, running_server

from fim_core.config import DataConfig, Experiment
from fim_core.errors import FimError
from fim_core.pipeline import run
from fim_core.records import snowflake as module
from fim_core.records.snowflake import queries_run_once
from fim_core.records.sources import digest_sources, write_raw_completions

ROWS = [(number, f'say "{number}" <fillMe>\nü', f"out{number}" if number % 3 else None) for number in range(250)]


@pytest.fixture(scope="module")
def server() -> Iterator[SnowflakeServer]:
    for package, install in (("snowflake", "snowflake-connector-python"), ("fakesnow", "--no-deps fakesnow")):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install {install}")
    yield from running_server()


@pytest.fixture
def table(server: SnowflakeServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table of 250 rows, and the connection in the connector's own variable."""
    monkeypatch.setenv("SNOWFLAKE_CONNECTIONS", server.connections)
    name = f"T{uuid.uuid4().hex[:12]}".upper()
    execute(server, f"create table {name} (ID int, INPUT varchar, OUTPUT varchar, DAY date, SCORE number(10, 2))")
    insert(server, name, ROWS)
    return name


def execute(server: SnowflakeServer, sql: str, *values: Any) -> None:
    server.connection.cursor().execute(sql, *values)


def insert(server: SnowflakeServer, name: str, rows: list[tuple[int, str, str | None]]) -> None:
    shuffled = random.Random(len(rows)).sample(rows, len(rows))
    values = ", ".join(
        f"({number}, {quoted(text)}, {quoted(output)}, '2026-07-01', 1.50)" for number, text, output in shuffled
    )
    execute(server, f"insert into {name} values {values}")


def quoted(text: str | None) -> str:
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def config(**options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"type": "snowflake", **options}]})


def read(folder: Path, **options: Any) -> list[dict[str, Any]]:
    write_raw_completions(config(**options), folder / "raw.parquet", folder / "downloads")
    return pq.read_table(folder / "raw.parquet").to_pylist()


def test_every_row_of_a_table_is_read_as_text(table: str, tmp_path: Path) -> None:
    rows = read(tmp_path, table_name=table)
    found = sorted((int(row["ID"]), row["input"], row["output"]) for row in rows)
    assert found == [(number, text, output or "") for number, text, output in ROWS]
    assert {(row["source"], row["source_type"], row["DAY"], row["SCORE"]) for row in rows} == {
        (table, "fim_completions", "2026-07-01", "1.50")
    }
    assert len({row["row_id"] for row in rows}) == len(ROWS)


def test_rows_do_not_depend_on_the_order_in_which_they_come(table: str, tmp_path: Path) -> None:
    orders = [f"select * from {table} order by {key}" for key in ("id", "id desc", "hash(id)")]
    first, *others = ([row | {"source": ""} for row in read(tmp_path, sql=order)] for order in orders)
    assert len(first) == len(ROWS)
    assert all(other == first for other in others)


def test_new_rows_change_the_digest(table: str, server: SnowflakeServer) -> None:
    before = digest_sources(config(table_name=table))
    assert digest_sources(config(table_name=table)) == before
    insert(server, table, [(999, "a <fillMe>", "b")])
    assert digest_sources(config(table_name=table)) != before


def test_columns_are_renamed_and_rows_limited(table: str, tmp_path: Path) -> None:
    execute_sql = f"select input as editor_state, output as accepted, id from {table} order by id"
    mapping = {"editor_state": "INPUT", "ACCEPTED": "OUTPUT"}
    rows = read(tmp_path, sql=execute_sql, column_mapping=mapping, limit=7)
    assert sorted(int(row["ID"]) for row in rows) == list(range(7)), "the first ones of the query's order"
    assert len(read(tmp_path, table_name=table, limit=5)) == 5
    assert len(read(tmp_path, table_name=table, limit=1000, connection="other")) == len(ROWS)


def test_other_shapes_of_rows_are_recognised(table: str, tmp_path: Path) -> None:
    sql = f"select input as question, output as answer from {table} limit 3"
    options = {"sql": sql, "columns": {"prompt": "question", "response": "answer"}}
    assert {row["source_type"] for row in read(tmp_path, **options)} == {"prompt_response"}
    rows = read(tmp_path, sql=sql, role_mapping={"user": "question", "assistant": "answer"})
    assert [message["role"] for message in json.loads(rows[0]["input"])] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sql": "select input from no_such_table"}, r"query of query failed: .*NO_SUCH_TABLE does not exist"),
        ({"table_name": "no_such_table"}, r"query of no_such_table failed"),
        ({"sql": "selec 1"}, r"query of query failed"),
        ({"sql": "select 1 as input, 2 as output where 1 = 0"}, r"The sources hold no rows: query"),
        ({"sql": "select 1 as input, 2 as input"}, r"several columns INPUT\. Give them different names with AS"),
        ({"sql": "select 1 as a", "column_mapping": {"b": "INPUT"}}, r"has no column b, .* It has A\."),
        ({"sql": "select 1 as a"}, r"has neither INPUT and OUTPUT"),
        ({"sql": "select 1", "connection": "elsewhere"}, r"Snowflake cannot be reached .*connection elsewhere in"),
    ],
)
def test_mistakes_are_explained(table: str, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FimError, match=message) as raised:
        read(tmp_path, **options)
    assert PASSWORD not in str(raised.value)


def test_errors_that_may_quote_rows_are_not_repeated(table: str, tmp_path: Path) -> None:
    with pytest.raises(FimError) as raised:
        read(tmp_path, sql=f"select cast(input as int) as input, output from {table}")
    assert "say" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "snowflake"}, "needs either `sql`, a query, or `table_name`"),
        ({"type": "snowflake", "sql": "select 1", "table_name": "t"}, "needs either"),
        ({"type": "snowflake", "sql": {"cuts_per_statement": 3}}, "needs either"),
        ({"type": "snowflake", "table_name": "t; drop table t"}, "should match pattern"),
        ({"type": "snowflake", "table_name": "t", "name_or_path": "x"}, "do not go with `type: snowflake`"),
        ({"name_or_path": "x", "limit": 3}, "limit goes with `type: snowflake` only"),
        ({"name_or_path": "x", "sql": "select 1"}, "it goes with `type: snowflake`"),
    ],
)
def test_options_are_checked_when_the_experiment_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"sources": [options]})


def test_options_survive_a_round_trip() -> None:
    both = {"sources": [{"type": "snowflake", "sql": "select 1"}, {"name_or_path": "q", "sql": {"empty_rate": 0.5}}]}
    data = DataConfig.model_validate(both)
    assert DataConfig.model_validate_json(data.model_dump_json()) == data


def test_a_run_queries_once_and_the_next_run_again(
    table: str, server: SnowflakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that arrive while a version is made belong to the next one."""
    queries = []
    fetch = module._fetch

    def counting(*arguments: Any) -> Path:
        queries.append(arguments)
        path = fetch(*arguments)
        insert(server, table, [(1000 + len(queries), f"late{len(queries)} <fillMe>", "x")])
        return path

    monkeypatch.setattr(module, "_fetch", counting)
    experiment = Experiment.model_validate(
        {
            "name": "snow",
            "storage": str(tmp_path / "store"),
            "model": {"config": {"model_type": "qwen3"}, "tokenizer": {"vocab_size": 700}},
            "data": {"sources": [{"type": "snowflake", "table_name": table}]},
        }
    )
    for times in (1, 2):
        made = run(experiment, until="raw_completions")["raw_completions"]
        assert len(queries) == times
        assert made.artifact.counts["rows"] == len(ROWS) + times - 1
    with queries_run_once():
        digests = {digest_sources(experiment.data, tmp_path / "downloads") for _ in range(2)}
    assert len(digests) == 1
    assert len(queries) == 3


def test_feedback_in_columns_of_a_table(server: SnowflakeServer, table: str, tmp_path: Path) -> None:
    execute(server, f"create table {table}_F (INPUT varchar, OUTPUT varchar, SHOWN boolean, ACTION varchar)")
    execute(server, f"insert into {table}_F values ('<fillMe>', 'a', true, 'Accepted'), ('<fillMe>', 'b', false, NULL)")
    rows = read(tmp_path, table_name=f"{table}_F", feedback={"shown": "shown", "action": "action"})
    assert [(row["output"], row["shown"], row["action"], row["kept"]) for row in rows] == [
        ("a", "true", "accepted", None),
        ("b", "false", "", None),
    ]
