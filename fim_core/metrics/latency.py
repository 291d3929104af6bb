"""Latency of completions: percentiles over held-out prompts, measured by wall time where the report is made.

Unlike the metrics of the registry, they are not ratios of sums over rows, and no two measurements are equal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """A percentile of the milliseconds from a request to the end of its completion, with an empty cache.

    Attributes:
        title, meaning: for people.
        percentile: from 0 to 100.
    """

    title: str
    meaning: str
    percentile: float


LATENCIES = {
    f"latency_p{share}_ms": Latency(
        f"Latency, p{share}",
        f"milliseconds in which {share}% of the completions are finished, with nothing of their prompts cached",
        share,
    )
    for share in (50, 95)
}
"""By the name in reports and gate rules."""
