"""What many tests share: a small tokenizer with Qwen's control tokens, trained once a session."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One test worker a core: more threads than cores would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# `make test` names an experiment for Dagster, and a shell may name more: a test says what it uses.
os.environ.pop("FIM_EXPERIMENT", None)
os.environ.pop("FIM_STORAGE", None)

import pytest
from transformers import PreTrainedTokenizerFast

from fim_core.demo.tokenizer import train_tokenizer

SQL = [
    "SELECT o.order_id, c.name FROM orders AS o JOIN customers c ON o.customer_id = c.id WHERE o.total > 10.5;",
    "select count(*), date_trunc('month', created_at) as month from events group by all order by 2 desc limit 7;",
    "CREATE OR REPLACE TABLE analytics.sales (id NUMBER, region VARCHAR, amount NUMBER(12, 2), at TIMESTAMP_NTZ);",
    "INSERT INTO t (a, b) VALUES (1, 'x''y'), (2, NULL);\nUPDATE t SET a = a + 1 WHERE b IS NULL;",
    "with ranked as (\n  select *, row_number() over (partition by region order by amount desc) as rn\n  from sales\n)\n"
    "select * from ranked where rn <= 3 -- top three\n",
    "Complete the SQL at the cursor. Recent statements, table definitions and the open file follow.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of about 600 entries; control tokens and chat markup are Qwen's."""
    return train_tokenizer(SQL * 4, vocab_size=640)
