"""Held-out rows, and a small untrained checkpoint that completes them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from fim_core.config import Experiment
from fim_core.metrics.execution import Sandbox
from fim_core.modeling.load import build_model
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import write_recipe
from fim_core.prompts import PromptBuilder, write_fim_prompts
from fim_core.records.sources import write_raw_completions
from fim_core.tokenization import tokenize_prompts

DDL = "CREATE TABLE shop.orders (id NUMBER, city VARCHAR, total NUMBER(12, 2), placed TIMESTAMP_NTZ);"
CITIES = ("rome", "oslo", "graz", "bern", "lyon", "kiel", "bari", "porto")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    database = Sandbox()
    yield database
    database.close()


@dataclass(frozen=True)
class Evaluated:
    """Inputs of `evaluate`."""

    experiment: Experiment
    raw: Path
    prompts: Path
    dataset: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Evaluated:
    """Sixty rows on one table, made into prompts and tokens, and a checkpoint with its first weights."""
    folder = tmp_path_factory.mktemp("evaluated")
    _write_export(folder / "export.csv")
    experiment = Experiment.model_validate(
        {
            "name": "tiny",
            "model": {"config": dict(MODEL), "tokenizer": {"vocab_size": 640}},
            "data": {
                "sources": [{"name_or_path": str(folder / "export.csv")}],
                "eval_fraction": 0.4,
                "template": "plain",
            },
            "evaluation": {"max_rows": 12, "max_new_tokens": 6, "batch_size": 4, "bootstrap_samples": 100},
        }
    )
    raw = folder / "raw.parquet"
    write_raw_completions(experiment.data, raw)
    write_fim_prompts(
        raw, folder / "prompts", data=experiment.data, model=experiment.model, tokenizer=tokenizer, seed=1
    )
    tokenize_prompts(folder / "prompts", folder / "dataset", data=experiment.data)
    save_checkpoint(folder / "checkpoint", experiment, tokenizer, seed=1)
    return Evaluated(experiment, raw, folder / "prompts", folder / "dataset", folder / "checkpoint")


MODEL = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def save_checkpoint(
    folder: Path, experiment: Experiment, tokenizer: PreTrainedTokenizerFast, *, seed: int, chat_rows: bool = False
) -> None:
    """A checkpoint as the pipeline writes it, with random weights."""
    model = build_model(experiment.model, tokenizer, seed=seed)
    recipe = PromptBuilder(tokenizer, experiment.model, experiment.data, chat_rows=chat_rows).recipe
    save_model(model, tokenizer, recipe.fim_tokens.end_ids, folder)
    write_recipe(folder, recipe)


def _write_export(file: Path) -> None:
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["TYPE", "INPUT", "OUTPUT"])
        for i in range(60):
            city, bound = CITIES[i % len(CITIES)], i
            sql = f"SELECT id FROM orders WHERE total > {bound} AND city = '{city}';"
            gold = ("", f"'{city}'", "orders")[i % 3]
            cut = sql.index(gold) if gold else sql.index(" AND")
            context = json.dumps({"sql_history": "", "ddl_context": DDL, "last_few_executed": "", "file_content": ""})
            state = sql[:cut] + "<fillMe>" + sql[cut + len(gold) :]
            writer.writerow(
                [
                    ("nothing", "expr", "identifier")[i % 3],
                    json.dumps([{"type": "text", "text": context}, {"type": "text", "text": state}]),
                    gold,
                ]
            )
