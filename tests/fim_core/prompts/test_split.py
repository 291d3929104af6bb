"""Groups against a plain union-find, and a split that never parts them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import long_run

from fim_core.prompts.split import connected_groups, held_out_groups, statement_hash


def by_union_find(statements: list[int], column: list[int]) -> list[int]:
    parent = list(range(len(statements)))

    def find(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for a in range(len(statements)):
        for b in range(a):
            if statements[a] == statements[b] or (column[a] and column[a] == column[b]):
                parent[find(a)] = find(b)
    smallest: dict[int, int] = {}
    for row, statement in enumerate(statements):
        smallest[find(row)] = min(smallest.get(find(row), statement), statement)
    return [smallest[find(row)] for row in range(len(statements))]


@long_run(short=200)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), max_size=25))
def test_groups_are_connected_components(rows: list[tuple[int, int]]) -> None:
    statements, column = [s for s, _ in rows], [c for _, c in rows]
    groups = connected_groups(np.array(statements, np.uint64), np.array(column, np.uint64))
    assert groups.tolist() == by_union_find(statements, column)


def test_a_long_chain_is_one_group() -> None:
    number = np.arange(1, 1001, dtype=np.uint64)
    statements, column = np.repeat(number, 2), np.concatenate([[1], np.repeat(number[1:], 2), [1001]]).astype(np.uint64)
    assert set(connected_groups(statements, column).tolist()) == {1}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_about_the_fraction_of_groups_is_held_out(fraction: float) -> None:
    groups = np.repeat(np.arange(20_000, dtype=np.uint64), 2)
    none = np.zeros(len(groups), np.bool_)
    held = held_out_groups(groups, none, fraction=fraction, has_eval_sources=False, seed=1)
    assert np.array_equal(held[::2], held[1::2])
    assert abs(held.mean() - fraction) < 0.01
    again = held_out_groups(groups, none, fraction=fraction, has_eval_sources=False, seed=1)
    other = held_out_groups(groups, none, fraction=fraction, has_eval_sources=False, seed=2)
    assert np.array_equal(held, again)
    assert fraction == 0 or not np.array_equal(held, other)


def test_a_held_out_row_takes_its_group_along() -> None:
    groups = np.array([1, 2, 1, 3], np.uint64)
    held = np.array([False, False, True, False])
    chosen = held_out_groups(groups, held, fraction=0.9, has_eval_sources=True, seed=0)
    assert chosen.tolist() == [True, False, True, False]


def test_statements_fold_white_space_and_case() -> None:
    assert statement_hash("SELECT  a\n from T ") == statement_hash("select A FROM t")
    assert statement_hash("select a") != statement_hash("select b")
