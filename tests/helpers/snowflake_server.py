"""A Snowflake server for tests: fakesnow, which speaks Snowflake's HTTP protocol and runs the SQL in DuckDB."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PASSWORD = "sn0w-of-the-tests"


@dataclass(frozen=True)
class SnowflakeServer:
    """A running server.

    connection: for filling tables.
    connections: content of a connections.toml with the connections `default` and `other`.
    """

    connection: Any
    connections: str


def running_server() -> Iterator[SnowflakeServer]:
    """Start the server, yield it, and stop it."""
    import fakesnow
    from snowflake import connector

    for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "fakesnow.server"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with fakesnow.server() as options:
        options = {**options, "password": PASSWORD, "database": "LOGS", "schema": "SQL"}
        settings = {name: value for name, value in options.items() if name != "session_parameters"}
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        with connector.connect(**options) as connection:
            yield SnowflakeServer(connection, "\n".join(["[default]", *lines, "[other]", *lines]))
