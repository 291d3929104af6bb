"""Metadata of `tokenized_dataset`."""

from __future__ import annotations

from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fim_assets.metadata import plots
from fim_assets.metadata.samples import samples
from fim_assets.metadata.tables import (
    COLUMN_LINEAGE,
    COLUMN_SCHEMA,
    ROW_COUNT,
    column_lineage,
    column_schema,
    count_table,
    table,
)
from fim_core.config import Experiment
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.tokenized import TokenizedFolder
from fim_core.quality.tables import saved_dataset
from fim_core.store import Artifact, Store

_COLUMNS = {
    "row_id": "As in raw_completions.",
    "type": "The export's TYPE.",
    "input_ids": "Prompt, response and end token.",
    "labels": "Token ids that are trained on; -100 where masked.",
    "prompt_length": "Tokens before the response, earlier assistant turns included. Evaluation generates from here.",
}
_LINEAGE = {
    "row_id": ["row_id"],
    "type": ["type"],
    "input_ids": ["prompt", "response", "control_spans"],
    "labels": ["prompt", "response", "trained_spans"],
    "prompt_length": ["prompt", "control_spans", "trained_spans"],
}
_BINS = 40


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Token counts, lengths, and sample rows if the experiment shows samples."""
    counts, files = artifact.counts, TokenizedFolder(artifact.path)
    train, held_out = (saved_dataset(files.split(name)) for name in ("train", "eval"))
    rows = pa.concat_tables([train, held_out])
    lineage = {name: [("fim_prompts", source) for source in sources] for name, sources in _LINEAGE.items()}
    metadata: dict[str, Any] = {
        ROW_COUNT: counts["rows_kept"],
        COLUMN_SCHEMA: column_schema(train.schema, _COLUMNS),
        COLUMN_LINEAGE: column_lineage(lineage),
        "trained_tokens": counts["trained_tokens"],
        "prompt_lengths": plots.lengths(*_histogram(rows["prompt_length"].to_numpy())),
        "response_lengths": plots.lengths(*_histogram(_response_lengths(rows))),
        "tokens_by_type": _lengths_table(counts["lengths"]),
        "rows": count_table(
            {
                "to train on": counts["train"],
                "held out": counts["eval"],
                "left out": counts["left_out"],
                "rejected as too long": counts["too_long"],
                "rejected for a control token": counts["control_token"],
                "changed by the tokenizer": counts["changed"],
            },
            "which",
        ),
        "tokens": f"{counts['tokens']:,}, of which {counts['trained_tokens']:,} are trained on",
    }
    prompts = store.find("fim_prompts", artifact.manifest["inputs"]["fim_prompts"])
    if experiment.metadata.show_samples and train.num_rows and prompts is not None:
        metadata["samples"] = samples(train, PromptsFolder(prompts.path).tokenizer / "tokenizer.json")
    return metadata


def _lengths_table(lengths: dict[str, dict[str, float]]) -> dg.MetadataValue:
    columns = {"type": "string", "rows": "int"} | dict.fromkeys(("p50", "p90", "p99", "longest"), "int")
    rows = [
        {"type": kind or "(none)", "rows": int(found["rows"]), "longest": round(found["p100"])}
        | {level: round(found[level]) for level in ("p50", "p90", "p99")}
        for kind, found in lengths.items()
    ]
    return table(columns, rows)


def _response_lengths(rows: pa.Table) -> np.ndarray:
    return pc.list_value_length(rows["input_ids"]).to_numpy() - rows["prompt_length"].to_numpy()


def _histogram(lengths: np.ndarray) -> tuple[list[int], list[float]]:
    """Counts and edges of bins of equal width, in whole tokens."""
    low, high = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    width = max(1, -(-(high - low + 1) // _BINS))
    counts, edges = np.histogram(lengths, bins=np.arange(low, high + width + 1, width))
    return counts.tolist(), edges.tolist()
