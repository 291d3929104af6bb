"""Rows of a Snowflake query, fetched once per run in batches of Arrow and kept as a Parquet file.

    .fim/downloads/<SHA-256 of the file>/<name>.parquet

Snowflake returns rows in any order, so they are sorted: equal rows give equal bytes, and so the same version and row_ids.
The connection, with its credentials, is that of the connector: connections.toml, or SNOWFLAKE_CONNECTIONS.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pyarrow as pa

from fim_core.atomic import flush, flush_tree
from fim_core.batches import GROUP_ROWS, GroupWriter
from fim_core.config.data import Source
from fim_core.errors import FimError, first_line, reason_of
from fim_core.records.columns import find_column
from fim_core.records.readers import Export, digest_files, read_file
from fim_core.records.text import text_batches

_fetched: ContextVar[dict[str, Path] | None] = ContextVar("_fetched", default=None)


@contextmanager
def queries_run_once() -> Iterator[None]:
    """Run each query once within the block, so that what was compared and what is read are the same rows."""
    token = _fetched.set({})
    try:
        yield
    finally:
        _fetched.reset(token)


def snowflake_export(source: Source, downloads: Path) -> Export:
    """The rows of a source with `type: snowflake`.

    Args:
        downloads: folder of fetched rows.

    Raises:
        FimError: the connector is missing, it cannot connect, the query fails, or its columns cannot be used.
    """
    known = _fetched.get()
    options = source.model_dump_json(include={"sql", "table_name", "column_mapping", "limit", "connection"})
    query = f"{downloads} {options}"
    path = known.get(query) if known is not None else None
    if path is None:
        path = _fetch(source, downloads)
        if known is not None:
            known[query] = path
    return read_file(path, _name(source))


def _name(source: Source) -> str:
    return source.table_name or "query"


def _fetch(source: Source, downloads: Path) -> Path:
    name = hashlib.sha256(_name(source).encode()).hexdigest()
    scratch = downloads / f".{name}-{os.getpid()}-{secrets.token_hex(4)}"
    (scratch / "new").mkdir(parents=True)
    try:
        _write_rows(source, scratch / "rows.parquet")
        new = scratch / "new" / f"{_name(source).replace('/', '_')}.parquet"
        _sort(scratch / "rows.parquet", new, scratch)
        final = downloads / digest_files([new])
        if (final / new.name).is_file() and (final / new.name).stat().st_size == new.stat().st_size:
            # `fim gc` goes by the time of the last use.
            os.utime(final)
        else:
            shutil.rmtree(final, ignore_errors=True)
            flush_tree(scratch / "new")
            os.rename(scratch / "new", final)
            flush(downloads)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final / new.name


def _write_rows(source: Source, path: Path) -> None:
    """Run the query and write its rows as text."""
    connection = _connect(source)
    try:
        with _reporting(_name(source)), connection.cursor() as cursor:
            cursor.execute(_statement(source))
            columns = _renamed([column.name for column in cursor.description], source)
            schema = pa.schema([pa.field(column, pa.string(), nullable=False) for column in columns])
            with GroupWriter(path, schema) as writer:
                for batch in _first_rows(text_batches(columns, cursor.fetch_arrow_batches()), source.limit):
                    writer.write(batch.cast(schema))
    finally:
        connection.close()


def _statement(source: Source) -> str:
    if source.table_name is None:
        return str(source.sql)
    # A query is run as it is, since LIMIT outside it might not take its first rows.
    return f"SELECT * FROM {source.table_name}" + (f" LIMIT {source.limit}" if source.limit else "")


def _first_rows(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    left = limit
    for batch in batches:
        yield batch if left is None else batch.slice(0, left)
        if left is not None and (left := left - len(batch)) <= 0:
            return


def _renamed(columns: list[str], source: Source) -> tuple[str, ...]:
    new = list(columns)
    for old, name in source.column_mapping.items():
        if (at := find_column(columns, old, _name(source))) is None:
            raise FimError(
                f"{_name(source)} has no column {old}, which `column_mapping` names. It has {', '.join(columns)}."
            )
        new[at] = name
    if twice := sorted({name for name in new if new.count(name) > 1}):
        raise FimError(f"{_name(source)} has several columns {', '.join(twice)}. Give them different names with AS.")
    return tuple(new)


def _sort(rows: Path, ordered: Path, scratch: Path) -> None:
    """Sort rows by all columns, on disk where memory does not suffice."""
    import duckdb

    with duckdb.connect(config={"temp_directory": str(scratch / "sort")}) as database:
        query = database.sql("SELECT * FROM read_parquet(?) ORDER BY ALL", params=[str(rows)])
        found: Any = query.to_arrow_reader(GROUP_ROWS)
        schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in found.schema.names])
        with GroupWriter(ordered, schema) as writer:
            for batch in found:
                writer.write(batch.cast(schema))


def _connect(source: Source) -> Any:
    try:
        from snowflake import connector
    except ImportError as error:
        raise FimError(
            "`type: snowflake` needs the package snowflake-connector-python, which is not installed. Install it: "
            "pip install 'fim-assets[snowflake]'."
        ) from error
    named = {"connection_name": source.connection} if source.connection else {}
    try:
        return connector.connect(**named)
    except Exception as error:  # errors of the connector, of its configuration files and of the network
        raise FimError(
            f"Snowflake cannot be reached ({reason_of(error)}). Check the connection "
            f"{source.connection or 'named default'} in ~/.snowflake/connections.toml; another one is chosen by `connection` "
            "or SNOWFLAKE_DEFAULT_CONNECTION_NAME."
        ) from error


@contextmanager
def _reporting(name: str) -> Iterator[None]:
    """Replace errors of the connector. Only those about the query's own text are quoted; others may quote rows."""
    from snowflake.connector.errors import Error

    try:
        yield
    except Error as error:
        about_query = str(error.sqlstate or "").startswith("42")
        reason = first_line(error) if about_query else f"error {error.errno}, query {error.sfqid}"
        raise FimError(
            f"The Snowflake query of {name} failed: {reason.rstrip('.')}. Check `sql` or `table_name`, and the role of the "
            "connection; Snowflake's query history has the whole message."
        ) from error
