"""Optimizer steps take the same rows for every packing and number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim_core.packing import IGNORE_INDEX, Pack, PackPlan, Rows, plan_packs
from fim_core.packing.plan import Strategy
from fim_core.training.steps import Position, Step, count_steps, distribute, row_weights, steps

START = Position()
STRATEGIES: list[Strategy] = ["prefix_tree", "flat", "none"]


def some_rows(count: int) -> Rows:
    """Rows of 4 tokens; row i trains on i % 3 positions."""
    tokens = [[row // 4, 1, 2, 3] for row in range(count)]
    labels = [[IGNORE_INDEX] * (4 - row % 3) + [1, 2, 3][3 - row % 3 :] for row in range(count)]
    return Rows.from_lists(tokens, labels)


def all_steps(
    rows: Rows,
    *,
    batch_rows: int,
    epochs: int,
    strategy: Strategy = "none",
    ranks: int = 1,
    rank: int = 0,
    pack_length: int = 8,
    start: Position = START,
    limit: int | None = None,
) -> list[Step]:
    def plan_of(epoch: int) -> PackPlan:
        return plan_packs(
            rows,
            strategy=strategy,
            pack_length=pack_length,
            batch_rows=batch_rows,
            ranks=ranks,
            seed=1,
            epoch=epoch,
        )

    total = count_steps(len(rows), batch_rows, epochs, limit)
    weights = row_weights(rows, "token")
    return list(steps(plan_of, rows, weights, ranks=ranks, rank=rank, start=start, total_steps=total))


def members(of_ranks: Sequence[Step]) -> list[int]:
    """The rows of one step on all ranks, sorted."""
    packs = [pack for step in of_ranks for pack in step.micro_batches if pack is not None]
    return sorted(row for pack in packs for row in pack.rows.tolist())


@settings(deadline=None)
@given(
    rows=st.integers(1, 30),
    batch_rows=st.integers(1, 12),
    strategy=st.sampled_from(STRATEGIES),
    ranks=st.integers(1, 4),
    pack_length=st.integers(1, 40),
    epochs=st.integers(1, 3),
)
def test_every_row_once_an_epoch_in_the_same_batches(
    rows: int, batch_rows: int, strategy: Strategy, ranks: int, pack_length: int, epochs: int
) -> None:
    data = some_rows(rows)
    expected = [members([step]) for step in all_steps(data, batch_rows=batch_rows, epochs=epochs)]
    by_rank = [
        all_steps(
            data,
            batch_rows=batch_rows,
            epochs=epochs,
            strategy=strategy,
            ranks=ranks,
            rank=rank,
            pack_length=pack_length,
        )
        for rank in range(ranks)
    ]
    assert [members(of_ranks) for of_ranks in zip(*by_rank, strict=True)] == expected
    seen: list[list[int]] = [[] for _ in range(epochs)]
    epoch = 0
    for of_ranks, found in zip(zip(*by_rank, strict=True), expected, strict=True):
        first = of_ranks[0]
        assert len({len(step.micro_batches) for step in of_ranks}) == 1
        assert first.rows == len(found) == min(batch_rows, rows - len(seen[epoch]))
        assert first.denominator == first.trained_tokens == sum(row % 3 for row in found)
        assert first.packs == sum(pack is not None for step in of_ranks for pack in step.micro_batches)
        seen[epoch] += found
        epoch += first.ends_epoch
    assert [sorted(of_epoch) for of_epoch in seen] == [list(range(rows))] * epochs


@pytest.mark.parametrize("limit", [None, 7])
def test_steps_are_the_same_when_resumed_from_any_position(limit: int | None) -> None:
    """Also on another number of ranks, and in the middle of an epoch."""
    rows = some_rows(11)
    whole = all_steps(rows, batch_rows=4, epochs=3, limit=limit)
    assert len(whole) == (limit or 9)
    for done, step in enumerate(whole[:-1], start=1):
        rest = [
            all_steps(rows, batch_rows=4, epochs=3, ranks=2, rank=rank, start=step.position, limit=limit)
            for rank in range(2)
        ]
        assert [s.position for s in rest[0]] == [s.position for s in whole[done:]]
        for *ours, theirs in zip(*rest, whole[done:], strict=True):
            assert members(ours) == members([theirs])


def test_the_example_of_the_module() -> None:
    """100 rows of 1,000 tokens, 800 of them common."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 1000, 800).tolist()
    tokens = [[*prompt, 2000 + row, *rng.integers(0, 1000, 199).tolist()] for row in range(100)]
    labels = [[IGNORE_INDEX] * 990 + row[990:] for row in tokens]
    rows = Rows.from_lists(tokens, labels)

    def shape(strategy: Strategy) -> list[list[int]]:
        """Rows of each pack of both ranks, by step."""
        ranks = [
            all_steps(rows, batch_rows=32, epochs=2, strategy=strategy, ranks=2, rank=rank, pack_length=8192)
            for rank in range(2)
        ]
        return [
            [len(pack.rows) for step in of_ranks for pack in step.micro_batches if pack is not None]
            for of_ranks in zip(*ranks, strict=True)
        ]

    assert shape("flat") == [[8, 8, 8, 8], [8, 8, 8, 8], [8, 8, 8, 8], [2, 2]] * 2
    assert shape("prefix_tree") == [[16, 16], [16, 16], [16, 16], [2, 2]] * 2
    assert shape("none") == [[1] * 32, [1] * 32, [1] * 32, [1] * 4] * 2
    tree = plan_packs(rows, strategy="prefix_tree", pack_length=8192, batch_rows=32, ranks=2)
    assert tree[0].distinct_tokens == 4000


def test_weights_of_rows() -> None:
    rows = some_rows(6)
    np.testing.assert_array_equal(row_weights(rows, "token"), [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(row_weights(rows, "sample"), [0, 1, 1, 0, 1, 1])


def pack_of(cost: float) -> Pack:
    nothing = np.zeros(1, np.int32)
    return Pack(nothing, ("row",), nothing, nothing, cost)


def test_ranks_get_equally_many_packs_of_about_equal_cost() -> None:
    dealt = distribute([pack_of(cost) for cost in (1, 2, 3, 4, 5, 9)], ranks=2)
    assert [[pack.cost for pack in packs if pack] for packs in dealt] == [[9, 3, 1], [5, 4, 2]]
    dealt = distribute([pack_of(cost) for cost in (1, 1, 10)], ranks=2)
    assert [[pack and pack.cost for pack in packs] for packs in dealt] == [[10, None], [1, 1]]


def test_a_rank_without_packs_runs_as_many_micro_batches() -> None:
    dealt = distribute([pack_of(cost) for cost in (1, 2, 3)], ranks=4)
    assert [len(packs) for packs in dealt] == [1, 1, 1, 1]
    assert dealt[3] == [None]
    assert distribute([], ranks=2) == [[], []]


@given(
    rows=st.integers(1, 40),
    batch_rows=st.integers(1, 12),
    epochs=st.one_of(st.none(), st.integers(1, 3)),
    limit=st.one_of(st.none(), st.integers(1, 30)),
    least=st.one_of(st.none(), st.integers(1, 30)),
)
def test_the_number_of_steps(
    rows: int, batch_rows: int, epochs: int | None, limit: int | None, least: int | None
) -> None:
    """Against batches that are taken one by one."""
    if epochs is None and limit is None:
        return
    taken, of_epoch = 0, len(range(0, rows, batch_rows))
    while (limit is None or taken < limit) and (epochs is None or taken < epochs * of_epoch or taken < (least or 0)):
        taken += 1
    assert count_steps(rows, batch_rows, epochs, limit, least) == taken
