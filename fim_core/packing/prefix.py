"""Where to cut rows in prompt order into packs that keep most of what the rows share."""

from __future__ import annotations

from collections import deque

import numpy as np

from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.cost import Cost

SLACK = 1.25
"""How much more than the average full pack one pack may cost."""

REPEATED = 0.01
"""Share of the tokens that may be repeated so that packs fill well."""


def pack_by_prefix(
    lengths: np.ndarray, shared: np.ndarray, targets: np.ndarray, *, capacity: int, cost: Cost
) -> list[np.ndarray]:
    """Packs of at most `capacity` distinct tokens in which rows with long common prompts are together.

    The rows are cut where least is shared, and what is shorter than a pack is put together with others, best fit first.

    Args:
        lengths: int64 [rows], tokens of each row, in prompt order; a row longer than `capacity` is a pack of its own.
        shared: int64 [rows], prefix common with the row before.
        targets: int64 [rows], positions that are predicted.
        capacity: of a pack.
        cost: what packs are balanced by.

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
    # What all rows have in common is in every pack once: groups compete for the rest of its tokens and of its budget. A
    # pack is full when one of the two is used up, and a group takes the larger of its shares.
    prefix_cost = float(cost.of_prefix(np.array(common)))
    first = np.array([start for start, _ in groups])
    sizes = np.add.reduceat(own_lengths, first) + shared[first] - common
    group_costs = np.add.reduceat(own_costs, first) + cost.of_prefix(shared[first]) - prefix_cost
    room = max(capacity - common, 1)
    share = np.maximum(sizes / room, group_costs / max(budget - prefix_cost, 1e-9))
    bins = best_fit_decreasing(np.ceil(np.minimum(share, 1) * room).astype(np.int64), room)
    return [np.concatenate([np.arange(*groups[group]) for group in sorted(members)]) for members in bins]


def _cheap_depth(shared: np.ndarray, distinct: int) -> int:
    """The largest prefix length that may be repeated wherever rows part at it, for at most REPEATED of all tokens.

    Nearly all rows share the system prompt and little more. Parting there costs next to nothing and leaves small
    groups, which fill packs well.
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
    """Cut the sorted rows into runs that fit a pack, at the least sum of prices; of equal sums, the one with more cuts.

    A run that starts at row `s` repeats the `shared[s]` tokens that it has in common with the row before, hence its
    price. The best cuts up to row `i` are those up to some start `s` plus one run: best[i] = min over s of
    best[s] + prices[s]. Runs that fit form a window that only moves forward, so a monotone queue finds each minimum
    in constant time.
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
