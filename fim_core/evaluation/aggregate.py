"""Aggregation of scores into figures: ratios of sums, with bootstrap intervals over groups of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fim_core.evaluation.power import detectable_gain, detectable_share, fewest_groups
from fim_core.evaluation.scores import Columns
from fim_core.metrics.metric import Metric
from fim_core.metrics.registry import METRICS

_CELLS_AT_ONCE = 4_000_000

LENGTH_BUCKETS = ((0, "0 characters"), (10, "1–10"), (40, "11–40"), (160, "41–160"), (None, "over 160"))
"""Length in characters of the longest completion of each bucket, and its name."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its confidence interval, and the numbers of rows and groups it applies to. None: not finite."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """The paired difference of two figures.

    Attributes:
        detectable: the smallest true difference that can be told from chance (see power.py); None if none can.
    """

    detectable: float | None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Options of the bootstrap: number of resamples, confidence level, seed."""

    samples: int
    confidence: float
    seed: int


def estimates(columns: Columns, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Estimate every metric that applies to at least one row.

    Intervals are percentiles of a bootstrap that draws whole groups with replacement, since rows of one worksheet are
    alike (Cameron, Gelbach & Miller, "Bootstrap-based improvements for inference with clustered errors", 2008; Efron
    & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). Where a share is 0 or 1 on every row, all
    resamples are equal; its interval is the exact binomial one over groups (Clopper & Pearson, 1934). The interval of a
    share in a single group is 0 to 1.

    Args:
        columns: scores of one predictor.
        groups: group of each row, any labels.
        bootstrap: resamples, level and seed; equal options give equal intervals.

    Returns:
        Estimates by the metric's name.
    """
    metrics = [metric for metric in METRICS.values() if metric.over.name in columns]
    over, per = _sums(columns, metrics, groups)
    value = _ratio(over.sum(0), per.sum(0))
    low, high = _interval(np.concatenate([_ratio(*s) for s in _resampled(over, per, bootstrap)]), bootstrap)
    found = {}
    for i, metric in enumerate(metrics):
        if not np.isnan(value[i]):
            counted = int((per[:, i] > 0).sum())
            exact = _bounds_without_resampling(metric, value[i], counted, bootstrap)
            lower, upper = exact or (low[i], high[i])
            found[metric.name] = Estimate(*_finite(value[i], lower, upper), _rows(columns, metric), counted)
    return found


def differences(ours: Columns, theirs: Columns, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, Difference]:
    """Estimate ours minus theirs in every metric that both have, paired over the same rows.

    Each resample draws the same groups for both, so that the difficulty of rows cancels out. A single group gives no
    information on chance: the interval of a share is then the widest possible, -1 to 1.

    Returns:
        Differences by the metric's name.
    """
    metrics = [metric for metric in METRICS.values() if metric.over.name in ours and metric.over.name in theirs]
    # Ours, then theirs, along the last axis, so that one draw resamples both.
    pairs = zip(*(_sums(columns, metrics, groups) for columns in (ours, theirs)), strict=True)
    over, per = (np.concatenate(sums, axis=1) for sums in pairs)
    with np.errstate(invalid="ignore"):
        value = _minus(_ratio(over.sum(0), per.sum(0)))
        drawn = _minus(np.concatenate([_ratio(*sums) for sums in _resampled(over, per, bootstrap)]))
    low, high = _interval(drawn, bootstrap)
    counted = (per.reshape(len(per), 2, len(metrics)) > 0).any(1).sum(0)
    single_group = (counted == 1) & np.array([metric.unit == "share" for metric in metrics], bool)
    low, high = np.where(single_group, -1.0, low), np.where(single_group, 1.0, high)
    return {
        metric.name: Difference(
            *_finite(value[i], low[i], high[i]),
            n=(rows := _rows(ours, metric)),
            groups=int(counted[i]),
            detectable=_detectable(metric, drawn[:, i], rows, int(counted[i]), bootstrap),
        )
        for i, metric in enumerate(metrics)
        if not np.isnan(value[i])
    }


def _minus(side_by_side: np.ndarray) -> np.ndarray:
    """The first half of the last axis minus the second."""
    half = side_by_side.shape[-1] // 2
    return side_by_side[..., :half] - side_by_side[..., half:]


def _detectable(metric: Metric, drawn: np.ndarray, rows: int, groups: int, bootstrap: Bootstrap) -> float | None:
    """`drawn`: the difference in each resample."""
    drawn = drawn[~np.isnan(drawn)]
    if groups < fewest_groups(bootstrap.confidence) or len(drawn) < 2 or not np.isfinite(drawn).all():
        return None
    by_error = detectable_gain(float(drawn.std(ddof=1)), bootstrap.confidence)
    if metric.unit == "share" and (least := detectable_share(rows, groups, bootstrap.confidence)) is not None:
        return max(by_error, least)
    return by_error or None


def subset(columns: Columns, mask: np.ndarray) -> Columns:
    """The scores of the rows where `mask` is true."""
    return {name: values[mask] for name, values in columns.items()}


def length_bucket(completion: str) -> str:
    """The name of the bucket for the length of a gold completion."""
    return next(name for longest, name in LENGTH_BUCKETS if longest is None or len(completion) <= longest)


def _finite(value: float, low: float, high: float) -> tuple[float | None, float | None, float | None]:
    """The three values, or three times None unless all are finite."""
    return (float(value), float(low), float(high)) if np.isfinite([value, low, high]).all() else (None, None, None)


def _sums(columns: Columns, metrics: Sequence[Metric], groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators, summed in each group: two float64 [groups, metrics]."""
    places, members = np.unique(groups, return_inverse=True)
    over = np.zeros((len(places), len(metrics)))
    per = np.zeros_like(over)
    for i, metric in enumerate(metrics):
        numerator, denominator = _parts(columns, metric)
        over[:, i] = np.bincount(members, numerator, len(places))
        per[:, i] = np.bincount(members, denominator, len(places))
    return over, per


def _parts(columns: Columns, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    numerator = columns[metric.over.name]
    denominator = np.ones_like(numerator) if metric.per is None else columns[metric.per.name]
    applies = ~np.isnan(numerator) & ~np.isnan(denominator)
    return np.where(applies, numerator, 0.0), np.where(applies, denominator, 0.0)


def _rows(columns: Columns, metric: Metric) -> int:
    return int((_parts(columns, metric)[1] > 0).sum())


def _resampled(over: np.ndarray, per: np.ndarray, bootstrap: Bootstrap) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sums over resampled groups, [resamples, metrics] each, in chunks that keep memory bounded."""
    rng = np.random.default_rng(bootstrap.seed)
    groups = max(len(over), 1)
    chunk = max(1, _CELLS_AT_ONCE // groups)
    for start in range(0, bootstrap.samples, chunk):
        size = min(chunk, bootstrap.samples - start)
        times_drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=size)[:, : len(over)].astype(float)
        with np.errstate(invalid="ignore"):  # infinite losses; the figure is then reported as not finite
            yield times_drawn @ over, times_drawn @ per


def _ratio(over: np.ndarray, per: np.ndarray) -> np.ndarray:
    return np.divide(over, per, out=np.full(np.shape(over), np.nan), where=per > 0)


def _interval(drawn: np.ndarray, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - bootstrap.confidence) / 2
    bounds = np.full((2, drawn.shape[1]), np.nan)
    known = ~np.isnan(drawn).all(axis=0) & ~np.isinf(drawn).any(axis=0)
    bounds[:, known] = np.nanquantile(drawn[:, known], [tail, 1 - tail], axis=0)
    return bounds[0], bounds[1]


def _bounds_without_resampling(
    metric: Metric, value: float, groups: int, bootstrap: Bootstrap
) -> tuple[float, float] | None:
    if metric.unit != "share":
        return None
    if value not in (0.0, 1.0):
        return (0.0, 1.0) if groups == 1 else None
    reach = ((1 - bootstrap.confidence) / 2) ** (1 / groups)
    return (0.0, 1 - reach) if value == 0.0 else (reach, 1.0)
