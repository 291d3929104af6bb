"""What an editor shows of a model's completions: the completion filter, fitted to one half of the groups and measured on the
other."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fim_core.confidence.features import FEATURES, completion_features
from fim_core.confidence.filter import CompletionFilter
from fim_core.confidence.fit import FEWEST, CannotFit, fit_filter
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


@dataclass(frozen=True)
class Verdicts:
    """What users did with completions that the model still writes.

    Attributes:
        rejected: completions that users rejected (see rejected.py).
        accepted: row_ids of the held-out rows whose completion users accepted.
    """

    rejected: Sequence[CompletedRow]
    accepted: Collection[str]


def select(judged: Judged, options: EvaluationConfig, seed: int, verdicts: Verdicts | None = None) -> Selection:
    """Fit the filter of the model as `evaluation.show` asks, and draw its risk-coverage curve.

    Only completions that are not empty take part: an empty one shows nothing. Held-out rows have a completion that users accepted,
    kept or typed, so that prompts whose completion was rejected are missing among them. Rejected completions that the model still
    writes are added, to either half, if there are at least FEWEST of them and FEWEST accepted ones to fit the filter to.

    Args:
        judged: the held-out rows.
        options: of the evaluation.
        seed: of the bootstrap.
        verdicts: what users did; None without feedback.

    Returns:
        A selection whose report has the keys `rule` (as in the experiment), `reason` (why there is no filter, or None),
        `fitted_to` and `measured_on` (`rows`, `correct` and `groups`), `feedback` (None without feedback: `used`, and `fitted_to` and
        `measured_on` with the numbers of `accepted` and `rejected` completions), `threshold`, `curves` (by `correct` and `similar`:
        points `{coverage, precision, low, high}`), `shown` (the metrics of metrics/selection.py over all rows of `measured_on`),
        `areas` (area under the risk-coverage curve of the filter and of the log-probability alone) and `calibration`
        (`{confidence, correct, rows}` in bins of equal size).
    """
    written = [row for row in judged.completed[MODEL] if row is not None and _can_be_filtered(row)]
    feedback = _feedback(written, verdicts) if verdicts else None
    if verdicts and feedback and feedback["used"]:
        written += verdicts.rejected
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
        "feedback": feedback,
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
            np.array([not row.rejected and edit_similarity(row.gold, row.predicted) >= SIMILAR for row in rows], bool),
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
    return {
        "curves": curves,
        "shown": _what_is_shown(confidences >= found.threshold, rows.correct),
        "areas": areas,
        "calibration": _calibration(confidences, rows.correct),
    }


def _what_is_shown(shown: np.ndarray, correct: np.ndarray) -> dict[str, float | None]:
    """Metrics of metrics/selection.py; None where there is no row to divide by."""
    parts = {
        "shown_precision": correct[shown],
        "coverage": shown,
        "correct_hidden": ~shown[correct],
        "wrong_hidden": ~shown[~correct],
    }
    return {name: float(part.mean()) if len(part) else None for name, part in parts.items()}


def _feedback(written: Sequence[CompletedRow], verdicts: Verdicts) -> dict[str, Any]:
    """Numbers of completions that users accepted and rejected, by half, and whether they are enough."""
    accepted = [row for row in written if row.row.row_id in verdicts.accepted and row.is_correct]
    counts = {
        half: {
            "accepted": sum(fits(row) == is_fitted for row in accepted),
            "rejected": sum(fits(row) == is_fitted for row in verdicts.rejected),
        }
        for half, is_fitted in (("fitted_to", True), ("measured_on", False))
    }
    return {"used": min(counts["fitted_to"].values()) >= FEWEST, **counts}


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
