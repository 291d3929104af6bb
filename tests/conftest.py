"""What many tests share: a small tokenizer with Qwen's control tokens, trained once a session, and an S3 server."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One test worker a core: more threads than cores would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# `make test` names an experiment for Dagster, and a shell may name more: a test says what it uses.
os.environ.pop("FIM_EXPERIMENT", None)
os.environ.pop("FIM_STORAGE", None)

import pytest
from object_server import Bucket, client_of, environment, running_server
from sqlalchemy import Engine, event
from transformers import PreTrainedTokenizerFast

from fim_core.demo.tokenizer import train_tokenizer
from fim_core.quick_imports import quick_imports

# Collection is mostly imports.
_collection = ExitStack()
_collection.enter_context(quick_imports())


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _: object) -> None:
    """Databases of tests, such as Dagster's, need not survive a power cut."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


SQL = [
    "SELECT o.order_id, c.name FROM orders AS o JOIN customers c ON o.customer_id = c.id WHERE o.total > 10.5;",
    "select count(*), date_trunc('month', created_at) as month from events group by all order by 2 desc limit 7;",
    "CREATE OR REPLACE TABLE analytics.sales (id NUMBER, region VARCHAR, amount NUMBER(12, 2), at TIMESTAMP_NTZ);",
    "INSERT INTO t (a, b) VALUES (1, 'x''y'), (2, NULL);\nUPDATE t SET a = a + 1 WHERE b IS NULL;",
    "with ranked as (\n  select *, row_number() over (partition by region order by amount desc) as rn\n  from sales\n)\n"
    "select * from ranked where rn <= 3 -- top three\n",
    "Complete the SQL at the cursor. Recent statements, table definitions and the open file follow.",
]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from scheduling import ByFile

    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    _collection.close()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of about 600 entries; control tokens and chat markup are Qwen's."""
    return train_tokenizer(SQL * 4, vocab_size=640)


@pytest.fixture(scope="session")
def object_server() -> Iterator[str]:
    """URL of an S3 server that runs as long as the tests."""
    for package in ("s3fs", "moto"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    yield from running_server()


@pytest.fixture
def bucket(object_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new, empty bucket, and credentials for it in the environment."""
    for name, value in environment(object_server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    made = Bucket(f"exports-{uuid.uuid4().hex[:12]}", client_of(object_server))
    made.client.create_bucket(Bucket=made.name)
    return made
