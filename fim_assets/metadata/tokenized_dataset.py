"""What the UI shows of `tokenized_dataset`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
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
from fim_core.store import Artifact, Store

if TYPE_CHECKING:
    from fim_core.packing import Rows

_COLUMNS = {
    "row_id": "As in raw_completions.",
    "type": "The export's TYPE.",
    "input_ids": "Prompt, response and end token.",
    "labels": "The token itself where it is trained on, -100 where it is masked.",
    "prompt_length": "Tokens of the prompt.",
}
_LINEAGE = {
    "row_id": ["row_id"],
    "type": ["type"],
    "input_ids": ["prompt", "response", "control_spans"],
    "labels": ["prompt", "response", "trained_spans"],
    "prompt_length": ["prompt"],
}
_BINS = 40


def shown(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Tokens, lengths, packs, and some rows if they may be shown."""
    from fim_core.tokenization import load_rows
    from fim_core.tokenization.batch import DATASET_SCHEMA

    counts, packing = artifact.counts, artifact.counts["packing"]
    splits = [load_rows(artifact.path, split) for split in ("train", "eval")]
    lineage = {name: [("fim_prompts", source) for source in sources] for name, sources in _LINEAGE.items()}
    metadata: dict[str, Any] = {
        ROW_COUNT: counts["rows_kept"],
        COLUMN_SCHEMA: column_schema(DATASET_SCHEMA, _COLUMNS),
        COLUMN_LINEAGE: column_lineage(lineage),
        "too_long": counts["too_long"],
        "tokens": counts["tokens"],
        "trained_tokens": counts["trained_tokens"],
        "packing": packing["strategy"],
        "packs": packing["packs"],
        "pack_fill": round(packing["fill"], 4),
        "rows_per_pack": round(packing["rows_per_pack"], 2),
        "tokens_per_distinct_token": round(packing["tokens"] / max(packing["distinct_tokens"], 1), 2),
        "tokens_by_type": _lengths_table(counts["lengths"]),
        "lengths": plots.histograms(_histograms(splits, _pack_tokens(artifact))),
    }
    if experiment.metadata.show_samples and len(splits[0]):
        prompts = store.find("fim_prompts", artifact.manifest["inputs"]["fim_prompts"])
        if prompts is not None:
            metadata["samples"] = samples(splits[0], prompts.path / "tokenizer" / "tokenizer.json")
    return metadata


def _lengths_table(lengths: dict[str, dict[str, float]]) -> Any:
    columns = {"type": "string", "rows": "int"} | dict.fromkeys(("p50", "p90", "p99", "longest"), "int")
    rows = [
        {"type": kind or "(none)", "rows": int(found["rows"]), "longest": round(found["p100"])}
        | {level: round(found[level]) for level in ("p50", "p90", "p99")}
        for kind, found in lengths.items()
    ]
    return table(columns, rows)


def _histograms(splits: list[Rows], pack_tokens: np.ndarray) -> list[plots.Histogram]:
    prompts = np.concatenate([rows.prompt_lengths for rows in splits])
    responses = np.concatenate([rows.lengths - rows.prompt_lengths for rows in splits])
    return [
        _histogram("prompts", prompts, "rows"),
        _histogram("responses", responses, "rows"),
        _histogram("packs", pack_tokens, "packs"),
    ]


def _pack_tokens(artifact: Artifact) -> np.ndarray:
    return pq.read_table(artifact.path / "packs.parquet", columns=["distinct_tokens"])["distinct_tokens"].to_numpy()


def _histogram(title: str, lengths: np.ndarray, counted: str) -> plots.Histogram:
    """Bins of whole tokens, all of the same width."""
    low, high = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    width = max(1, -(-(high - low + 1) // _BINS))
    counts, edges = np.histogram(lengths, bins=np.arange(low, high + width + 1, width))
    return plots.Histogram(title, counts.tolist(), edges.tolist(), unit="tokens", counted=counted)
