"""Parallel processing of streams."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from fim_core.parallel import ordered_map

ENDLESS = """
import functools, itertools, operator
from fim_core.parallel import ordered_map
for result in ordered_map(functools.partial, (operator.mul, 3), itertools.count(), num_proc=2):
    print(result, flush=True)
    input()
"""


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
def test_a_failure_is_raised(num_proc: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(partial, (operator.truediv, 1), [1, 0, 2], num_proc=num_proc))


def test_workers_end_when_the_parent_is_killed() -> None:
    """SIGKILL gives a parent no chance to end its children."""
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "0\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) >= 2
    parent.kill()
    parent.wait()
    _, left = psutil.wait_procs(family, timeout=15)
    assert left == []
