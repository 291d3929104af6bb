"""Work on a stream in several processes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import partial

import pytest

from fim_core.parallel import ordered_map


@pytest.mark.parametrize("num_proc", [1, 2])
def test_results_come_in_order(num_proc: int) -> None:
    assert list(ordered_map(partial, (operator.mul, 3), range(50), num_proc=num_proc)) == [3 * n for n in range(50)]


def test_items_are_taken_only_as_results_are() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = ordered_map(partial, (operator.mul, 1), items(), num_proc=2)
    assert next(results) == 0
    assert taken < 10
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_failure_comes_through(num_proc: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(partial, (operator.truediv, 1), [1, 0, 2], num_proc=num_proc))
