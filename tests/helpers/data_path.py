"""Data preparation from rows in memory: raw table, prompts, tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.prompts import PromptCounts, write_fim_prompts
from fim_core.records.schema import RAW_SCHEMA
from fim_core.tokenization import TokenizedCounts, tokenize_prompts

MODEL = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")


def data_options(**options: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"type": "demo"}], **options})


def completion(prefix: str, suffix: str, output: str = "", **row: Any) -> dict[str, Any]:
    """A raw row; context as `context={…}`."""
    context = json.dumps(row.pop("context", {}))
    items = [{"type": "text", "text": text} for text in (context, f"{prefix}<fillMe>{suffix}")]
    return {"input": json.dumps(items), "output": output, **row}


def write_raw(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = {name: pa.string() for row in rows for name in row} | {field.name: field.type for field in RAW_SCHEMA}
    defaults = {"source_type": "fim_completions", "held_out": False}
    filled = [
        {name: defaults.get(name, "") for name in columns} | {"row_id": f"r{number}"} | row
        for number, row in enumerate(rows)
    ]
    names = [*RAW_SCHEMA.names, *(name for name in columns if name not in RAW_SCHEMA.names)]
    schema = pa.schema([pa.field(name, columns[name], nullable=False) for name in names])
    pq.write_table(pa.Table.from_pylist(filled, schema), path)


@dataclass
class DataPath:
    prompts: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    prompt_counts: PromptCounts
    rows: list[dict[str, Any]]
    too_long: list[dict[str, Any]]
    counts: TokenizedCounts
    folder: Path

    def row(self, row_id: str) -> dict[str, Any]:
        return next(row for row in self.rows if row["row_id"] == row_id)


def run_data_path(
    folder: Path,
    rows: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    model: ModelConfig = MODEL,
    **options: Any,
) -> DataPath:
    data = data_options(**options)
    folder.mkdir(parents=True, exist_ok=True)
    write_raw(folder / "raw.parquet", rows)
    prompts, tokens = folder / "prompts", folder / "tokens"
    prompt_counts = write_fim_prompts(
        folder / "raw.parquet", prompts, data=data, model=model, tokenizer=tokenizer, seed=3
    )
    counts = tokenize_prompts(prompts, tokens, data=data)
    dataset = datasets.load_from_disk(str(tokens / "dataset"))
    return DataPath(
        pq.read_table(prompts / "prompts.parquet").to_pylist(),
        pq.read_table(prompts / "rejected.parquet").to_pylist(),
        prompt_counts,
        [row | {"split": split} for split in ("train", "eval") for row in dataset[split]],
        pq.read_table(tokens / "rejected.parquet").to_pylist(),
        counts,
        folder,
    )
