"""Figures and comparisons in words that need no statistics; the same in every place that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fim_core.evaluation.names import BASE, CHAMPION, CONSTANTS, TITLES
from fim_core.evaluation.power import METRIC, fewest_groups
from fim_core.metrics.metric import Metric
from fim_core.metrics.registry import METRICS

Figure = Mapping[str, Any]
"""`{value, low, high, n, groups}` of a report; of a difference also `detectable`."""

Standing = Literal["better", "worse", "equal", "unclear", "too few groups"]

VERDICTS: dict[Standing, str] = {
    "better": "the gain is larger than chance",
    "worse": "the loss is larger than chance",
    "equal": "there is no difference",
    "unclear": "a difference this small can be chance",
    "too few groups": "so few groups cannot tell a difference from chance",
}


def show_figure(value: float | None, unit: str) -> str:
    """A figure: shares in percent, others with three digits."""
    if value is None:
        return "not finite"
    return f"{value:.1%}" if unit == "share" else f"{value:.3g}"


def show_with_unit(value: float | None, unit: str) -> str:
    """A figure and what it is measured in."""
    return show_figure(value, unit) + ("" if unit == "share" or value is None else f" {unit}")


def show_difference(value: float | None, unit: str, *, name_unit: bool = True) -> str:
    """A difference of two figures, with its sign: of shares in points of percent."""
    if value is None:
        return "not finite"
    number, measure = (f"{100 * value:+.1f}", "points") if unit == "share" else (f"{value:+.3g}", unit)
    if value == 0:
        number = number.lstrip("+-")
    return f"{number} {measure}" if name_unit else number


def standing(metric: Metric, difference: Figure, confidence: float) -> Standing:
    """How a model stands in a metric, by its paired difference to another.

    `better` and `worse` need the whole interval on one side of 0, and enough groups for that to mean anything.
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
    """The figures of a model and of others, with the paired differences.

    Args:
        metric: what is compared.
        ours: the model's figure.
        rivals: by predictor, its figure and the model's difference to it.
        confidence: level of the intervals.
    """
    unit = metric.unit
    said = [f"{metric.title}: {show_with_unit(ours['value'], unit)}"]
    for name, (theirs, difference) in rivals.items():
        low, high = (show_difference(difference[bound], unit, name_unit=False) for bound in ("low", "high"))
        said.append(
            f"{TITLES[name]} {show_figure(theirs['value'], unit)}: {show_difference(difference['value'], unit)} "
            f"({low} to {high} with {confidence:.0%} confidence)"
        )
    _, difference = next(iter(rivals.values()))
    lower = "" if metric.higher_is_better else "; lower is better"
    return f"{', '.join(said)}, on {difference['n']:,} rows in {difference['groups']:,} groups{lower}"


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What a report says of the metric that decides, against everything that the model should be better than."""
    metric, ours = METRICS[METRIC], report["metrics"].get(METRIC)
    if ours is None:
        return []
    confidence = report["options"]["confidence"]
    said = []
    for name in (BASE, *CONSTANTS, CHAMPION):
        other = report["others"].get(name)
        if other and (difference := other["differences"].get(METRIC)):
            verdict = VERDICTS[standing(metric, difference, confidence)]
            text = comparison(metric, ours, {name: (other["metrics"][METRIC], difference)}, confidence)
            said.append(f"{text}: {verdict}.")
    said += [f"The {TITLES[name]} is not compared: {reason}" for name, reason in report["unavailable"].items()]
    return said
