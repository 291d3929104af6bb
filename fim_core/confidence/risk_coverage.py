"""Risk-coverage curves: the precision of the most confident completions, by the share of completions that is shown.

El-Yaniv & Wiener, "On the foundations of noise-free selective classification", 2010; Geifman & El-Yaniv, "Selective
classification for deep neural networks", 2017. Risk is 1 - precision.
"""

from __future__ import annotations

import numpy as np

COVERAGES = np.linspace(0.05, 1, 20)


def precisions(confidences: np.ndarray, correct: np.ndarray, coverages: np.ndarray = COVERAGES) -> np.ndarray:
    """The precision of the most confident completions at each coverage: float64 [coverages].

    Completions of equal confidence are shown in expectation: at a coverage that ends among them, each of them counts with
    the share that is shown.

    Args:
        confidences: float64 [rows], at least one row.
        correct: bool or float64 [rows].
        coverages: shares of rows, above 0 and up to 1.
    """
    shown = np.arange(1, len(confidences) + 1)
    number = np.maximum(coverages * len(confidences), 1)
    return np.interp(number, shown, _cumulated(confidences, correct)) / number


def area_under_risk(confidences: np.ndarray, correct: np.ndarray) -> float:
    """The mean of the risk over all coverages k / rows (AURC); lower is better. Without any skill it is the overall risk."""
    shown = np.arange(1, len(confidences) + 1)
    return float((1 - _cumulated(confidences, correct) / shown).mean())


def precision_bounds(
    confidences: np.ndarray, correct: np.ndarray, groups: np.ndarray, *, samples: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of `precisions` at COVERAGES, by a bootstrap that draws whole groups.

    Args:
        confidences, correct, groups: [rows].
        samples: number of resamples.
        level: for example 0.95.
        seed: equal seeds give equal intervals.
    """
    rng = np.random.default_rng(seed)
    _, members = np.unique(groups, return_inverse=True)
    rows_of = [np.flatnonzero(members == group) for group in range(members.max() + 1)]
    drawn = []
    for _ in range(samples):
        rows = np.concatenate([rows_of[group] for group in rng.integers(len(rows_of), size=len(rows_of))])
        drawn.append(precisions(confidences[rows], correct[rows]))
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def _cumulated(confidences: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """The expected number of correct ones among the k most confident completions, for each k from 1 on."""
    _, place, counts = np.unique(-confidences, return_inverse=True, return_counts=True)
    share = np.bincount(place, np.asarray(correct, float)) / counts
    return np.cumsum(np.repeat(share, counts))
