"""The order of an epoch, and the sorted prompts that it is made from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_helpers import row, shared_part, to_rows

from fim_core.packing import IGNORE_INDEX, Rows
from fim_core.packing.batches import BLOCK_ROWS, epoch_order
from fim_core.packing.prompt_order import WINDOW
from fim_core.packing.rows import FlatColumn


def common(first: list[int], second: list[int]) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(row(), max_size=25), data=st.data())
def test_prompts_are_sorted_and_share_what_they_share(pairs, data):
    """Neighbours share as much as any order allows, and what two rows share is their common prefix."""
    order = to_rows(pairs).prompt_order
    assert sorted(order.order.tolist()) == list(range(len(pairs)))
    prompts = [shared_part(*pairs[index]) for index in order.order.tolist()]
    for place, prompt in enumerate(prompts):
        assert order.shared[place] == (common(prompts[place - 1], prompt) if place else 0)
        for longest in range(len(prompt)):
            group = [i for i, other in enumerate(prompts) if other[: longest + 1] == prompt[: longest + 1]]
            assert group == list(range(group[0], group[-1] + 1))
    places = np.array(sorted(data.draw(st.sets(st.sampled_from(range(len(pairs))))) if pairs else []), np.int64)
    expected = [common(prompts[a], prompts[b]) for a, b in pairwise(places.tolist())]
    assert order.common(places).tolist() == [0, *expected][: len(places)]


@pytest.mark.parametrize("parts", [1, 3])
def test_long_prompts_are_sorted_as_lists_are(parts):
    """Prefixes of prefixes, longer than what is compared at once, with rows in several record batches."""
    rng = np.random.default_rng(0)
    prompts: list[list[int]] = [rng.integers(0, 9, 70).tolist()]
    for _ in range(400):
        other = prompts[rng.integers(len(prompts))]
        prompts.append(other[: rng.integers(len(other) + 1)] + rng.integers(0, 9, rng.integers(3 * WINDOW)).tolist())
    rows = to_rows([([*prompt, 1, 2], [IGNORE_INDEX] * (len(prompt) + 1) + [2]) for prompt in prompts])
    ends = [int(rows.offsets[len(rows) * part // parts]) for part in range(parts + 1)]
    columns = [
        FlatColumn(tuple(column.parts[0][a:b] for a, b in pairwise(ends))) for column in (rows.tokens, rows.labels)
    ]
    order = Rows(*columns, rows.offsets, rows.row_ids).prompt_order
    found = [prompts[row] for row in order.order.tolist()]
    assert found == sorted(prompts)
    assert order.shared.tolist() == [0, *(common(a, b) for a, b in pairwise(found))]


def worksheets(count: int, size: int) -> list[tuple[list[int], list[int]]]:
    """Rows of some worksheets, mixed; the first token names the worksheet."""
    tokens = [[1000 + sheet, 2000 + statement, 7, 8] for statement in range(size) for sheet in range(count)]
    return [(row, [IGNORE_INDEX] * 3 + row[3:]) for row in tokens]


def test_an_epoch_takes_every_row_once_and_another_epoch_in_another_order():
    rows = to_rows(worksheets(count=10, size=7))
    orders = [epoch_order(rows, seed=seed, epoch=epoch).tolist() for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(70)) for order in orders)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_a_batch_has_blocks_of_similar_rows_from_many_worksheets():
    pairs = worksheets(count=50, size=40)
    order = epoch_order(to_rows(pairs), seed=1, epoch=0)
    sheets = np.array([tokens[0] for tokens, _ in pairs])[order]
    kept = np.mean(sheets[1:] == sheets[:-1])
    assert kept > 0.9 * (BLOCK_ROWS - 1) / BLOCK_ROWS
    batches = sheets[: len(sheets) // 16 * 16].reshape(-1, 16)
    assert np.mean([len(set(batch)) for batch in batches.tolist()]) > 0.75 * 16 / BLOCK_ROWS
    alone = epoch_order(to_rows(pairs), seed=1, epoch=0, block_rows=1)
    shuffled = np.array([tokens[0] for tokens, _ in pairs])[alone]
    assert np.mean(shuffled[1:] == shuffled[:-1]) < 0.05


def test_no_rows_have_an_order():
    assert epoch_order(to_rows([]), seed=1, epoch=0).tolist() == []
