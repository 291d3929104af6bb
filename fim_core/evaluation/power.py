"""The smallest gain that an evaluation can tell from chance, given its rows and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from fim_core.evaluation.names import BASE, CHAMPION, CONSTANTS
from fim_core.metrics.registry import METRICS

METRIC = "exact_match_sql"
"""What the default gate decides on, and so what the power of a report is about."""

POWER = 0.8
"""Share of evaluations in which a gain of the stated size passes the gate; the usual choice (Cohen, 1988)."""

ENOUGH = 0.05
"""A report that cannot see a gain of this size in METRIC warns."""


def detectable_gain(error: float, confidence: float) -> float:
    """The true difference whose interval lies wholly above 0 in POWER of all evaluations.

    `(z_(1+confidence)/2 + z_POWER) * error`, the minimum detectable effect (Bloom, "Minimum Detectable Effects", 1995).

    Args:
        error: standard error of the paired difference.
        confidence: level of the interval.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)) * error


def detectable_share(rows: int, groups: int, confidence: float) -> float | None:
    """The smallest gain in a share that can be seen at all: by a model that gains rows and loses none.

    Exact, for rows that gain independently of each other: the bootstrap's interval lies above 0 when `k` groups have
    gained, where resamples without any of these `k` are rarer than the lower tail. The result is the share of rows that
    must gain for at least `k` groups to do so with probability POWER. It bounds `detectable_gain` from below, whose
    error is too small, or 0, where hardly any row differs.

    Args:
        rows, groups: what the share is about.
        confidence: level of the interval.

    Returns:
        None where there are too few groups for any gain to show.
    """
    if groups < fewest_groups(confidence):
        return None
    tail = (1 - confidence) / 2
    needed = next(k for k in range(1, groups + 1) if (1 - k / groups) ** groups < tail)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_least(needed, groups, middle) < POWER:
            low = middle
        else:
            high = middle
    return 1 - (1 - high) ** (groups / rows)


def fewest_groups(confidence: float) -> int:
    """Groups below which no difference is told from chance: by the sign test, not even where all of them agree."""
    return math.ceil(math.log2(2 / (1 - confidence)))


def power_of(others: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of its own power.

    Args:
        others: the predictors that the model is compared with, as in the report.
        counts: `evaluated` and `held_out` rows, and `groups`.

    Returns:
        `metric`; `smallest_gain`, by predictor, and the largest of these as `at_least` (None: no gain can be seen);
        `enough`, whether that is at most ENOUGH; `sentence`, for people, with the cure where it is not.
    """
    compared = {
        name: others[name]["differences"][METRIC]["detectable"]
        for name in (BASE, *CONSTANTS, CHAMPION)
        if name in others and METRIC in others[name]["differences"]
    }
    worst = None if not compared or None in compared.values() else max(compared.values())
    enough = worst is not None and worst <= ENOUGH
    if not compared:
        sentence = (
            f"The held-out rows hold nothing that {METRICS[METRIC].title} measures, so the gate sees no gain in it."
        )
    else:
        sentence = _sentence(worst, counts) + ("" if enough else f" {_cure(counts)}")
    return {
        "metric": METRIC,
        "smallest_gain": compared,
        "at_least": worst,
        "enough": enough,
        "sentence": sentence,
    }


def _at_least(successes: int, trials: int, chance: float) -> float:
    """Probability of at least so many successes."""
    return 1 - sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes))


def _sentence(worst: float | None, counts: Mapping[str, Any]) -> str:
    title, measured = METRICS[METRIC].title, f"{counts['evaluated']:,} rows in {counts['groups']:,} groups"
    if worst is None:
        return f"On {measured}, no gain in {title} can be told from chance."
    return (
        f"On {measured}, the smallest gain in {title} that the gate can see is about {100 * worst:.1f} points "
        f"(such a gain passes in {POWER:.0%} of evaluations)."
    )


def _cure(counts: Mapping[str, Any]) -> str:
    larger = f"A gain of {100 * ENOUGH:.0f} points should show"
    if counts["evaluated"] < counts["held_out"]:
        return f"{larger}: raise evaluation.max_rows ({counts['held_out']:,} rows are held out)."
    return f"{larger}: hold out more rows of more groups, by data.eval_fraction or data.eval_sources."
