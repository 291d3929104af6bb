"""Metadata of `evaluation_report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow.parquet as pq

from fim_assets.metadata import plots
from fim_assets.metadata.tables import table
from fim_core.config import Experiment
from fim_core.folders.report import ReportFolder
from fim_core.store import Artifact, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from fim_core.evaluation.page.background import Version
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
_PLOTTED = ("exact_match_sql", "edit_similarity", "parses", "binds", "loss")
"""Metrics that Dagster plots by time of materialization."""
_MOST_VERSIONS = 10


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """The whole report, the gate's verdict, metrics with intervals, and the comparisons in words.

    The columns of the predictions are a table at the end: the UI would show a column schema above the metrics.
    """
    from fim_core.evaluation.page import latency_sentence, render_markdown, shares
    from fim_core.evaluation.verdicts import sentences
    from fim_core.metrics.registry import METRICS
    from fim_core.pipeline.report_background import background_of

    files = ReportFolder(artifact.path)
    report, background = files.read(), background_of(artifact, experiment, store)
    figures, parts = report["metrics"], render_markdown(report, background)
    measured = [metric for metric in METRICS.values() if figures.get(metric.name, {}).get("value") is not None]
    return {
        "report": dg.MetadataValue.md(parts.pop("report")),
        "gate": background.verdict(),
        **{metric.name: round(figures[metric.name]["value"], 4) for metric in measured if metric.name in _PLOTTED},
        "intervals": plots.shares(shares(report)),
        "exact_match_by_version": plots.versions(background.trend(experiment.name)),
        "comparison": dg.MetadataValue.md("\n".join(f"- {sentence}" for sentence in sentences(report))),
        "smallest_detectable_gain": report["power"]["sentence"],
        "figures": _figures_table(measured, report),
        "differences": _differences_table(measured, report),
        **{name: dg.MetadataValue.md(text) for name, text in parts.items()},
        "versions": _versions_table(background.versions),
        **({"latency": latency} if (latency := latency_sentence(report)) else {}),
        "rows": f"{artifact.counts['rows']:,} in {artifact.counts['groups']:,} groups",
        "page": dg.MetadataValue.path(str(files.page)),
        "predictions": _columns_table(pq.read_schema(files.predictions)),
    }


def _columns_table(schema: pa.Schema) -> dg.MetadataValue:
    """Columns of predictions.parquet that are described, and the prefixes of the others."""
    from fim_core.metrics.registry import METRICS

    described = _COLUMNS | {metric.name: f"{metric.title}: {metric.meaning}" for metric in METRICS.values()}
    rows = [{"column": name, "meaning": described[name]} for name in schema.names if name in described]
    return table({"column": "string", "meaning": "string"}, rows)


def _versions_table(versions: Sequence[Version]) -> dg.MetadataValue:
    """The newest versions of this and other experiments, newest first."""
    from fim_core.evaluation.formatting import show_figure

    decided = {True: "promoted", False: "refused", None: "not decided yet"}
    rows = [
        {
            "version": f"{version.place}: {version.version}",
            "experiment": version.experiment,
            "made (UTC)": version.made,
            "exact match, SQL tokens": show_figure(version.figure["value"], "share"),
            "gate": decided[version.promoted],
        }
        for version in reversed(versions[-_MOST_VERSIONS:])
    ]
    columns = ("version", "experiment", "made (UTC)", "exact match, SQL tokens", "gate")
    return table(dict.fromkeys(columns, "string"), rows)


def _figures_table(measured: Sequence[Metric], report: Mapping[str, Any]) -> dg.MetadataValue:
    """Metrics of the model with their intervals, and of the other predictors, named as in the report."""
    from fim_core.evaluation.formatting import show_figure, show_with_unit

    rows = []
    for metric in measured:
        ours = report["metrics"][metric.name]
        low, high = (show_figure(ours[key], metric.unit) for key in ("low", "high"))
        others = {
            name: show_figure(figure["value"], metric.unit) if (figure := other["metrics"].get(metric.name)) else ""
            for name, other in report["others"].items()
        }
        value = show_with_unit(ours["value"], metric.unit)
        rows.append({"metric": metric.title, "model": f"{value} ({low} to {high})", **others})
    return table(dict.fromkeys(("metric", "model", *report["others"]), "string"), rows)


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
