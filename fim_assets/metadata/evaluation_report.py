"""What the UI shows of `evaluation_report`."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from fim_assets.metadata import plots
from fim_assets.metadata.tables import COLUMN_LINEAGE, COLUMN_SCHEMA, Source, column_lineage, column_schema, table
from fim_core.config import Experiment
from fim_core.store import Artifact, Store

_COLUMNS = {
    "row_id": "As in raw_completions.",
    "type": "The export's TYPE.",
    "group": "As in fim_prompts.",
    "split": "eval: only held-out rows are judged.",
    "completion": "What the user accepted.",
    "prediction": "What the model wrote.",
    "champion_prediction": "What the champion wrote; null where its prompts cannot hold the row.",
}
_LINEAGE: dict[str, list[Source]] = {
    "row_id": [("fim_prompts", "row_id")],
    "type": [("fim_prompts", "type")],
    "group": [("fim_prompts", "group")],
    "split": [("fim_prompts", "split")],
    "completion": [("fim_prompts", "response")],
    "prediction": [("tokenized_dataset", "input_ids"), ("tokenized_dataset", "prompt_length")],
}
_MEASURED: list[Source] = [*_LINEAGE["completion"], *_LINEAGE["prediction"]]


def shown(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Every figure with its interval beside those of baselines and champion."""
    from fim_core.evaluation.metrics.registry import METRICS

    counts = artifact.counts
    figures = counts["metrics"]
    measured = [metric for metric in METRICS if figures.get(metric.name, {}).get("value") is not None]
    compared = counts["baselines"] | ({"champion": counts["champion"]} if counts["champion"] else {})
    shares = {
        metric.title: tuple(figures[metric.name][key] for key in ("value", "low", "high"))
        for metric in measured
        if metric.unit == "share"
    }
    schema = pq.read_schema(artifact.path / "predictions.parquet")
    return {
        COLUMN_SCHEMA: column_schema(schema, _COLUMNS | {metric.name: metric.title for metric in METRICS}),
        COLUMN_LINEAGE: column_lineage({name: _LINEAGE.get(name, _MEASURED) for name in schema.names}),
        "rows": counts["rows"],
        "groups": counts["groups"],
        **{metric.name: round(figures[metric.name]["value"], 4) for metric in measured if metric.headline},
        "figures": _figures_table(measured, figures, compared),
        "intervals": plots.intervals(shares, title="share of held-out rows, with confidence intervals"),
        "report": dg.MetadataValue.path(str(artifact.path / "report.html")),
    }


def _figures_table(measured: list[Any], figures: dict[str, Any], compared: dict[str, dict[str, Any]]) -> Any:
    columns = ("value", "low", "high", *compared)
    rows = [
        {"metric": metric.title, "unit": metric.unit}
        | {key: _rounded(figures[metric.name][key]) for key in ("value", "low", "high")}
        | {name: _rounded(values.get(metric.name)) for name, values in compared.items()}
        for metric in measured
    ]
    return table({"metric": "string", "unit": "string"} | dict.fromkeys(columns, "float"), rows)


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)
