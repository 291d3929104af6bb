"""The report of an evaluation: `report.json`, a stable format, and `predictions.parquet`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.config.evaluation import EvaluationConfig
from fim_core.evaluation.aggregate import LENGTH_BUCKETS, Bootstrap, differences, estimates, length_bucket, subset
from fim_core.evaluation.power import power_of
from fim_core.evaluation.predictor_names import BASE, CHAMPION, MODEL
from fim_core.evaluation.scores import Columns, Scores
from fim_core.folders.report import ReportFolder
from fim_core.metrics.latency import LATENCIES
from fim_core.metrics.registry import METRICS
from fim_core.metrics.rows import EvalRow, Prediction

SCHEMA_VERSION = 3

_WITH_COLUMNS = {MODEL: "", BASE: "base_", CHAMPION: "champion_"}
"""Predictors whose completions are written to predictions.parquet, and the prefix of their columns."""

_LIBRARIES = ("torch", "transformers", "sqlglot", "duckdb", "rapidfuzz", "numpy")


def build_report(
    rows: Sequence[EvalRow],
    predictions: Mapping[str, Sequence[Prediction | None]],
    scores: Scores,
    *,
    name: str,
    options: EvaluationConfig,
    seed: int,
    show_samples: bool,
    held_out: int,
    unavailable: Mapping[str, str] | None = None,
    show: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compute all figures of an evaluation.

    Args:
        rows: the evaluated rows.
        predictions: by predictor (see predictor_names.py), `model` included.
        scores: measures of the predictions.
        name: name of the experiment.
        options: options of the evaluation.
        seed: seed of the bootstrap.
        show_samples: whether examples contain texts.
        held_out: number of held-out rows, of which `rows` may be a sample.
        unavailable: reasons by predictor that is missing.
        show: report of the completion filter (see selection.py).
        latency: measured latency (see `fim_core.serving.latency.measure_latency`).

    Returns:
        A dict with the keys

        - `metrics`: figures of the model, each `{value, low, high, n, groups}`;
        - `others`, by predictor: `rows` (number of rows that it could read), its `metrics`, and `differences`: model minus
          predictor, paired over these rows, each also with `detectable`;
        - `unavailable`: why a predictor is missing;
        - `show`: the completion filter and its risk-coverage curve (see selection.py);
        - `latency`: percentiles, and how they were measured; None if they were not;
        - `power`: the smallest gain that can be detected (see power.py);
        - `by_type` and `by_length`: `{rows, metrics, others}` of each slice;
        - `counts`, `definitions` (of the metrics), `options`, `versions`;
        - `examples`: with texts if `show_samples`, else with row_ids.
    """
    bootstrap = Bootstrap(options.bootstrap_samples, options.confidence, seed)
    groups = np.array([row.group for row in rows])
    kinds = np.array([row.type for row in rows])
    lengths = np.array([length_bucket(row.completion) for row in rows])
    ours = scores.columns[MODEL]
    figures = _figures(scores, groups, bootstrap)
    size = {"held_out": held_out, "evaluated": len(rows), "groups": len(set(groups))}
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": name,
        **figures,
        "unavailable": dict(unavailable or {}),
        "show": dict(show or {}),
        "latency": latency and dict(latency),
        "power": power_of(figures["others"], size),
        "by_type": _slices(scores, kinds, sorted(set(kinds)), groups, bootstrap),
        "by_length": _slices(scores, lengths, [name for _, name in LENGTH_BUCKETS], groups, bootstrap),
        "counts": size
        | {
            "by_type": {kind: int((kinds == kind).sum()) for kind in sorted(set(kinds))},
            "gold_parses": int((~np.isnan(ours["parses"])).sum()),
            "gold_binds": int((~np.isnan(ours["binds"])).sum()),
            "execution": dict(scores.executions),
            "over_limit": {name: dict(counts) for name, counts in scores.over_limit.items()},
        },
        "definitions": {
            name: {
                "title": metric.title,
                "meaning": metric.meaning,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
            for name, metric in METRICS.items()
        }
        | {
            name: {"title": each.title, "meaning": each.meaning, "unit": "ms", "higher_is_better": False}
            for name, each in LATENCIES.items()
        },
        "examples": _examples(rows, predictions, scores, options.examples, show_samples),
        "options": options.model_dump(mode="json") | {"seed": seed},
        "versions": {library: metadata.version(library) for library in _LIBRARIES},
    }


def write_report(output: Path, report: Mapping[str, Any]) -> None:
    """Write `report.json`."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    ReportFolder(output).report.write_text(text + "\n", encoding="utf-8")


def write_predictions(
    output: Path, rows: Sequence[EvalRow], predictions: Mapping[str, Sequence[Prediction | None]], scores: Scores
) -> None:
    """Write `predictions.parquet`: for each row, the model's completion and every measure of it.

    Measures that do not apply to a row are null. Columns with the prefix `base_` and `champion_` hold the completions and
    measures of the base model and the champion; they are null in rows that the champion could not read.
    """
    table = {
        "row_id": pa.array([row.row_id for row in rows], pa.string()),
        "type": pa.array([row.type for row in rows], pa.string()),
        "group": pa.array([row.group for row in rows], pa.string()),
        "split": pa.array(["eval"] * len(rows), pa.string()),
        "completion": pa.array([row.completion for row in rows], pa.string()),
    }
    for name, lead in _WITH_COLUMNS.items():
        if name in predictions:
            texts = [None if prediction is None else prediction.text for prediction in predictions[name]]
            table[f"{lead}prediction"] = pa.array(texts, pa.string())
            table |= {lead + column: pa.array(v, from_pandas=True) for column, v in scores.columns[name].items()}
    pq.write_table(pa.table(table), ReportFolder(output).predictions, compression="zstd")


def _figures(scores: Scores, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    ours = scores.columns[MODEL]
    others = {}
    for name, theirs in scores.columns.items():
        if name != MODEL:
            read = scores.read[name]
            paired = differences(subset(ours, read), subset(theirs, read), groups[read], bootstrap)
            others[name] = {
                "rows": int(read.sum()),
                "metrics": _plain(estimates(theirs, groups, bootstrap)),
                "differences": _plain(paired),
            }
    return {"metrics": _plain(estimates(ours, groups, bootstrap)), "others": others}


def _slices(
    scores: Scores, labels: np.ndarray, names: Sequence[str], groups: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    found = {}
    for name in names:
        mask = labels == name
        if mask.any():
            part = _of_rows(scores, mask)
            found[str(name)] = {"rows": int(mask.sum()), **_figures(part, groups[mask], bootstrap)}
    return found


def _of_rows(scores: Scores, mask: np.ndarray) -> Scores:
    columns = {name: subset(columns, mask) for name, columns in scores.columns.items()}
    return Scores(columns, {name: read[mask] for name, read in scores.read.items()})


def _plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(estimate) for name, estimate in figures.items()}


def _examples(
    rows: Sequence[EvalRow],
    predictions: Mapping[str, Sequence[Prediction | None]],
    scores: Scores,
    number: int,
    show_samples: bool,
) -> dict[str, list[dict[str, Any]]]:
    """The worst, the best and the changed completions, `number` in total; with texts only if `show_samples`."""
    ours = scores.columns[MODEL]
    similarity, gold_chars = ours["edit_similarity"], ours["gold_chars"]
    order = {
        "worst": np.lexsort((-gold_chars, similarity))[: int((ours["exact_match_sql"] == 0).sum())],
        "best": np.lexsort((-gold_chars, -ours["exact_match_sql"]))[: int((ours["exact_match_sql"] == 1).sum())],
    }
    for other in (BASE, CHAMPION):
        if other in scores.columns:
            gained = ours["exact_match_sql"] - scores.columns[other]["exact_match_sql"]
            by_gain = np.lexsort((gold_chars, gained))
            # NaN, for rows that the other could not read, is not greater than 0.
            order[f"changed_from_{other}"] = by_gain[np.abs(gained[by_gain]) > 0]
    each = number // len(order)
    return {
        kind: [_example(rows[i], i, predictions, ours, show_samples) for i in places[:each]]
        for kind, places in order.items()
    }


def _example(
    row: EvalRow, place: int, predictions: Mapping[str, Sequence[Prediction | None]], measures: Columns, show_text: bool
) -> dict[str, Any]:
    shown = ("exact_match_sql", "edit_similarity", "parses", "binds", "prefix_match_chars")
    values = {name: None if np.isnan(measures[name][place]) else float(measures[name][place]) for name in shown}
    example: dict[str, Any] = {"row_id": row.row_id, "type": row.type, **values}
    if show_text:
        example |= {
            "prefix": row.prefix[-300:],
            "suffix": row.suffix[:150],
            "completion": row.completion,
        }
        for name, lead in _WITH_COLUMNS.items():
            prediction = predictions[name][place] if name in predictions else None
            if prediction is not None:
                example[f"{lead}prediction"] = prediction.text
    return example
