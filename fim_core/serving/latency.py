"""Time of single completions, from the state of the editor to the last character."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fim_core.device import device_name
from fim_core.metrics.latency import LATENCIES
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer

NEW_CHARACTERS = 3
"""Characters that are new in a prompt with a warm prefix."""


@dataclass(frozen=True)
class Timing:
    """The time of one completion, in milliseconds from the request.

    Attributes:
        prompt_tokens: length of the prompt.
        first: until the first text could be shown.
        end: until the end of the completion.
    """

    prompt_tokens: int
    first: float
    end: float


def time_completions(completer: Completer, states: Sequence[Completion], *, max_tokens: int) -> dict[str, list[Timing]]:
    """Complete each state twice: with an empty cache (`cold`), and after its prompt without the last characters (`warm`)."""
    timings: dict[str, list[Timing]] = {"cold": [], "warm": []}
    for state in states:
        timings["cold"].append(_time_cold(completer, state, max_tokens))
        completer.forget()
        before = replace(state, prefix=state.prefix[:-NEW_CHARACTERS])
        completer.read(completer.fit(before, max_tokens=max_tokens).ids)
        timings["warm"].append(_time(completer, state, max_tokens))
    return timings


def measure_latency(completer: Completer, states: Sequence[Completion], *, max_tokens: int) -> dict[str, Any]:
    """Measure completions with an empty cache, after one that is not counted.

    Returns:
        `figures` (milliseconds by the names of LATENCIES), `rows`, `max_tokens`, and the `device`.
    """
    _time_cold(completer, states[0], max_tokens)
    ends = [_time_cold(completer, state, max_tokens).end for state in states]
    return {
        "figures": {name: round(float(np.percentile(ends, of.percentile)), 1) for name, of in LATENCIES.items()},
        "rows": len(ends),
        "max_tokens": max_tokens,
        "device": device_name(),
    }


def _time_cold(completer: Completer, state: Completion, max_tokens: int) -> Timing:
    completer.forget()
    return _time(completer, state, max_tokens)


def _time(completer: Completer, state: Completion, max_tokens: int) -> Timing:
    start = time.perf_counter()
    prompt = completer.fit(state, max_tokens=max_tokens)
    deltas, first = [], None
    for delta in completer.deltas(prompt.ids, max_tokens=max_tokens):
        deltas.append(delta)
        if delta.text and first is None and not completer.chooses:
            first = time.perf_counter()
    for _ in completer.choose(prompt.ids, state, deltas, max_tokens=max_tokens):
        pass
    end = time.perf_counter()
    return Timing(len(prompt.ids), 1000 * ((first or end) - start), 1000 * (end - start))
