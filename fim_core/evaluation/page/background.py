"""What a report's page shows in addition to the report: the gate's verdict, earlier versions, and the loss curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fim_core import charts


@dataclass(frozen=True)
class Version:
    """The main metric of one version of a report.

    Attributes:
        place: number of the version among all reports of the store, from 1.
        made: date and time in UTC.
        figure: `{value, low, high, n, groups}` of the metric.
        promoted: whether the gate promoted the checkpoint; None if it has not decided yet.
    """

    version: str
    experiment: str
    place: int
    made: str
    figure: Mapping[str, Any]
    promoted: bool | None


@dataclass(frozen=True)
class Background:
    """Everything that a report itself does not hold; empty parts are left out of the page.

    Attributes:
        gate: `promote`, and `results` with `holds`, `reason`, `rule` and `metric` of each rule.
        versions: this version and earlier ones, oldest first, also of other experiments in the same store.
        losses: training and held-out loss by optimizer step.
    """

    gate: Mapping[str, Any] | None = None
    versions: Sequence[Version] = ()
    losses: Mapping[str, Sequence[charts.Point]] = field(default_factory=dict)

    def trend(self, experiment: str) -> dict[str, charts.Line]:
        """The main metric by version, one line for each experiment, beginning with the given one."""
        names = dict.fromkeys([experiment, *(version.experiment for version in reversed(self.versions))])
        return {name: _line([v for v in self.versions if v.experiment == name]) for name in names}

    def verdict(self) -> str:
        """The gate's verdict in one sentence."""
        if self.gate is None:
            return ""
        failed = [rule for rule in self.gate["results"] if rule["holds"] is False]
        if self.gate["promote"]:
            return "The gate promotes this model: no rule fails."
        return f"The gate refuses this model: {len(failed)} of {len(self.gate['results'])} rules fail."


def _line(versions: Sequence[Version]) -> charts.Line:
    figures = [version.figure for version in versions]
    return charts.Line(
        [(version.place, version.figure["value"]) for version in versions],
        [(figure["low"], figure["high"]) for figure in figures],
    )
