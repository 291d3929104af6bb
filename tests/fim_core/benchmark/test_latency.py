"""The latency of completions."""

from __future__ import annotations

import json

import pytest

from fim_core.benchmark.latency import summarize, time_typing
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer
from fim_core.serving.latency import Timing, time_completions
from tests.fim_core.conftest import Evaluated

STATES = [Completion(f"SELECT city{place} FROM shop.orders WHERE id ", ";") for place in range(4)]


@pytest.fixture(scope="module")
def completer(evaluated: Evaluated) -> Completer:
    return Completer.load(evaluated.checkpoint)


def test_a_warm_prefix_computes_only_the_last_characters(completer: Completer) -> None:
    before = completer.computed
    timings = time_completions(completer, STATES, max_tokens=1)
    lengths = [timing.prompt_tokens for timing in timings["cold"]]
    assert lengths == [len(completer.prompt_ids(state)) for state in STATES]
    computed = completer.computed - before
    # Cold, the start of the warm prompt, and a few tokens of the warm one.
    assert 2 * sum(lengths) - 8 * len(STATES) <= computed <= 2 * sum(lengths) + 8 * len(STATES)
    assert all(0 < timing.first <= timing.end for made in timings.values() for timing in made)


def test_everybody_gets_an_answer(completer: Completer) -> None:
    answers = time_typing(completer, STATES, people=2, max_tokens=2)
    assert len(answers) == len(STATES)
    assert len(time_typing(completer, STATES[:1], people=5, max_tokens=2)) == 1
    assert all(answer > 0 for answer in answers)


def test_percentiles_by_length() -> None:
    made = [Timing(tokens, first=1.0, end=float(end)) for end, tokens in enumerate([256, 257, 1024, 9000])]
    found = summarize({"cold": made}, {5: [1.0, 2.0, 3.0]})
    rows = {part["tokens"]: part["rows"] for part in found["completions"]["cold"]}
    assert rows == {"up to 256": 1, "up to 1,024": 2, "over 4,096": 1, "all": 4}
    assert found["completions"]["cold"][-1]["end"] == {"p50": 1.5, "p95": 2.8, "p99": 3.0}
    assert found["typing"] == [{"people": 5, "rows": 3, "answer": {"p50": 2.0, "p95": 2.9, "p99": 3.0}}]
    assert json.dumps(found)
