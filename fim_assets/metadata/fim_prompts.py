"""Metadata of `fim_prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fim_assets.metadata.feedback import describe_feedback
from fim_assets.metadata.tables import (
    COLUMN_LINEAGE,
    COLUMN_SCHEMA,
    ROW_COUNT,
    column_lineage,
    column_schema,
    count_table,
)
from fim_core.config import Experiment
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.raw import RawFolder
from fim_core.store import Artifact, Store

_COLUMNS = {
    "row_id": "As in raw_completions.",
    "type": "The export's TYPE.",
    "source_type": "Shape of the row in the export.",
    "is_completion": "Prefix and suffix are the text around a cursor.",
    "is_finished": "The prompt was read as it is; control tokens in it are intended.",
    "prompt": "Input of the model, with control tokens written out.",
    "response": "Text that the model is trained to write.",
    "prefix": "Text before the cursor.",
    "suffix": "Text after the cursor.",
    "control_spans": "Positions of the control tokens in `prompt`, for rows whose user text also spells control tokens.",
    "trained_spans": "Positions of earlier assistant turns in `prompt`, which are also trained on.",
    "split": "train, eval, or left_out (the group is held out, but the statement is trained on in another group).",
    "group": "Rows of one group are never split between train and eval.",
}
_LINEAGE = {
    "row_id": ["row_id"],
    "type": ["type"],
    "source_type": ["source_type"],
    "is_completion": ["source_type", "input"],
    "is_finished": ["source_type"],
    "prompt": ["input"],
    "response": ["output", "input"],
    "prefix": ["input"],
    "suffix": ["input"],
    "control_spans": ["input"],
    "trained_spans": ["input"],
    "split": ["input", "output", "held_out"],
    "group": ["input", "output"],
}


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Row counts by split, rejected rows by reason, and what users did with the completions."""
    counts = artifact.counts
    lineage = {name: [("raw_completions", source) for source in sources] for name, sources in _LINEAGE.items()}
    return {
        ROW_COUNT: counts["rows_kept"],
        COLUMN_SCHEMA: column_schema(pq.read_schema(PromptsFolder(artifact.path).rows), _COLUMNS),
        COLUMN_LINEAGE: column_lineage(lineage),
        "rejected": sum(counts["rejected"].values()),
        "rows": count_table(
            {
                "read": counts["rows_in"],
                "to train on": counts["train"],
                "held out": counts["eval"],
                "left out": counts["left_out"],
                "rejected": sum(counts["rejected"].values()),
                "repaired": counts["repaired"],
                "with markup": counts["notice"],
            },
            "which",
        ),
        "rejected_by_reason": count_table(counts["rejected"], "reason"),
        # Versions that were made before there was feedback do not count it.
        **describe_feedback(
            counts.get("feedback"), _raw(artifact, store) if experiment.metadata.show_samples else None
        ),
    }


def _raw(artifact: Artifact, store: Store) -> Path | None:
    """The raw table that the prompts were made from, if it still exists."""
    found = store.find("raw_completions", artifact.manifest["inputs"]["raw_completions"])
    return None if found is None else RawFolder(found.path).rows
