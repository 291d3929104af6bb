"""Metadata of `raw_completions`."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from fim_assets.metadata.tables import COLUMN_SCHEMA, ROW_COUNT, column_schema, count_table
from fim_core.config import Experiment
from fim_core.folders.raw import RawFolder
from fim_core.store import Artifact, Store

_COLUMNS = {
    "row_id": "Content hash of the export (12 digits) and index of the row in it.",
    "source": "Name of the export.",
    "source_type": "Shape of the rows: fim_completions, prompt_response or messages.",
    "type": "The export's TYPE.",
    "input": "INPUT, exactly as written.",
    "output": "OUTPUT, exactly as written.",
    "held_out": "Whether the row comes from eval_sources.",
}
_FEEDBACK_COLUMNS = {
    "shown": "Whether the completion was shown.",
    "action": "What the user did: accepted, rejected or edited.",
    "kept": "Text that the user kept in place of the completion, exactly as written.",
    "request_id": "Id in a log of fim serve.",
    "model_version": "Version of the model that wrote OUTPUT.",
}


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Row counts, columns, types, and warnings from reading the exports."""
    counts = artifact.counts
    notes = {"warnings": dg.MetadataValue.md(_list(counts["warnings"]))} if counts["warnings"] else {}
    described = _COLUMNS | (_FEEDBACK_COLUMNS if experiment.data.has_feedback else {})
    reports = {"feedback_reports": reports} if (reports := counts.get("reports")) else {}
    left_out = {"rows_left_out_by_sampling": counts["left_out"]} if counts["left_out"] else {}
    return {
        ROW_COUNT: counts["rows"],
        **left_out,
        **reports,
        COLUMN_SCHEMA: column_schema(pq.read_schema(RawFolder(artifact.path).rows), described),
        "rows_by_type": count_table(counts["by_type"], "type"),
        "rows_by_source_type": count_table(counts["by_source_type"], "source_type"),
        **notes,
    }


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
