"""The metrics of a report, in its order.

To add a metric, define a `Metric` in a module of this package and register it here. Scores, intervals, comparisons, the
report, its page and the rules of the gate follow.
"""

from __future__ import annotations

from fim_core.metrics import abstention, likelihood, selection, sql, text
from fim_core.metrics.metric import Measure, Metric

METRICS: dict[str, Metric] = {}
"""Every registered metric by name, in the order of a report."""


def register(*metrics: Metric) -> None:
    """Append metrics to METRICS.

    Raises:
        ValueError: the name is taken, or another measure has the same column name.
    """
    for metric in metrics:
        if metric.name in METRICS:
            raise ValueError(f"There are two metrics named {metric.name}. Rename one of them.")
        taken = {measure.name: measure for measure in measures()}
        for measure in metric.measures:
            if taken.get(measure.name, measure) is not measure:
                raise ValueError(
                    f"The metric {metric.name} has a measure named {measure.name}, as another metric has. Share the "
                    "`Measure` object, or rename it."
                )
        METRICS[metric.name] = metric


def measures() -> list[Measure]:
    """Every measure that a registered metric needs, once."""
    needed = (measure for metric in METRICS.values() for measure in metric.measures)
    return list(dict.fromkeys(needed))


register(
    text.EXACT_MATCH,
    sql.EXACT_MATCH_SQL,
    text.EDIT_SIMILARITY,
    text.FIRST_LINE_MATCH,
    text.PREFIX_MATCH_CHARS,
    text.PREFIX_MATCH_SHARE,
    sql.PARSES,
    sql.BINDS,
    sql.EXECUTION_MATCH,
    sql.IDENTIFIER_PRECISION,
    sql.IDENTIFIER_RECALL,
    abstention.ABSTENTION_PRECISION,
    abstention.ABSTENTION_RECALL,
    selection.SHOWN_PRECISION,
    selection.COVERAGE,
    selection.CORRECT_HIDDEN,
    selection.WRONG_HIDDEN,
    text.SUFFIX_REPETITION,
    likelihood.RUNAWAY,
    likelihood.LOSS,
    likelihood.LOSS_TEXT,
    likelihood.LOSS_END,
    likelihood.BITS_PER_BYTE,
)
