"""Which rows share a prompt prefix, and where to cut the rows into packs that keep most of the sharing."""

from __future__ import annotations

from collections import deque

import numpy as np

from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.cost import Cost
from fim_core.packing.rows import Rows

SLACK = 1.25
"""How much more than the average full pack one pack may cost."""

REPEATED = 0.01
"""Share of the tokens that may be repeated so that packs fill well."""


def pack_by_prefix(rows: Rows, *, max_length: int, cost: Cost, rng: np.random.Generator) -> list[np.ndarray]:
    """Packs of at most `max_length` distinct tokens in which rows with long common prompts stand together.

    The rows are sorted by prompt, so that the longest common prefixes are between neighbours; the sorted order is cut
    where least is shared, and what is shorter than a pack is put together with others, best fit first.

    Returns:
        For each pack its rows, int64, in prefix order.
    """
    order, shared = sort_by_prompt(rows, rng)
    lengths = rows.lengths[order]
    common = int(shared[1:].min(initial=max_length)) if len(order) > 1 else 0
    row_costs = cost.of_rows(lengths, rows.targets_per_row[order])
    own_costs = row_costs - cost.of_prefix(shared)
    own_lengths = lengths - shared
    budget = max(row_costs.max(), SLACK * max_length * own_costs.sum() / own_lengths.sum())

    prices = np.where(shared <= _cheap_depth(shared[1:], own_lengths.sum()), 0.0, shared)
    prices *= rng.uniform(1, 2, size=len(prices))  # so that another epoch cuts elsewhere
    groups = _cut(lengths, shared, own_costs, cost.of_prefix(shared), prices, max_length, budget)
    sizes = np.array([own_lengths[a:b].sum() + shared[a] - common for a, b in groups])
    group_costs = np.array([own_costs[a:b].sum() + cost.of_prefix(shared[a]) for a, b in groups])
    # A bin is full when its tokens or its cost are used up; the larger share of the two is what a group takes of it.
    shares = np.ceil(np.maximum(sizes, group_costs / budget * (max_length - common))).astype(np.int64)
    capacity = max_length - common
    bins = best_fit_decreasing(np.minimum(shares, capacity), capacity, rng)
    return [np.concatenate([order[slice(*groups[group])] for group in sorted(members)]) for members in bins]


def sort_by_prompt(rows: Rows, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows in lexicographic order of what they may share, and what each shares with the one before it.

    Tokens are renumbered at random first. That changes which siblings stand side by side, and so the make-up of packs,
    but not what is shared.

    Returns:
        order: int64 [rows], the rows in order.
        shared: int64 [rows], for each place in `order` the length of the prefix common with the place before.
    """
    limits = shareable(rows)
    factor = np.uint32(rng.integers(0, 2**31) * 2 + 1)
    shift = np.uint32(rng.integers(0, 2**32))
    keys = []
    for row, limit in enumerate(limits.tolist()):
        prompt = rows.tokens_of(row)[:limit].view(np.uint32)
        keys.append((prompt * factor + shift).astype(">u4").tobytes())
    ties = rng.permutation(len(rows)).tolist()
    order = sorted(ties, key=keys.__getitem__)
    shared = np.zeros(len(rows), np.int64)
    for place in range(1, len(order)):
        shared[place] = _common(keys[order[place - 1]], keys[order[place]]) // 4
    return np.array(order, np.int64), shared


def shareable(rows: Rows) -> np.ndarray:
    """Leading tokens of each row that other rows may share, int64 [rows].

    They end before the position that makes the row's first prediction: everything in them is masked, and each row
    keeps at least one token of its own.
    """
    return np.maximum(np.minimum(rows.first_targets, rows.lengths) - 1, 0)


def shared_with_previous(rows: Rows, members: np.ndarray) -> np.ndarray:
    """For rows in prefix order, how many leading tokens each may share with the one before; int64 [rows]."""
    shared = np.zeros(len(members), np.int64)
    limits = shareable(rows)[members].tolist()
    for place in range(1, len(members)):
        limit = min(limits[place - 1], limits[place])
        before, here = (rows.tokens_of(int(row))[:limit] for row in members[place - 1 : place + 1])
        differs = np.flatnonzero(before != here)
        shared[place] = differs[0] if len(differs) else limit
    return shared


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


def _common(first: bytes, second: bytes) -> int:
    """Length of the common prefix of two byte strings."""
    size = min(len(first), len(second))
    if first[:size] == second[:size]:
        return size
    low = 0
    while size - low > 64:
        middle = (low + size) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            size = middle
    return next(i for i in range(low, size + 1) if first[i] != second[i])


def _cut(
    lengths: np.ndarray,
    shared: np.ndarray,
    own_costs: np.ndarray,
    prefix_costs: np.ndarray,
    prices: np.ndarray,
    max_length: int,
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
            if start == stop - 1 or (tokens <= max_length and spent <= budget):
                break
            queue.popleft()
        best.append(queue[0][0])
        came_from.append(queue[0][1])
    cuts = [len(ends)]
    while cuts[-1]:
        cuts.append(came_from[cuts[-1]])
    return list(zip(cuts[:0:-1], cuts[-2::-1], strict=True))
