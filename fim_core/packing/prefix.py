"""Packing of rows in prompt order that preserves most of the shared prefixes."""

from __future__ import annotations

from collections import deque

import numpy as np

from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.cost import Cost

SLACK = 1.25
"""Factor by which the cost of a pack may exceed that of the average full pack."""

REPEATED = 0.01
"""Share of the tokens that may be repeated to fill packs better."""


def pack_by_prefix(
    lengths: np.ndarray, shared: np.ndarray, targets: np.ndarray, *, capacity: int, cost: Cost
) -> list[np.ndarray]:
    """Pack rows so that those with long common prompts are together, with at most `capacity` distinct tokens in a pack.

    The rows are cut where they share least, and runs shorter than a pack are combined by best fit.

    Args:
        lengths: int64 [rows], tokens of each row, in prompt order; a row longer than `capacity` is packed alone.
        shared: int64 [rows], prefix common with the row before.
        targets: int64 [rows], positions that are predicted.
        capacity: distinct tokens of a pack.
        cost: for balancing packs.

    Returns:
        For each pack its rows, int64, in prompt order.
    """
    common = int(shared[1:].min(initial=capacity)) if len(lengths) > 1 else 0
    row_costs = cost.of_rows(lengths, targets)
    own_costs = row_costs - cost.of_prefix(shared)
    own_lengths = lengths - shared
    fitting = row_costs[lengths <= capacity].max(initial=0)
    budget = max(fitting, SLACK * capacity * own_costs.sum() / own_lengths.sum())

    prices = np.where(shared <= _cheap_depth(shared[1:], own_lengths.sum()), 0.0, shared)
    groups = _cut(lengths, shared, own_costs, cost.of_prefix(shared), prices, capacity, budget)
    # The prefix common to all rows is in every pack once, so groups share the remaining tokens and cost. A pack is full
    # when either is used up, so the size of a group is the larger of its two shares.
    prefix_cost = float(cost.of_prefix(np.array(common)))
    first = np.array([start for start, _ in groups])
    sizes = np.add.reduceat(own_lengths, first) + shared[first] - common
    group_costs = np.add.reduceat(own_costs, first) + cost.of_prefix(shared[first]) - prefix_cost
    room = max(capacity - common, 1)
    share = np.maximum(sizes / room, group_costs / max(budget - prefix_cost, 1e-9))
    bins = best_fit_decreasing(np.ceil(np.minimum(share, 1) * room).astype(np.int64), room)
    return [np.concatenate([np.arange(*groups[group]) for group in sorted(members)]) for members in bins]


def _cheap_depth(shared: np.ndarray, distinct: int) -> int:
    """The largest prefix length at which rows may be separated everywhere, repeating at most REPEATED of all tokens.

    Most rows share only the system prompt. Separating them there costs almost nothing and gives small groups, which fill
    packs well.
    """
    if len(shared) == 0:
        return 0
    depths = np.sort(shared)
    affordable = int(np.searchsorted(np.cumsum(depths - depths[0]), REPEATED * distinct, side="right"))
    return max(int(depths[0]), int(depths[min(affordable, len(depths) - 1)]) - 1)


def _cut(
    lengths: np.ndarray,
    shared: np.ndarray,
    own_costs: np.ndarray,
    prefix_costs: np.ndarray,
    prices: np.ndarray,
    capacity: int,
    budget: float,
) -> list[tuple[int, int]]:
    """Cut the sorted rows into runs that fit a pack, with the minimum sum of prices; among equals, with more cuts.

    A run that starts at row `s` repeats the `shared[s]` tokens that it shares with the row before, hence its price. The
    best cuts up to row `i` are those up to some start `s` plus one run: best[i] = min over s of best[s] + prices[s].
    Runs that fit form a window that only moves forward, so a monotone queue finds each minimum in constant time.
    """
    ends = np.cumsum(lengths - shared).tolist()
    cost_ends = np.cumsum(own_costs).tolist()
    begins, cost_begins = [0, *ends[:-1]], [0.0, *cost_ends[:-1]]
    repeats, prefix, priced = shared.tolist(), prefix_costs.tolist(), prices.tolist()
    best, came_from = [0.0], [0]
    queue: deque[tuple[float, int]] = deque()  # (price, start), prices increasing
    for stop in range(1, len(ends) + 1):
        price = best[stop - 1] + priced[stop - 1]
        while queue and queue[-1][0] >= price:
            queue.pop()
        queue.append((price, stop - 1))
        while True:
            start = queue[0][1]
            tokens = ends[stop - 1] - begins[start] + repeats[start]
            spent = cost_ends[stop - 1] - cost_begins[start] + prefix[start]
            if start == stop - 1 or (tokens <= capacity and spent <= budget):
                break
            queue.popleft()
        best.append(queue[0][0])
        came_from.append(queue[0][1])
    cuts = [len(ends)]
    while cuts[-1]:
        cuts.append(came_from[cuts[-1]])
    return list(zip(cuts[:0:-1], cuts[-2::-1], strict=True))
