"""What the UI shows of `tokenized_dataset`."""

from __future__ import annotations

from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fim_assets.metadata import plots
from fim_assets.metadata.samples import samples
from fim_assets.metadata.tables import (
    COLUMN_LINEAGE,
    COLUMN_SCHEMA,
    ROW_COUNT,
    column_lineage,
    column_schema,
    table,
)
from fim_core.config import Experiment
from fim_core.quality.tables import saved_dataset
from fim_core.store import Artifact, Store

_COLUMNS = {
    "row_id": "As in raw_completions.",
    "type": "The export's TYPE.",
    "input_ids": "Prompt, response and end token.",
    "labels": "The token itself where it is trained on, -100 where it is masked.",
    "prompt_length": "Tokens before the response, earlier assistant turns included; evaluation completes from there.",
}
_LINEAGE = {
    "row_id": ["row_id"],
    "type": ["type"],
    "input_ids": ["prompt", "response", "control_spans"],
    "labels": ["prompt", "response", "trained_spans"],
    "prompt_length": ["prompt", "control_spans", "trained_spans"],
}
_BINS = 40


def shown(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Tokens, lengths, packs, and some rows if they may be shown."""
    counts, packing = artifact.counts, artifact.counts["packing"]
    train, held_out = (saved_dataset(artifact.path / "dataset" / split) for split in ("train", "eval"))
    lineage = {name: [("fim_prompts", source) for source in sources] for name, sources in _LINEAGE.items()}
    metadata: dict[str, Any] = {
        ROW_COUNT: counts["rows_kept"],
        COLUMN_SCHEMA: column_schema(train.schema, _COLUMNS),
        COLUMN_LINEAGE: column_lineage(lineage),
        "train_rows": counts["train"],
        "eval_rows": counts["eval"],
        "too_long": counts["too_long"],
        "control_token": counts["control_token"],
        "changed_by_tokenizer": counts["changed"],
        "left_out_rows": counts["left_out"],
        "tokens": counts["tokens"],
        "trained_tokens": counts["trained_tokens"],
        "packing": packing["strategy"],
        "packs": packing["packs"],
        "rows_per_step": round(packing["rows_per_batch"], 2),
        "trained_tokens_per_step": round(packing["trained_tokens_per_batch"], 1),
        "packs_per_step": round(packing["packs_per_batch"], 2),
        "rows_per_pack": round(packing["rows_per_pack"], 2),
        "tokens_per_distinct_token": round(packing["tokens"] / max(packing["distinct_tokens"], 1), 2),
        "tokens_by_type": _lengths_table(counts["lengths"]),
        "lengths": plots.histograms(_histograms(pa.concat_tables([train, held_out]), artifact)),
    }
    prompts = store.find("fim_prompts", artifact.manifest["inputs"]["fim_prompts"])
    if experiment.metadata.show_samples and train.num_rows and prompts is not None:
        metadata["samples"] = samples(train, prompts.path / "tokenizer" / "tokenizer.json")
    return metadata


def _lengths_table(lengths: dict[str, dict[str, float]]) -> dg.MetadataValue:
    columns = {"type": "string", "rows": "int"} | dict.fromkeys(("p50", "p90", "p99", "longest"), "int")
    rows = [
        {"type": kind or "(none)", "rows": int(found["rows"]), "longest": round(found["p100"])}
        | {level: round(found[level]) for level in ("p50", "p90", "p99")}
        for kind, found in lengths.items()
    ]
    return table(columns, rows)


def _histograms(rows: pa.Table, artifact: Artifact) -> list[plots.Histogram]:
    prompts = rows["prompt_length"].to_numpy()
    responses = pc.list_value_length(rows["input_ids"]).to_numpy() - prompts
    packs = pq.read_table(artifact.path / "packs.parquet", columns=["distinct_tokens"])["distinct_tokens"]
    limit = artifact.manifest["config"]["data"]["pack_length"]
    return [
        _histogram("prompts", prompts, "rows"),
        _histogram("responses", responses, "rows"),
        _histogram(f"packs of at most {limit:,}", packs.to_numpy(), "packs"),
    ]


def _histogram(title: str, lengths: np.ndarray, counted: str) -> plots.Histogram:
    """Bins of whole tokens, all of the same width."""
    low, high = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    width = max(1, -(-(high - low + 1) // _BINS))
    counts, edges = np.histogram(lengths, bins=np.arange(low, high + width + 1, width))
    return plots.Histogram(title, counts.tolist(), edges.tolist(), unit="tokens", counted=counted)
