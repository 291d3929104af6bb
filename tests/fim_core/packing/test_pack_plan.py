"""Pack plans: every row in exactly one pack, paths equal rows, minimal repetition, and the length limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_helpers import distinct_tokens, leaf_paths, row, to_rows

from fim_core.packing import IGNORE_INDEX, PackPlan, Rows, collate, plan_packs
from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.cost import Cost

STRATEGIES = ["prefix_tree", "flat", "none"]


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(row(), min_size=1, max_size=25),
    strategy=st.sampled_from(STRATEGIES),
    room=st.integers(0, 40),
    batch_rows=st.none() | st.integers(1, 30),
    ranks=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_every_plan_holds_every_row_once_and_whole(pairs, strategy, room, batch_rows, ranks, epoch):
    rows = to_rows(pairs)
    pack_length = 4 + room
    plan = plan_packs(
        rows, strategy=strategy, pack_length=pack_length, batch_rows=batch_rows, ranks=ranks, seed=3, epoch=epoch
    )

    assert sorted(index for pack in plan for index in pack.rows.tolist()) == list(range(len(pairs)))
    for pack in plan:
        members = [pairs[index] for index in pack.rows.tolist()]
        batch = collate([pack], rows)
        sequence = batch.input_ids[0].tolist()
        assert len(sequence) == pack.distinct_tokens == pack.layout.tokens
        assert len(sequence) <= pack_length or len(members) == 1
        assert pack.row_ids == batch.row_ids == tuple(f"row-{index}" for index in pack.rows)
        for (tokens, _), (path, places) in zip(members, leaf_paths(pack, sequence), strict=True):
            assert path == tokens
            assert batch.position_ids[0, places].tolist() == list(range(len(tokens)))
        if strategy == "prefix_tree":
            assert pack.distinct_tokens == distinct_tokens(members)
        else:
            assert pack.distinct_tokens == pack.tokens
        if strategy == "none":
            assert len(members) == 1


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(row(), min_size=1, max_size=12), strategy=st.sampled_from(STRATEGIES))
def test_each_prediction_is_at_the_token_before_its_target(pairs, strategy):
    rows = to_rows(pairs)
    plan = plan_packs(rows, strategy=strategy, pack_length=40)
    batch = collate(list(plan), rows)  # all packs as one micro-batch
    sequence = batch.input_ids[0].tolist()
    found: dict[str, list[tuple[int, int, int]]] = {name: [] for name in batch.row_ids}
    for place, target, of_row in zip(batch.predict_positions, batch.targets, batch.target_rows, strict=True):
        found[batch.row_ids[of_row]].append((int(batch.position_ids[0, place]), sequence[place], int(target)))
    for index, (tokens, labels) in enumerate(pairs):
        expected = [(i - 1, tokens[i - 1], labels[i]) for i in range(1, len(tokens)) if labels[i] != IGNORE_INDEX]
        assert found[f"row-{index}"] == expected


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(row(), min_size=1, max_size=12))
def test_a_token_is_shared_only_where_nothing_is_predicted_from_it(pairs):
    rows = to_rows(pairs)
    for pack in plan_packs(rows, strategy="prefix_tree", pack_length=60):
        batch = collate([pack], rows)
        visits = np.zeros(batch.distinct_tokens, int)
        for _, places in leaf_paths(pack, batch.input_ids[0].tolist()):
            visits[places] += 1
        assert (visits >= 1).all()
        assert (visits[batch.predict_positions.numpy()] == 1).all()


def test_rows_separate_before_a_trained_token_inside_the_prompt():
    """Conversations with the same first answer: what predicts it is each row's own, though the prompts go on alike."""
    system, question, answer, more = [1, 2, 3], [4], [5, 6], [7, 8]
    tokens = [[*system, *question, *answer, *more, last] for last in (10, 11, 12)]
    hidden = [IGNORE_INDEX]
    labels = [[*hidden * 4, *answer, *hidden * 2, last] for last in (10, 11, 12)]
    rows = Rows.from_lists(tokens, labels)
    [pack] = plan_packs(rows, strategy="prefix_tree", pack_length=60)
    shared = len(system)  # not `question`: its token predicts the first one of `answer`
    assert pack.distinct_tokens == shared + 3 * (len(tokens[0]) - shared)
    batch = collate([pack], rows)
    predicted = sorted(zip(batch.target_rows.tolist(), batch.targets.tolist(), strict=True))
    assert predicted == sorted((row, label) for row in range(3) for label in labels[int(pack.rows[row])] if label > 0)


def test_the_same_seed_gives_the_same_plan_and_another_epoch_another():
    generator = np.random.default_rng(0)
    contexts = [generator.integers(0, 90, 30).tolist() for _ in range(6)]
    pairs = []
    for _ in range(300):
        prompt = contexts[generator.integers(6)] + generator.integers(0, 90, generator.integers(1, 20)).tolist()
        pairs.append(([*prompt, 5, 6], [IGNORE_INDEX] * len(prompt) + [5, 6]))
    rows = to_rows(pairs)
    for strategy in ("prefix_tree", "flat"):
        first, again, later, other = (
            [
                pack.rows.tolist()
                for pack in plan_packs(rows, strategy=strategy, pack_length=200, batch_rows=30, seed=seed, epoch=epoch)
            ]
            for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
        )
        assert first == again
        for changed in (later, other):
            assert first != changed
            company = {frozenset(pack) for pack in first} & {frozenset(pack) for pack in changed}
            assert len(company) < len(first) / 2


def test_rows_of_one_context_are_packed_together_with_little_repetition():
    generator = np.random.default_rng(1)
    system = generator.integers(0, 1000, 50).tolist()
    pairs = []
    for _ in range(40):
        context = system + generator.integers(0, 1000, generator.integers(100, 500)).tolist()
        for _ in range(generator.integers(1, 12)):
            own = generator.integers(0, 1000, generator.integers(10, 60)).tolist()
            pairs.append((context + own, [IGNORE_INDEX] * (len(context) + 5) + own[5:]))
    rows = to_rows(pairs)
    stats = plan_packs(rows, strategy="prefix_tree", pack_length=2048).stats
    assert stats.tokens == sum(len(tokens) for tokens, _ in pairs)
    assert stats.rows == len(pairs)
    # One pack of any length would hold `distinct_tokens`; the limit costs the system prompt for each pack, and a bit.
    assert stats.distinct_tokens < 1.03 * (distinct_tokens(pairs) + stats.packs * len(system))
    assert stats.packs <= stats.distinct_tokens / 2048 + 2
    assert stats.batches == 1


def test_packs_cost_about_the_same():
    generator = np.random.default_rng(2)
    pairs = []
    for length, targets in [(1000, 10)] * 60 + [(60, 50)] * 400:
        tokens = generator.integers(0, 1000, length).tolist()
        pairs.append((tokens, [IGNORE_INDEX] * (length - targets) + tokens[-targets:]))
    rows = to_rows(pairs)
    cost = Cost(token=1.0, pair=1 / 500, target=20.0)
    spent = cost.of_rows(rows.lengths, rows.targets_per_row)
    plan = plan_packs(rows, strategy="prefix_tree", pack_length=4000, cost=cost)
    costs = np.array([spent[pack.rows].sum() for pack in plan])
    average_full_pack = 4000 * spent.sum() / rows.lengths.sum()
    assert costs.max() <= 1.25 * average_full_pack * 1.001
    unbound = plan_packs(rows, strategy="prefix_tree", pack_length=4000, cost=Cost(token=1.0, pair=0.0, target=0.0))
    assert costs.max() < max(spent[pack.rows].sum() for pack in unbound)


def test_a_row_longer_than_a_pack_is_packed_alone():
    rows = to_rows([([1] * 5, [1] * 5), ([2] * 9, [2] * 9), ([1] * 3, [1] * 3)])
    for strategy in ("prefix_tree", "flat"):
        packs = sorted(sorted(pack.rows.tolist()) for pack in plan_packs(rows, strategy=strategy, pack_length=8))
        assert packs == [[0, 2], [1]]


def test_no_rows_make_no_packs():
    rows = Rows.from_lists([], [])
    for strategy in STRATEGIES:
        plan = plan_packs(rows, strategy=strategy, pack_length=8)
        assert len(plan) == 0
        assert plan.stats.batches == plan.stats.rows_per_batch == 0


def test_a_plan_is_a_table_that_leads_back_to_row_ids(tmp_path: Path):
    pairs = [([1, 2, 3, 4, answer], [IGNORE_INDEX] * 4 + [answer]) for answer in range(8)]
    rows = to_rows(pairs)
    plan = plan_packs(rows, strategy="prefix_tree", pack_length=12, batch_rows=4, ranks=2, seed=4)
    plan.write(tmp_path / "packs.parquet")
    again = PackPlan.read(tmp_path / "packs.parquet")
    assert again.stats == plan.stats
    assert (again.strategy, again.pack_length, again.ranks) == ("prefix_tree", 12, 2)
    assert [[pack.row_ids for pack in again.batch(i)] for i in range(again.batches)] == [
        [pack.row_ids for pack in plan.batch(i)] for i in range(plan.batches)
    ]
    table = pq.read_table(tmp_path / "packs.parquet")
    assert table["batch"].to_pylist() == [0, 0, 1, 1]
    for stored, pack in zip(table.to_pylist(), plan, strict=True):
        assert [list(segment.values()) for segment in stored["segments"]] == pack.segments.tolist()
        assert stored["leaves"] == pack.leaves.tolist()
        assert (stored["tokens"], stored["distinct_tokens"]) == (pack.tokens, pack.distinct_tokens)
        assert stored["cost"] == pack.cost
    for before, after in zip(plan, again, strict=True):
        assert after.row_ids == before.row_ids
        assert np.array_equal(after.rows, before.rows)
        assert np.array_equal(after.segments, before.segments)


@pytest.mark.parametrize(("median", "cap"), [(1800, 32768), (1800, 262144), (6000, 32768), (6000, 262144)])
def test_best_fit_decreasing_fills_bins(median, cap):
    generator = np.random.default_rng(5)
    sizes = np.minimum(np.exp(generator.normal(np.log(median), 1.0, 50_000)).astype(np.int64) + 1, cap)
    bins = best_fit_decreasing(sizes, cap)
    assert sorted(item for members in bins for item in members) == list(range(len(sizes)))
    filled = [sizes[members].sum() for members in bins]
    assert max(filled) <= cap
    # The last bin holds what is left over; of whole bins at least 99.5% is used.
    assert sizes.sum() / (len(bins) * cap) >= min(0.995, 1 - 1 / len(bins))


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_best_fit_decreasing_equals_its_definition(sizes):
    """Against the definition: for each item, largest first, look at every bin."""
    bins = best_fit_decreasing(np.array(sizes), 10)
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [index for index, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= size
        else:
            rooms.append(10 - size)
    assert sorted(sum(sizes[item] for item in members) for members in bins) == sorted(10 - room for room in rooms)
