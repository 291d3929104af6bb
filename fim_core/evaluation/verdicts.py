"""Verdicts on a model against the base model, the constants and the champion, and the sentences that state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fim_core.evaluation.formatting import show_difference, show_figure, show_with_unit
from fim_core.evaluation.power import METRIC, fewest_groups
from fim_core.evaluation.predictor_names import BASE, CHAMPION, CONSTANTS, TITLES
from fim_core.metrics.metric import Metric
from fim_core.metrics.registry import METRICS

Figure = Mapping[str, Any]
"""`{value, low, high, n, groups}` of a report; of a difference also `detectable`."""

Verdict = Literal["better", "worse", "equal", "unclear", "too few groups"]

EXPLANATIONS: dict[Verdict, str] = {
    "better": "the gain is larger than chance",
    "worse": "the loss is larger than chance",
    "equal": "there is no difference",
    "unclear": "a difference this small can be chance",
    "too few groups": "so few groups cannot tell a difference from chance",
}


def verdict(metric: Metric, difference: Figure, confidence: float) -> Verdict:
    """Judge a model by its paired difference to another.

    `better` and `worse` require the whole interval on one side of 0, and enough groups for the interval to be meaningful.
    """
    low, high = difference["low"], difference["high"]
    if low is None:
        return "unclear"
    if low == high == 0:
        return "equal"
    if difference["groups"] < fewest_groups(confidence):
        return "too few groups"
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == metric.higher_is_better else "worse"


def comparison(metric: Metric, ours: Figure, rivals: Mapping[str, tuple[Figure, Figure]], confidence: float) -> str:
    """State the figures of a model and of its rivals, with the paired differences.

    Args:
        metric: the metric that is compared.
        ours: the model's figure.
        rivals: by predictor, its figure and the model's difference to it.
        confidence: level of the intervals.
    """
    unit = metric.unit
    parts = [f"{metric.title}: {show_with_unit(ours['value'], unit)}"]
    for name, (theirs, difference) in rivals.items():
        low, high = (show_difference(difference[bound], unit, name_unit=False) for bound in ("low", "high"))
        parts.append(
            f"{TITLES[name]} {show_figure(theirs['value'], unit)}: {show_difference(difference['value'], unit)} "
            f"({low} to {high} with {confidence:.0%} confidence)"
        )
    _, difference = next(iter(rivals.values()))
    lower = "" if metric.higher_is_better else "; lower is better"
    return f"{', '.join(parts)}, on {difference['n']:,} rows in {difference['groups']:,} groups{lower}"


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Compare the model in the metric that the default gate decides on, one sentence for each rival."""
    metric, ours = METRICS[METRIC], report["metrics"].get(METRIC)
    if ours is None:
        return []
    confidence = report["options"]["confidence"]
    found = []
    for name in (BASE, *CONSTANTS, CHAMPION):
        other = report["others"].get(name)
        if other and (difference := other["differences"].get(METRIC)):
            explanation = EXPLANATIONS[verdict(metric, difference, confidence)]
            text = comparison(metric, ours, {name: (other["metrics"][METRIC], difference)}, confidence)
            found.append(f"{text}: {explanation}.")
    found += [f"The {TITLES[name]} is not compared: {reason}" for name, reason in report["unavailable"].items()]
    return found
