"""The definition of a metric: the ratio of two measures, each summed over rows.

One bootstrap serves all metrics because each is such a ratio: a mean is a sum over the number of rows that the measure
applies to; precision is matches over predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fim_core.metrics.rows import CompletedRow, Value

Unit = Literal["share", "characters", "nats/token", "bits/byte"]
"""`share`: from 0 to 1, shown in percent."""


@dataclass(frozen=True)
class Measure:
    """A number for each completed row; a column of `predictions.parquet`.

    Attributes:
        name: name of the column. Metrics share a measure by naming the same object.
        of: computes it; None where it does not apply to the row.
    """

    name: str
    of: Callable[[CompletedRow], Value]


@dataclass(frozen=True)
class Metric:
    """One figure of a report: the sum of `over` divided by the sum of `per`.

    Attributes:
        name: key in reports and gate rules.
        title: for people.
        meaning: what the figure says, in a few words; the measures define it exactly.
        unit: of the ratio.
        over: numerator. Rows that it does not apply to are left out.
        per: denominator; None counts rows, which makes the metric a mean.
        higher_is_better: direction of progress.
        headline: shown where space is short, for example on the cards of the page.
        by_slice: shown by TYPE and by length, if it is a headline metric.
    """

    name: str
    title: str
    meaning: str
    unit: Unit
    over: Measure
    per: Measure | None = None
    higher_is_better: bool = True
    headline: bool = False
    by_slice: bool = True

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Numerator and, unless rows are counted, denominator."""
        return (self.over,) if self.per is None else (self.over, self.per)
