"""The gate: rules on the figures of a candidate's report that decide whether it becomes champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fim_core.config.evaluation import GateConfig, GateRule
from fim_core.errors import FimError
from fim_core.evaluation.formatting import show_difference, show_with_unit
from fim_core.evaluation.predictor_names import BASE, CHAMPION, CONSTANTS, TITLES
from fim_core.evaluation.verdicts import EXPLANATIONS, Figure, comparison, verdict
from fim_core.folders.report import ReportFolder
from fim_core.metrics.latency import LATENCIES
from fim_core.metrics.registry import METRICS

BETTER_THAN = {"better_than_base": (BASE,), "better_than_constants": CONSTANTS, "better": (CHAMPION,)}
"""Rules that require a gain larger than chance, and the predictors to gain over."""

FIRST_CANDIDATE = ("better_than_base", "better_than_constants")
"""Rules that need no champion. Without a champion, the gate must have at least one of them."""


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule.

    Attributes:
        metric, rule: as in the experiment. Two rules have no metric: `any` (at least one rule must apply) and `rollback`
            (this checkpoint was rolled back).
        holds: whether the candidate meets the rule; None where it does not apply, because there is no champion yet or the
            metric applies to none of the rows.
        reason: what was found, in a sentence without statistical terms.
        figures: of the candidate (`candidate`) and of its rivals, by predictor.
        differences: candidate minus rival on the same rows, by rival.
    """

    metric: str
    rule: str
    holds: bool | None
    reason: str
    figures: dict[str, Figure] = field(default_factory=dict)
    differences: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Whether the candidate replaces the champion, the result of every rule, and the `power` of the report."""

    promote: bool
    results: list[RuleResult]
    power: dict[str, Any]


def decide(report: Path, gate: GateConfig, *, has_champion: bool) -> Decision:
    """Apply the rules of a gate to a candidate's report.

    A candidate is promoted when no rule fails and at least one holds. Without a champion, the rules that compare with it
    do not apply; the candidate must then be better than the base model and the constants, and a gate without such rules
    gets them in addition. The same holds where the champion can read none of the rows.

    Args:
        report: folder of the candidate's report.
        gate: the rules.
        has_champion: whether there is a champion. The report must then hold its figures.

    Raises:
        FimError: the report lacks the champion's figures.
    """
    found = ReportFolder(report).read()
    champion = found["others"].get(CHAMPION)
    if has_champion and champion is None:
        raise FimError(
            f"The report in {report} does not compare with the champion. Materialize evaluation_report again."
        )
    if not has_champion:
        found["others"].pop(CHAMPION, None)
    rules = list(gate.rules)
    can_compare = has_champion and champion["rows"] > 0
    if not can_compare and not any(rule.rule in FIRST_CANDIDATE for rule in rules):
        rules += [GateRule(metric="exact_match_sql", rule=rule) for rule in FIRST_CANDIDATE]
    results = [_apply(rule, found) for rule in rules]
    if all(result.holds is None for result in results):
        results.append(
            RuleResult("", "any", False, "No rule of the gate applies, so nothing shows that the candidate is good.")
        )
    return Decision(all(result.holds is not False for result in results), results, found["power"])


def refuse(decision: Decision, reason: str) -> Decision:
    """Turn a decision into a refusal for a reason outside the gate."""
    results = [*decision.results, RuleResult("", "rollback", False, reason)]
    return Decision(promote=False, results=results, power=decision.power)


def _apply(rule: GateRule, report: Mapping[str, Any]) -> RuleResult:
    if rule.rule in BETTER_THAN:
        return _better(rule, report, BETTER_THAN[rule.rule])
    if rule.rule == "not_worse":
        return _not_worse(rule, report)
    if rule.is_latency:
        return _latency(rule, report)
    metric, ours = METRICS[rule.metric], report["metrics"].get(rule.metric)
    if ours is None or ours["value"] is None:
        reason = _reason(metric.title, False, "not a finite number" if ours else "the report has no such figure")
        return RuleResult(rule.metric, rule.rule, False, reason)
    summary = f"{metric.title}: {show_with_unit(ours['value'], metric.unit)}, {ours['n']:,} rows"
    if rule.rule == "finite":
        return RuleResult(
            rule.metric, rule.rule, True, _reason(summary, True, "it is a finite number"), {"candidate": ours}
        )
    assert rule.value is not None, "validated"
    holds = ours["value"] >= rule.value if rule.rule == "at_least" else ours["value"] <= rule.value
    required = f"{rule.rule.replace('_', ' ')} {show_with_unit(rule.value, metric.unit)} is required"
    return RuleResult(rule.metric, rule.rule, holds, _reason(summary, holds, required), {"candidate": ours})


def _latency(rule: GateRule, report: Mapping[str, Any]) -> RuleResult:
    title, measured = LATENCIES[rule.metric].title, report.get("latency")
    if measured is None:
        why = "the latency was not measured; materialize evaluation_report again"
        return RuleResult(rule.metric, rule.rule, False, _reason(title, False, why))
    assert rule.value is not None, "validated"
    found = measured["figures"][rule.metric]
    holds = found <= rule.value
    summary = f"{title}: {show_with_unit(found, 'ms')}, {measured['rows']:,} rows, on {measured['device']}"
    required = f"at most {show_with_unit(rule.value, 'ms')} is required"
    return RuleResult(rule.metric, rule.rule, holds, _reason(summary, holds, required), {"candidate": {"value": found}})


def _better(rule: GateRule, report: Mapping[str, Any], rivals: Sequence[str]) -> RuleResult:
    """Require the whole interval of the paired difference to each rival to lie on the better side of 0."""
    metric, confidence = METRICS[rule.metric], report["options"]["confidence"]
    missing = [_cannot_compare(rule.metric, name, report) for name in rivals]
    if (first := next((found for found in missing if found), None)) is not None:
        holds, why = first
        return RuleResult(rule.metric, rule.rule, holds, _reason(metric.title, holds, why))
    figures, differences = _figures(rule.metric, rivals, report)
    verdicts = {name: verdict(metric, differences[name], confidence) for name in rivals}
    holds = all(found == "better" for found in verdicts.values())
    failed = {name: EXPLANATIONS[found] for name, found in verdicts.items() if found != "better"}
    why = EXPLANATIONS["better"] if holds else _why(failed, rivals)
    summary = comparison(metric, figures["candidate"], {n: (figures[n], differences[n]) for n in rivals}, confidence)
    visible = [differences[name]["detectable"] for name in rivals]
    if not holds and metric.unit == "share" and None not in visible:
        why += f" (on this many rows, the smallest gain that can be detected is about {100 * max(visible):.1f} points)"
    reason = _reason(summary, holds, why) + _left_out(rivals, report)
    return RuleResult(rule.metric, rule.rule, holds, reason, figures, differences)


def _not_worse(rule: GateRule, report: Mapping[str, Any]) -> RuleResult:
    """Require that the interval of the paired difference to the champion does not lie wholly below minus the slack.

    Only a loss that chance does not explain fails the rule.
    """
    metric, confidence = METRICS[rule.metric], report["options"]["confidence"]
    if missing := _cannot_compare(rule.metric, CHAMPION, report):
        holds, why = missing
        return RuleResult(rule.metric, rule.rule, holds, _reason(metric.title, holds, why))
    figures, differences = _figures(rule.metric, (CHAMPION,), report)
    difference, slack = differences[CHAMPION], rule.value or 0.0
    found = verdict(metric, difference, confidence)
    most_gain = difference["high"] if metric.higher_is_better else -difference["low"]
    holds = found != "worse" or most_gain >= -slack
    why = EXPLANATIONS[found]
    if slack and found == "worse":
        allowed = show_difference(slack, metric.unit).lstrip("+")
        why += f", but within the allowed {allowed}" if holds else f", and exceeds the allowed {allowed}"
    summary = comparison(metric, figures["candidate"], {CHAMPION: (figures[CHAMPION], difference)}, confidence)
    reason = _reason(summary, holds, why) + _left_out((CHAMPION,), report)
    return RuleResult(rule.metric, rule.rule, holds, reason, figures, differences)


def _figures(
    metric: str, rivals: Sequence[str], report: Mapping[str, Any]
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    figures = {"candidate": report["metrics"][metric]}
    figures |= {name: report["others"][name]["metrics"][metric] for name in rivals}
    return figures, {name: report["others"][name]["differences"][metric] for name in rivals}


def _cannot_compare(metric: str, name: str, report: Mapping[str, Any]) -> tuple[bool | None, str] | None:
    """The verdict and the reason where there is no rival or one of the figures is missing; else None.

    Some predictors lack some figures: a model that never abstains has no abstention precision, and a constant has no loss.
    """
    title, other = TITLES[name], report["others"].get(name)
    if other is None:
        if name == CHAMPION:
            return None, "there is no champion to compare with"
        return False, f"the {title} was not evaluated. {report['unavailable'].get(name, '')}".rstrip(". ")
    if other["rows"] == 0:
        return None, f"the {title} can read none of the rows"
    ours, theirs = report["metrics"].get(metric), other["metrics"].get(metric)
    if name in CONSTANTS and theirs is None and ours is not None:
        return False, f"the {title} has no such figure, so the rule cannot hold; use another rule for this metric"
    if ours is None and theirs is None:
        return None, "the metric applies to none of the held-out rows"
    if ours is None:
        return False, f"the {title} has this figure and the candidate does not"
    if ours["value"] is None:
        return False, "the candidate's figure is not a finite number"
    if theirs is None or theirs["value"] is None:
        return None, f"the {title} has no such figure to compare with"
    return (
        None
        if metric in other["differences"]
        else (None, f"no row has this figure for both the candidate and the {title}")
    )


def _left_out(rivals: Sequence[str], report: Mapping[str, Any]) -> str:
    unread = report["counts"]["evaluated"] - min(report["others"][name]["rows"] for name in rivals)
    return f" The champion cannot read {unread:,} of the rows; they are left out." if unread else ""


def _why(failed: Mapping[str, str], rivals: Sequence[str]) -> str:
    """Join the explanations by rival; name the rivals only where their explanations differ."""
    if len(failed) == len(rivals) and len(set(failed.values())) == 1:
        return next(iter(failed.values()))
    return "; ".join(f"{explanation} ({TITLES[name]})" for name, explanation in failed.items())


def _reason(summary: str, holds: bool | None, why: str) -> str:
    outcome = {True: "Passed", False: "Failed", None: "Not applicable"}[holds]
    return f"{summary}. {outcome}: {why}."
