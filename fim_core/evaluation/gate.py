"""Whether a candidate becomes champion: the rules of the experiment's gate, on the figures of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fim_core.config.evaluation import GateConfig, GateRule
from fim_core.errors import FimError
from fim_core.evaluation.metrics.registry import BY_NAME, Metric
from fim_core.evaluation.report import read_report

Figure = Mapping[str, Any]
"""`{value, low, high, n}` of a report."""


@dataclass(frozen=True)
class RuleResult:
    """What one rule found.

    Attributes:
        metric, rule: as in the experiment. Without a metric: `any`, at least one rule has to apply; `rollback`, someone
            took this checkpoint back.
        holds: whether the candidate meets it; None where it does not apply, because there is no champion yet or the
            rows hold nothing that the metric measures.
        reason: a sentence with the numbers.
        numbers: the figures that decided, by name.
    """

    metric: str
    rule: str
    holds: bool | None
    reason: str
    numbers: dict[str, Figure]


@dataclass(frozen=True)
class Decision:
    """Whether the candidate replaces the champion, and what every rule found."""

    promote: bool
    results: list[RuleResult]


def decide(report: Path, gate: GateConfig, *, has_champion: bool) -> Decision:
    """Apply the gate's rules to a candidate's report.

    A candidate is promoted when no rule fails and at least one holds. Without a champion, the rules against it do not
    apply: then the candidate must at least beat the baselines, so a gate without such a rule refuses the first. The same
    goes for a champion whose markup holds none of the rows.

    Args:
        report: folder of the candidate's evaluation.
        gate: the rules.
        has_champion: whether there is a champion, whose figures the report must then hold.

    Raises:
        FimError: the report lacks the champion's figures.
    """
    figures = read_report(report)
    if has_champion and figures["champion"] is None:
        raise FimError(
            f"The report in {report} does not compare with the champion. Materialize evaluation_report again."
        )
    can_compare = has_champion and figures["champion"]["rows"] > 0
    rules = list(gate.rules)
    if not can_compare and not any(rule.rule == "beats_baselines" for rule in rules):
        rules.append(GateRule(metric="exact_match_sql", rule="beats_baselines"))
    results = [_apply(rule, figures, can_compare) for rule in rules]
    if all(result.holds is None for result in results):
        results.append(
            RuleResult("", "any", False, "No rule of the gate applies: nothing speaks for the candidate.", {})
        )
    return Decision(promote=all(result.holds is not False for result in results), results=results)


def refuse(decision: Decision, reason: str) -> Decision:
    """The same decision, refused for a reason that no rule of the gate knows."""
    return Decision(promote=False, results=[*decision.results, RuleResult("", "rollback", False, reason, {})])


def _apply(rule: GateRule, report: Mapping[str, Any], can_compare: bool) -> RuleResult:
    metric = BY_NAME[rule.metric]
    ours = report["metrics"].get(rule.metric)
    if rule.rule in {"not_worse", "better"}:
        if not can_compare:
            why = "there is no champion" if report["champion"] is None else "there is no row that the champion can read"
            return RuleResult(rule.metric, rule.rule, None, f"{metric.title}: {why} to compare with.", {})
        result = _against_champion(rule, metric, ours, report["champion"])
        left_out = report["counts"]["evaluated"] - report["champion"]["rows"]
        note = f" The champion cannot read {left_out} of the rows, which are left out." if left_out else ""
        return replace(result, reason=result.reason + note)
    if rule.rule == "finite":
        return _finite(rule, metric, ours)
    if ours is None or ours["value"] is None:
        return RuleResult(rule.metric, rule.rule, False, f"{metric.title}: the report holds no such figure.", {})
    if rule.rule == "beats_baselines":
        return _beats_baselines(rule, metric, ours, report["baselines"])
    return _bound(rule, metric, ours)


def _finite(rule: GateRule, metric: Metric, ours: Figure | None) -> RuleResult:
    holds = ours is not None and ours["value"] is not None
    said = f"is {_number(ours['value'])}" if ours and holds else "is not a finite number"
    return RuleResult(rule.metric, rule.rule, holds, f"{metric.title} {said}.", {"candidate": ours} if ours else {})


def _bound(rule: GateRule, metric: Metric, ours: Figure) -> RuleResult:
    assert rule.value is not None, "validated"
    holds = ours["value"] >= rule.value if rule.rule == "at_least" else ours["value"] <= rule.value
    least = "at least" if rule.rule == "at_least" else "at most"
    reason = f"{metric.title} is {_number(ours['value'])}; {least} {_number(rule.value)} is asked for."
    return RuleResult(rule.metric, rule.rule, holds, reason, {"candidate": ours})


def _beats_baselines(
    rule: GateRule, metric: Metric, ours: Figure, baselines: Mapping[str, Mapping[str, Figure]]
) -> RuleResult:
    """The candidate's interval lies wholly on the better side of every baseline's."""
    rivals = {name: figures[rule.metric] for name, figures in baselines.items() if rule.metric in figures}
    numbers = {"candidate": ours, **rivals}
    if not rivals:
        reason = f"{metric.title}: no baseline has this figure, so none can be beaten. Use another rule for it."
        return RuleResult(rule.metric, rule.rule, False, reason, numbers)
    unbeaten = [name for name, figure in rivals.items() if not _beats(metric, ours, figure)]
    shown = f"{metric.title} is {_interval(ours)}"
    if unbeaten:
        them = ", ".join(f"{name.replace('_', ' ')} ({_interval(rivals[name])})" for name in unbeaten)
        return RuleResult(rule.metric, rule.rule, False, f"{shown}, not clear of: {them}.", numbers)
    return RuleResult(rule.metric, rule.rule, True, f"{shown}, clear of every baseline.", numbers)


def _beats(metric: Metric, ours: Figure, theirs: Figure) -> bool:
    if theirs["value"] is None:
        return True
    return ours["low"] > theirs["high"] if metric.higher_is_better else ours["high"] < theirs["low"]


def _against_champion(
    rule: GateRule, metric: Metric, ours: Figure | None, champion: Mapping[str, Mapping[str, Figure]]
) -> RuleResult:
    """On the paired difference, turned so that a gain is positive.

    `better`: the whole interval lies above 0. `not_worse`: not the whole interval lies below minus the slack, so that
    only a loss that chance does not explain counts.
    """
    theirs, difference = champion["metrics"].get(rule.metric), champion["differences"].get(rule.metric)
    numbers = {
        name: figure
        for name, figure in (("candidate", ours), ("champion", theirs), ("difference", difference))
        if figure is not None
    }
    if missing := _nothing_to_compare(ours, theirs):
        holds, why = missing
        return RuleResult(rule.metric, rule.rule, holds, f"{metric.title}: {why}.", numbers)
    assert difference is not None, "both have the figure"
    low, high = difference["low"], difference["high"]
    gain, least_gain, most_gain = (
        (difference["value"], low, high) if metric.higher_is_better else (-difference["value"], -high, -low)
    )
    slack = rule.value or 0.0
    holds = least_gain > 0 if rule.rule == "better" else most_gain >= -slack
    gained = f"{'gains' if gain >= 0 else 'loses'} {_number(abs(gain))}"
    asked = "a gain beyond chance is asked for" if rule.rule == "better" else "no loss beyond chance is allowed"
    if slack and rule.rule == "not_worse":
        asked = f"no loss of more than {_number(slack)} beyond chance is allowed"
    reason = (
        f"{metric.title} {gained} against the champion (interval of the gain {_number(least_gain)} to "
        f"{_number(most_gain)}, {difference['n']} rows); {asked}."
    )
    return RuleResult(rule.metric, rule.rule, holds, reason, numbers)


def _nothing_to_compare(ours: Figure | None, theirs: Figure | None) -> tuple[bool | None, str] | None:
    """Verdict and reason where a figure is missing, as the abstention precision of a model that never abstains."""
    if ours is None and theirs is None:
        return None, "the held-out rows hold nothing that it measures"
    if ours is None:
        return False, "the champion has this figure and the candidate has not"
    if ours["value"] is None:
        return False, "the candidate's figure is not a finite number"
    if theirs is None or theirs["value"] is None:
        return None, "the champion has no such figure to compare with"
    return None


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(figure: Figure) -> str:
    return f"{_number(figure['value'])} ({_number(figure['low'])} to {_number(figure['high'])})"
