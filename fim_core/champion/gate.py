"""Whether a candidate becomes champion: the rules of the experiment's gate, on the figures of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fim_core.config.evaluation import GateConfig, GateRule
from fim_core.errors import FimError
from fim_core.evaluation.names import BASE, CHAMPION, CONSTANTS, TITLES
from fim_core.evaluation.words import VERDICTS, Figure, comparison, show_difference, show_with_unit, standing
from fim_core.folders.report import ReportFolder
from fim_core.metrics.registry import METRICS

BETTER_THAN = {"better_than_base": (BASE,), "better_than_constants": CONSTANTS, "better": (CHAMPION,)}
"""Rules that ask for a gain larger than chance, and over what."""

FIRST_CANDIDATE = ("better_than_base", "better_than_constants")
"""Rules that need no champion. Where there is none, at least one of them must be in the gate."""


@dataclass(frozen=True)
class RuleResult:
    """What one rule found.

    Attributes:
        metric, rule: as in the experiment. Without a metric: `any`, at least one rule has to apply; `rollback`, someone
            took this checkpoint back.
        holds: whether the candidate meets it; None where it does not apply, because there is no champion yet or the
            rows hold nothing that the metric measures.
        reason: what was found, in words that need no statistics.
        figures: of the candidate and of what it was compared with, by predictor.
        differences: candidate minus the other on the same rows, by the other.
    """

    metric: str
    rule: str
    holds: bool | None
    reason: str
    figures: dict[str, Figure] = field(default_factory=dict)
    differences: dict[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Whether the candidate replaces the champion, what every rule found, and the report's own power."""

    promote: bool
    results: list[RuleResult]
    power: dict[str, Any]


def decide(report: Path, gate: GateConfig, *, has_champion: bool) -> Decision:
    """Apply the gate's rules to a candidate's report.

    A candidate is promoted when no rule fails and at least one holds. Without a champion, the rules against it do not
    apply. Then the candidate must at least be better than its base and than the constants, which a gate without such
    rules gets in addition. The same goes for a champion whose markup holds none of the rows.

    Args:
        report: folder of the candidate's evaluation.
        gate: the rules.
        has_champion: whether there is a champion, whose figures the report must then hold.

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
        results.append(RuleResult("", "any", False, "No rule of the gate applies: nothing speaks for the candidate."))
    return Decision(all(result.holds is not False for result in results), results, found["power"])


def refuse(decision: Decision, reason: str) -> Decision:
    """The same decision, refused for a reason that no rule of the gate knows."""
    results = [*decision.results, RuleResult("", "rollback", False, reason)]
    return Decision(promote=False, results=results, power=decision.power)


def _apply(rule: GateRule, report: Mapping[str, Any]) -> RuleResult:
    if rule.rule in BETTER_THAN:
        return _better(rule, report, BETTER_THAN[rule.rule])
    if rule.rule == "not_worse":
        return _not_worse(rule, report)
    metric, ours = METRICS[rule.metric], report["metrics"].get(rule.metric)
    if ours is None or ours["value"] is None:
        reason = _reason(metric.title, False, "not a finite number" if ours else "the report holds no such figure")
        return RuleResult(rule.metric, rule.rule, False, reason)
    said = f"{metric.title}: {show_with_unit(ours['value'], metric.unit)}, {ours['n']:,} rows"
    if rule.rule == "finite":
        return RuleResult(rule.metric, rule.rule, True, _reason(said, True, "it is a number"), {"candidate": ours})
    assert rule.value is not None, "validated"
    holds = ours["value"] >= rule.value if rule.rule == "at_least" else ours["value"] <= rule.value
    asked = f"{rule.rule.replace('_', ' ')} {show_with_unit(rule.value, metric.unit)} is required"
    return RuleResult(rule.metric, rule.rule, holds, _reason(said, holds, asked), {"candidate": ours})


def _better(rule: GateRule, report: Mapping[str, Any], rivals: Sequence[str]) -> RuleResult:
    """The whole interval of the paired difference to each rival lies on the better side of 0."""
    metric, confidence = METRICS[rule.metric], report["options"]["confidence"]
    missing = [_cannot_compare(rule.metric, name, report) for name in rivals]
    if (first := next((found for found in missing if found), None)) is not None:
        holds, why = first
        return RuleResult(rule.metric, rule.rule, holds, _reason(metric.title, holds, why))
    figures, differences = _figures(rule.metric, rivals, report)
    standings = {name: standing(metric, differences[name], confidence) for name in rivals}
    holds = all(found == "better" for found in standings.values())
    failed = {name: VERDICTS[found] for name, found in standings.items() if found != "better"}
    why = VERDICTS["better"] if holds else _why(failed, rivals)
    said = comparison(metric, figures["candidate"], {n: (figures[n], differences[n]) for n in rivals}, confidence)
    visible = [differences[name]["detectable"] for name in rivals]
    if not holds and metric.unit == "share" and None not in visible:
        why += f" (with so many rows, the smallest gain that would show is about {100 * max(visible):.1f} points)"
    reason = _reason(said, holds, why) + _left_out(rivals, report)
    return RuleResult(rule.metric, rule.rule, holds, reason, figures, differences)


def _not_worse(rule: GateRule, report: Mapping[str, Any]) -> RuleResult:
    """Not the whole interval of the paired difference to the champion lies below minus the slack.

    Only a loss that chance does not explain counts.
    """
    metric, confidence = METRICS[rule.metric], report["options"]["confidence"]
    if missing := _cannot_compare(rule.metric, CHAMPION, report):
        holds, why = missing
        return RuleResult(rule.metric, rule.rule, holds, _reason(metric.title, holds, why))
    figures, differences = _figures(rule.metric, (CHAMPION,), report)
    difference, slack = differences[CHAMPION], rule.value or 0.0
    found = standing(metric, difference, confidence)
    most_gain = difference["high"] if metric.higher_is_better else -difference["low"]
    holds = found != "worse" or most_gain >= -slack
    why = VERDICTS[found]
    if slack and found == "worse":
        allowed = show_difference(slack, metric.unit).lstrip("+")
        why += f", but within the {allowed} that are allowed" if holds else f", and than the {allowed} that are allowed"
    said = comparison(metric, figures["candidate"], {CHAMPION: (figures[CHAMPION], difference)}, confidence)
    reason = _reason(said, holds, why) + _left_out((CHAMPION,), report)
    return RuleResult(rule.metric, rule.rule, holds, reason, figures, differences)


def _figures(
    metric: str, rivals: Sequence[str], report: Mapping[str, Any]
) -> tuple[dict[str, Figure], dict[str, Figure]]:
    figures = {"candidate": report["metrics"][metric]}
    figures |= {name: report["others"][name]["metrics"][metric] for name in rivals}
    return figures, {name: report["others"][name]["differences"][metric] for name in rivals}


def _cannot_compare(metric: str, name: str, report: Mapping[str, Any]) -> tuple[bool | None, str] | None:
    """Verdict and reason where there is nothing to compare with, or one of the figures is missing.

    Figures can be missing, as the abstention precision of a model that never abstains, and the loss of a constant.
    """
    title, other = TITLES[name], report["others"].get(name)
    if other is None:
        if name == CHAMPION:
            return None, "there is no champion to compare with"
        return False, f"the {title} was not evaluated. {report['unavailable'].get(name, '')}".rstrip(". ")
    if other["rows"] == 0:
        return None, f"there is no row that the {title} can read"
    ours, theirs = report["metrics"].get(metric), other["metrics"].get(metric)
    if name in CONSTANTS and theirs is None and ours is not None:
        return False, f"the {title} has no such figure, so the rule cannot hold; use another rule for this metric"
    if ours is None and theirs is None:
        return None, "the held-out rows hold nothing that it measures"
    if ours is None:
        return False, f"the {title} has this figure and the candidate has not"
    if ours["value"] is None:
        return False, "the candidate's figure is not a finite number"
    if theirs is None or theirs["value"] is None:
        return None, f"the {title} has no such figure to compare with"
    return None if metric in other["differences"] else (None, f"no row has this figure for both it and the {title}")


def _left_out(rivals: Sequence[str], report: Mapping[str, Any]) -> str:
    unread = report["counts"]["evaluated"] - min(report["others"][name]["rows"] for name in rivals)
    return f" The champion cannot read {unread:,} of the rows, which are left out." if unread else ""


def _why(failed: Mapping[str, str], rivals: Sequence[str]) -> str:
    """Verdicts by rival in one clause; rivals are named only where they differ."""
    if len(failed) == len(rivals) and len(set(failed.values())) == 1:
        return next(iter(failed.values()))
    return "; ".join(f"{verdict} ({TITLES[name]})" for name, verdict in failed.items())


def _reason(said: str, holds: bool | None, why: str) -> str:
    verdict = {True: "Passed", False: "Failed", None: "Not applicable"}[holds]
    return f"{said}. {verdict}: {why}."
