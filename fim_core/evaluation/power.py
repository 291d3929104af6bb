"""Statistical power: the smallest gain that an evaluation can tell from chance, given its rows and groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from fim_core.evaluation.predictor_names import BASE, CHAMPION, CONSTANTS
from fim_core.metrics.registry import METRICS

METRIC = "exact_match_sql"
"""The metric that the default gate decides on; the power of a report refers to it."""

POWER = 0.8
"""Share of evaluations in which a gain of the stated size passes the gate; the usual choice (Cohen, 1988)."""

ENOUGH = 0.05
"""A report warns if it cannot detect a gain of this size in METRIC."""


def detectable_gain(error: float, confidence: float) -> float:
    """The true difference whose interval lies wholly above 0 in a share of POWER of all evaluations.

    `(z_(1+confidence)/2 + z_POWER) * error`, the minimum detectable effect (Bloom, "Minimum Detectable Effects", 1995).

    Args:
        error: standard error of the paired difference.
        confidence: level of the interval.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)) * error


def detectable_share(rows: int, groups: int, confidence: float) -> float | None:
    """The smallest detectable gain in a share, for a model that gains rows and loses none.

    Exact if rows gain independently of each other: the bootstrap interval lies above 0 once `k` groups have gained, where
    `k` is the smallest number such that resamples without any of the `k` are rarer than the lower tail. The result is the
    share of rows that must gain for at least `k` groups to gain with probability POWER. It is a lower bound for
    `detectable_gain`, whose standard error is too small, or 0, where hardly any row differs.

    Args:
        rows, groups: numbers of rows and groups that the share is computed over.
        confidence: level of the interval.

    Returns:
        None where the groups are too few to detect any gain.
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
    """The number of groups below which no difference can be told from chance: by the sign test, even if all agree."""
    return math.ceil(math.log2(2 / (1 - confidence)))


def power_of(others: Mapping[str, Mapping[str, Any]], counts: Mapping[str, Any]) -> dict[str, Any]:
    """The section `power` of a report.

    Args:
        others: the section `others` of the report.
        counts: `evaluated` and `held_out` rows, and `groups`.

    Returns:
        `metric`; `smallest_gain` by predictor; `at_least`, the largest of these (None: no gain can be detected); `enough`:
        whether that is at most ENOUGH; `sentence`: for people, with advice where it is not.
    """
    compared = {
        name: others[name]["differences"][METRIC]["detectable"]
        for name in (BASE, *CONSTANTS, CHAMPION)
        if name in others and METRIC in others[name]["differences"]
    }
    worst = None if not compared or None in compared.values() else max(compared.values())
    enough = worst is not None and worst <= ENOUGH
    if not compared:
        sentence = f"{METRICS[METRIC].title} applies to none of the held-out rows, so the gate cannot detect a gain."
    else:
        sentence = _sentence(worst, counts) + ("" if enough else f" {_advice(counts)}")
    return {
        "metric": METRIC,
        "smallest_gain": compared,
        "at_least": worst,
        "enough": enough,
        "sentence": sentence,
    }


def _at_least(successes: int, trials: int, chance: float) -> float:
    """The probability of at least `successes` successes in independent trials."""
    return 1 - sum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes))


def _sentence(worst: float | None, counts: Mapping[str, Any]) -> str:
    title, measured = METRICS[METRIC].title, f"{counts['evaluated']:,} rows in {counts['groups']:,} groups"
    if worst is None:
        return f"On {measured}, no gain in {title} can be told from chance."
    return (
        f"On {measured}, the smallest gain in {title} that the gate can detect is about {100 * worst:.1f} points "
        f"(it passes in {POWER:.0%} of evaluations)."
    )


def _advice(counts: Mapping[str, Any]) -> str:
    goal = f"To detect a gain of {100 * ENOUGH:.0f} points"
    if counts["evaluated"] < counts["held_out"]:
        return f"{goal}, raise evaluation.max_rows ({counts['held_out']:,} rows are held out)."
    return f"{goal}, hold out more rows from more groups: set data.eval_fraction or data.eval_sources."
