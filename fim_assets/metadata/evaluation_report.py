"""Metadata of `evaluation_report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow.parquet as pq

from fim_assets.metadata import plots
from fim_assets.metadata.tables import COLUMN_LINEAGE, COLUMN_SCHEMA, Source, column_lineage, column_schema, table
from fim_core.config import Experiment
from fim_core.folders.report import ReportFolder
from fim_core.store import Artifact, Store

if TYPE_CHECKING:
    from fim_core.metrics.metric import Metric

_COLUMNS = {
    "row_id": "As in raw_completions.",
    "type": "The export's TYPE.",
    "group": "As in fim_prompts.",
    "split": "Always eval: only held-out rows are evaluated.",
    "completion": "Completion that the user accepted.",
    "prediction": "Completion by the model.",
    "base_prediction": "Completion by the model before training.",
    "champion_prediction": "Completion by the champion; null where its prompts cannot represent the row.",
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


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Metrics with intervals, those of the other predictors, and the comparisons in words."""
    from fim_core.evaluation.verdicts import sentences
    from fim_core.metrics.registry import METRICS

    files = ReportFolder(artifact.path)
    report = files.read()
    figures = report["metrics"]
    measured = [metric for metric in METRICS.values() if figures.get(metric.name, {}).get("value") is not None]
    shares = {
        metric.title: tuple(figures[metric.name][key] for key in ("value", "low", "high"))
        for metric in measured
        if metric.unit == "share"
    }
    schema = pq.read_schema(files.predictions)
    return {
        COLUMN_SCHEMA: column_schema(schema, _COLUMNS | {metric.name: metric.title for metric in METRICS.values()}),
        COLUMN_LINEAGE: column_lineage({name: _LINEAGE.get(name, _MEASURED) for name in schema.names}),
        "rows": artifact.counts["rows"],
        "groups": artifact.counts["groups"],
        **{metric.name: round(figures[metric.name]["value"], 4) for metric in measured if metric.headline},
        "comparison": dg.MetadataValue.md("\n".join(f"- {sentence}" for sentence in sentences(report))),
        "smallest_detectable_gain": report["power"]["sentence"],
        "figures": _figures_table(measured, report),
        "differences": _differences_table(measured, report),
        "intervals": plots.intervals(shares, title="share of held-out rows, with confidence intervals"),
        "report": dg.MetadataValue.path(str(files.page)),
    }


def _figures_table(measured: Sequence[Metric], report: Mapping[str, Any]) -> dg.MetadataValue:
    """Metrics of the model with their intervals, and of the other predictors, named as in the report."""
    from fim_core.evaluation.formatting import show_figure

    bounds = ("value", "low", "high")
    rows = [
        {"metric": metric.title, "unit": metric.unit}
        | {key: show_figure(report["metrics"][metric.name][key], metric.unit) for key in bounds}
        | {
            name: show_figure(figure["value"], metric.unit) if (figure := other["metrics"].get(metric.name)) else ""
            for name, other in report["others"].items()
        }
        for metric in measured
    ]
    return table(dict.fromkeys(("metric", "unit", *bounds, *report["others"]), "string"), rows)


def _differences_table(measured: Sequence[Metric], report: Mapping[str, Any]) -> dg.MetadataValue:
    """Differences to the other predictors with intervals, marked better or worse where significant."""
    rows = [
        {"metric": metric.title}
        | {
            f"minus {name}": _difference(metric, other["differences"].get(metric.name), report["options"]["confidence"])
            for name, other in report["others"].items()
        }
        for metric in measured
    ]
    return table(dict.fromkeys(("metric", *(f"minus {name}" for name in report["others"])), "string"), rows)


def _difference(metric: Metric, difference: Mapping[str, Any] | None, confidence: float) -> str:
    from fim_core.evaluation.formatting import show_difference
    from fim_core.evaluation.verdicts import verdict

    if difference is None or difference["value"] is None:
        return ""
    value, low, high = (
        show_difference(difference[key], metric.unit, name_unit=key == "value") for key in ("value", "low", "high")
    )
    found = verdict(metric, difference, confidence)
    return f"{value} ({low} to {high})" + (f": {found}" if found in ("better", "worse") else "")
