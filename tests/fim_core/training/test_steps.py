"""Which packs an optimizer step takes, in each division into ranks and micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim_core.packing import IGNORE_INDEX, PackPlan, Rows, plan_packs
from fim_core.training.steps import Position, Sharding, Step, count_steps, micro_batches, row_weights, steps

START = Position()


def some_rows(count: int) -> Rows:
    """Rows of 4 tokens; row i trains on i % 3 positions."""
    tokens = [[row, 1, 2, 3] for row in range(count)]
    labels = [[IGNORE_INDEX] * (4 - row % 3) + [1, 2, 3][3 - row % 3 :] for row in range(count)]
    return Rows.from_lists(tokens, labels)


def all_steps(
    rows: Rows, sharding: Sharding, epochs: int, start: Position = START, limit: int | None = None
) -> list[Step]:
    plans = [plan_packs(rows, strategy="none", max_length=8, seed=1, epoch=epoch) for epoch in range(epochs)]

    def plan_of(epoch: int) -> PackPlan:
        return plans[epoch]

    total = count_steps(lambda epoch: len(plans[epoch]), sharding, start, epochs, limit)
    return list(steps(plan_of, rows, row_weights(rows, "token"), sharding, start, total))


@settings(deadline=None)
@given(
    packs=st.integers(1, 30),
    ranks=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    size=st.integers(1, 3),
    epochs=st.integers(1, 3),
)
def test_every_pack_once_an_epoch(packs: int, ranks: int, accumulation: int, size: int, epochs: int) -> None:
    rows = some_rows(packs)
    by_rank = [all_steps(rows, Sharding(ranks, rank, accumulation, size), epochs) for rank in range(ranks)]
    assert len({len(found) for found in by_rank}) == 1
    seen: list[list[int]] = [[] for _ in range(epochs)]
    epoch = 0
    for of_ranks in zip(*by_rank, strict=True):
        assert len({len(step.micro_batches) for step in of_ranks}) == 1
        assert 1 <= len(of_ranks[0].micro_batches) <= accumulation
        assert all(len(batch) <= size for step in of_ranks for batch in step.micro_batches)
        members = [row for step in of_ranks for batch in step.micro_batches for pack in batch for row in pack.rows]
        assert of_ranks[0].rows == len(members)
        assert of_ranks[0].denominator == of_ranks[0].targets == sum(row % 3 for row in members)
        seen[epoch] += members
        epoch += of_ranks[0].ends_epoch
    assert [sorted(of_epoch) for of_epoch in seen] == [list(range(packs))] * epochs


@pytest.mark.parametrize("limit", [None, 7])
def test_going_on_from_any_position_gives_the_same_steps(limit: int | None) -> None:
    rows, sharding = some_rows(11), Sharding(2, 1, 2, 1)
    whole = all_steps(rows, sharding, epochs=3, limit=limit)
    assert len(whole) == (limit or 9)
    for done, step in enumerate(whole[:-1], start=1):
        rest = all_steps(rows, sharding, epochs=3, start=step.position, limit=limit)
        assert [s.position for s in rest] == [s.position for s in whole[done:]]
        for ours, theirs in zip(rest, whole[done:], strict=True):
            assert [[p.row_ids for p in b] for b in ours.micro_batches] == [
                [p.row_ids for p in b] for b in theirs.micro_batches
            ]


def test_step_holds_the_same_rows_however_it_is_divided() -> None:
    rows = some_rows(20)

    def members(*shardings: Sharding) -> list[set[int]]:
        by_rank = [all_steps(rows, sharding, epochs=1) for sharding in shardings]
        return [
            {row for step in of_ranks for batch in step.micro_batches for pack in batch for row in pack.rows.tolist()}
            for of_ranks in zip(*by_rank, strict=True)
        ]

    expected = members(Sharding(1, 0, 1, 8))
    assert members(Sharding(1, 0, 8, 1)) == expected
    assert members(*(Sharding(2, rank, 2, 2) for rank in range(2))) == expected
    assert members(*(Sharding(4, rank, 2, 1) for rank in range(4))) == expected


def test_weights_of_rows() -> None:
    rows = some_rows(6)
    np.testing.assert_array_equal(row_weights(rows, "token"), [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(row_weights(rows, "sample"), [0, 1, 1, 0, 1, 1])


def test_a_rank_without_packs_runs_as_many_micro_batches() -> None:
    packs = list(plan_packs(some_rows(3), strategy="none", max_length=8))
    dealt = [micro_batches(packs, Sharding(4, rank, 2, 1)) for rank in range(4)]
    assert [len(batches) for batches in dealt] == [1, 1, 1, 1]
    assert dealt[3] == [[]]


@settings(deadline=None)
@given(
    packs=st.lists(st.integers(1, 9), min_size=12, max_size=12),
    per_step=st.integers(1, 4),
    epochs=st.one_of(st.none(), st.integers(1, 3)),
    limit=st.one_of(st.none(), st.integers(1, 12)),
    least=st.one_of(st.none(), st.integers(1, 12)),
)
def test_the_number_of_steps(
    packs: list[int], per_step: int, epochs: int | None, limit: int | None, least: int | None
) -> None:
    """Against the steps of whole epochs listed one by one, then lengthened and cut."""
    if epochs is None and limit is None:
        return
    in_epochs = [-(-count // per_step) for count in packs]
    wanted = sum(in_epochs[:epochs]) if epochs is not None else limit
    wanted = max(wanted or 0, least or 0)
    wanted = wanted if limit is None else min(wanted, limit)
    asked: list[int] = []

    def packs_of(epoch: int) -> int:
        asked.append(epoch)
        return packs[epoch]

    sharding = Sharding(1, 0, per_step, 1)
    assert count_steps(packs_of, sharding, START, epochs, limit, least) == wanted
    assert sum(in_epochs[: len(asked)]) >= wanted > sum(in_epochs[: len(asked) - 1])
    # From the end of any epoch that the run reaches, the same.
    for epoch in range(1, len(asked)):
        start = Position(sum(in_epochs[:epoch]), epoch, 0)
        assert count_steps(packs_of, sharding, start, epochs, limit, least) == wanted
