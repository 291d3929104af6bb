"""What an editor shows of a model's completions: the completion filter, fitted to one half of the groups and measured on the
other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fim_core.confidence.features import FEATURES, completion_features
from fim_core.confidence.filter import CompletionFilter
from fim_core.confidence.fit import CannotFit, fit_filter
from fim_core.confidence.risk_coverage import COVERAGES, area_under_risk, precision_bounds, precisions
from fim_core.config.evaluation import EvaluationConfig
from fim_core.evaluation.predictor_names import MODEL
from fim_core.evaluation.scores import Judged
from fim_core.metrics.abstention import is_empty
from fim_core.metrics.rows import CompletedRow
from fim_core.metrics.text import edit_similarity

SIMILAR = 0.8
"""Least edit similarity of a completion that saves typing although it is not correct."""

CALIBRATION_BINS = 5


@dataclass(frozen=True)
class Selection:
    """The filter of the model, and what it does on rows that it was not fitted to.

    Attributes:
        filter: None shows every completion.
        report: see `select`.
    """

    filter: CompletionFilter | None
    report: dict[str, Any]


def select(judged: Judged, options: EvaluationConfig, seed: int) -> Selection:
    """Fit the filter of the model as `evaluation.show` asks, and draw its risk-coverage curve.

    Only completions that are not empty take part: an empty one shows nothing.

    Returns:
        A selection whose report has the keys `rule` (as in the experiment), `reason` (why there is no filter, or None),
        `fitted_to` and `measured_on` (`rows`, `correct` and `groups`), `threshold`, `curves` (by `correct` and `similar`: points
        `{coverage, precision, low, high}`), `areas` (area under the risk-coverage curve of the filter and of the log-probability alone)
        and `calibration` (`{confidence, correct, rows}` in bins of equal size).
    """
    written = [row for row in judged.completed[MODEL] if row is not None and _can_be_filtered(row)]
    fit, rest = _Half.of([r for r in written if fits(r)]), _Half.of([r for r in written if not fits(r)])
    found, reason = None, None
    if options.show is not None:
        try:
            found = fit_filter(
                fit.features,
                fit.correct,
                fit.groups,
                dialect=options.dialect,
                **options.show.model_dump(),
            )
        except CannotFit as error:
            reason = str(error)
    report = {
        "rule": options.show.model_dump(exclude_none=True) if options.show else None,
        "reason": reason,
        "fitted_to": fit.size,
        "measured_on": rest.size,
        "threshold": found.threshold if found else None,
        **(_curves(rest, found, options, seed) if found and rest.size["rows"] else {}),
    }
    return Selection(found, report)


def with_shown(judged: Judged, filters: Mapping[str, CompletionFilter | None]) -> Judged:
    """Note in the rows of served predictors whether an editor would show their predictions.

    Args:
        judged: completed rows.
        filters: by predictor; None shows every completion.
    """
    noted = {
        name: [row and replace(row, shown=_shown(row, filters[name])) for row in rows] if name in filters else rows
        for name, rows in judged.completed.items()
    }
    return replace(judged, completed=noted)


def fits(row: CompletedRow) -> bool:
    """Whether the filter is fitted to a row, and not measured on it: half of the groups, by hash, for every model alike."""
    return hashlib.sha256(b"show:" + row.row.group.encode()).digest()[0] % 2 == 0


@dataclass(frozen=True)
class _Half:
    """Features [rows, FEATURES], labels [rows] and groups [rows] of completions."""

    features: np.ndarray
    correct: np.ndarray
    similar: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[CompletedRow]) -> _Half:
        return cls(
            np.array([_features(row) for row in rows]).reshape(len(rows), len(FEATURES)),
            np.array([row.is_correct for row in rows], bool),
            np.array([edit_similarity(row.gold, row.predicted) >= SIMILAR for row in rows], bool),
            np.array([row.row.group for row in rows]),
        )

    @property
    def size(self) -> dict[str, int]:
        return {"rows": len(self.correct), "correct": int(self.correct.sum()), "groups": len(set(self.groups))}


def _curves(rows: _Half, found: CompletionFilter, options: EvaluationConfig, seed: int) -> dict[str, Any]:
    confidences = found.confidence(rows.features)
    scores = {"filter": confidences, "logprob": rows.features[:, FEATURES.index("logprob")]}
    curves = {}
    for name, labels in (("correct", rows.correct), ("similar", rows.similar)):
        low, high = precision_bounds(
            confidences, labels, rows.groups, samples=options.bootstrap_samples, level=options.confidence, seed=seed
        )
        points = zip(COVERAGES, precisions(confidences, labels), low, high, strict=True)
        curves[name] = [dict(zip(("coverage", "precision", "low", "high"), map(float, p), strict=True)) for p in points]
    areas = {name: area_under_risk(values, rows.correct) for name, values in scores.items()}
    return {"curves": curves, "areas": areas, "calibration": _calibration(confidences, rows.correct)}


def _calibration(confidences: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    bins = np.array_split(np.argsort(confidences, kind="stable"), min(CALIBRATION_BINS, len(correct)))
    return [
        {"confidence": float(confidences[rows].mean()), "correct": float(correct[rows].mean()), "rows": len(rows)}
        for rows in bins
    ]


def _can_be_filtered(row: CompletedRow) -> bool:
    return bool(row.prediction.logprobs) and not is_empty(row.predicted)


def _shown(row: CompletedRow, found: CompletionFilter | None) -> bool | None:
    if fits(row):
        return None
    if found is None or not _can_be_filtered(row):
        return True
    return bool(found.shows(_features(row)))


def _features(row: CompletedRow) -> np.ndarray:
    return completion_features(
        row.prediction.logprobs or [],
        parses=row.sql.get("statement_parses"),
        binds=row.sql.get("statement_binds"),
    )
