"""Best-fit decreasing bin packing."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def best_fit_decreasing(sizes: np.ndarray, capacity: float) -> list[list[int]]:
    """Put items into as few bins as possible: the largest first, each into the fullest bin that has room for it.

    At most 11/9 of the best possible number of bins plus one (Johnson et al., 1974, "Worst-case performance bounds for
    simple one-dimensional packing algorithms"); with many small items nearly all bins are full.
    Takes O(items log items) plus one move in a short sorted list per item.

    Args:
        sizes: int [items], each at most `capacity`.
        capacity: of each bin.

    Returns:
        The items of each bin.
    """
    order = np.argsort(-sizes, kind="stable")
    smallest = int(sizes.min(initial=0))
    bins: list[list[int]] = []
    rooms: list[int] = []  # distinct amounts of free room in open bins, sorted
    with_room: dict[int, list[list[int]]] = {}
    for item, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        found = bisect_left(rooms, size)
        if found < len(rooms):
            room = rooms[found]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[found]
        else:
            room, chosen = int(capacity), []
            bins.append(chosen)
        chosen.append(item)
        room -= size
        if room >= max(smallest, 1):
            if room not in with_room:
                with_room[room] = []
                insort(rooms, room)
            with_room[room].append(chosen)
    return bins
