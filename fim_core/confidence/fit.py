"""Fitting of the completion filter to completions whose correctness is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fim_core.confidence.features import FEATURES
from fim_core.confidence.filter import CompletionFilter

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FOLDS = 5
FEWEST = 20
"""Fewest correct and fewest wrong completions to fit a filter to."""


class CannotFit(Exception):
    """There are not enough completions to fit a filter to; the message is the reason, for people."""


def fit_filter(
    features: np.ndarray,
    correct: np.ndarray,
    groups: np.ndarray,
    *,
    dialect: str,
    lose_accepted: float | None = None,
    precision: float | None = None,
) -> CompletionFilter:
    """Fit a logistic regression of `correct`, and choose the threshold for a wanted share of lost completions or precision.

    The threshold is chosen on confidences of rows that the regression was not fitted to (cross-validation over groups),
    since those of its own rows are too good.

    Args:
        features: float64 [rows, FEATURES].
        correct: bool [rows].
        groups: [rows]; rows of one group are alike and stay together.
        dialect: of the filter.
        lose_accepted: largest share of the correct completions that may be hidden, see `_threshold_by_loss`.
        precision: least share of correct ones among the shown; one of the two must be given.

    Raises:
        CannotFit: there are fewer than FEWEST correct or wrong rows, or fewer than 2 groups with both.
    """
    model, unseen = fit_regression(features, correct, groups)
    threshold = choose_threshold(unseen, correct, lose_accepted=lose_accepted, precision=precision)
    scaler, regression = model[0], model[-1]
    weights = regression.coef_[0] / scaler.scale_
    return CompletionFilter(
        weights=dict(zip(FEATURES, weights.tolist(), strict=True)),
        bias=float(regression.intercept_[0] - weights @ scaler.mean_),
        threshold=threshold,
        dialect=dialect,
    )


def fit_regression(features: np.ndarray, correct: np.ndarray, groups: np.ndarray) -> tuple[Pipeline, np.ndarray]:
    """Fit a logistic regression of standardized features; see `fit_filter` for the arguments.

    Returns:
        The scaler and the regression, and the confidence of each row by a regression that was not fitted to its group.

    Raises:
        CannotFit: see `fit_filter`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, right = len(correct), int(correct.sum())
    if min(right, rows - right) < FEWEST:
        raise CannotFit(
            f"{right} of the {rows} completions to fit it to are correct; it needs at least {FEWEST} correct and {FEWEST} "
            "wrong ones"
        )
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        raise CannotFit("all completions to fit it to belong to one group")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    splits = list(GroupKFold(folds).split(features, correct, groups))
    if any(len(np.unique(correct[train])) < 2 for train, _ in splits):
        raise CannotFit("the correct completions to fit it to belong to one group")
    unseen = cross_val_predict(model, features, correct, cv=splits, method="predict_proba")[:, 1]
    return model.fit(features, correct), unseen


def choose_threshold(
    confidences: np.ndarray, correct: np.ndarray, *, lose_accepted: float | None = None, precision: float | None = None
) -> float:
    """The threshold for a wanted share of lost completions or for a wanted precision; see `fit_filter`.

    Raises:
        CannotFit: no threshold does that.
    """
    if lose_accepted is not None:
        return _threshold_by_loss(confidences[correct], lose_accepted)
    assert precision is not None
    return _threshold_by_precision(confidences, correct, precision)


def _threshold_by_loss(confidences: np.ndarray, share: float) -> float:
    """The largest threshold that hides at most `share` of new correct completions, in expectation.

    The k-th smallest of n exchangeable confidences is above a new one with probability k / (n + 1), so k is the largest
    number with k / (n + 1) <= share (split conformal prediction; Angelopoulos & Bates, "A gentle introduction to conformal
    prediction", 2021, section 1). For example, 39 correct completions and 5% give k = 2.

    Raises:
        CannotFit: k is 0.
    """
    k = math.floor(share * (len(confidences) + 1) + 1e-9)  # 0.29 * 100 is less than 29
    if k == 0:
        raise CannotFit(
            f"{len(confidences)} correct completions are too few to choose a threshold that loses at most {share:.1%} of them"
        )
    return float(np.sort(confidences)[k - 1])


def _threshold_by_precision(confidences: np.ndarray, correct: np.ndarray, precision: float) -> float:
    """The smallest threshold from which on at least a share `precision` of the shown completions is correct, one more wrong
    completion included: without it, the threshold that happens to do best is too low for new completions.

    Raises:
        CannotFit: no threshold that shows FEWEST completions reaches that precision.
    """
    order = np.argsort(-confidences, kind="stable")
    ranked = confidences[order]
    reached = np.cumsum(correct[order]) / np.arange(2, len(order) + 2) >= precision
    # A threshold shows all rows of equal confidence.
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    places = np.flatnonzero(reached & last_of_equals)
    if not len(places) or places[-1] + 1 < FEWEST:
        raise CannotFit(f"no threshold reaches a precision of {precision:.1%}")
    return float(ranked[places[-1]])
