"""Sorting rows by prompt, so that rows with long common prefixes are neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WINDOW = 32
"""Tokens of a row that are compared at once."""

ENDED = -1
"""Replaces tokens that a row may not share."""

Window = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Reads WINDOW tokens of some rows (int64 [n]), starting at a position in each (int64 [n]): int32 [n, WINDOW], a copy.
Values beyond a row's end are undefined."""


@dataclass(frozen=True, eq=False)
class PromptOrder:
    """All rows of a split, sorted by what they may share.

    Attributes:
        order: int64 [rows], the rows in lexicographic order of their shareable tokens.
        shared: int64 [rows], for each place in `order`, the length of the prefix common with the place before.
    """

    order: np.ndarray
    shared: np.ndarray

    @cached_property
    def places(self) -> np.ndarray:
        """Position of each row in `order`, int64 [rows]."""
        places = np.empty(len(self.order), np.int64)
        places[self.order] = np.arange(len(self.order))
        return places

    def common(self, places: np.ndarray) -> np.ndarray:
        """For each of several places the prefix common with the one before it in the list, int64; 0 for the first.

        Args:
            places: int64. A result is only defined where a place is not smaller than the one before it.
        """
        common = np.zeros(len(places), np.int64)
        if len(places) > 1:
            low, high = np.minimum(places[:-1], places[1:]) + 1, np.maximum(places[:-1], places[1:]) + 1
            level = self._levels[high - low]
            minima = self._minima
            common[1:] = np.minimum(minima[level, low], minima[level, high - (1 << level)])
        return common

    @cached_property
    def _levels(self) -> np.ndarray:
        """floor(log2(n)) of every n that can be the length of a range; int64."""
        return np.log2(np.maximum(np.arange(len(self.order) + 1), 1)).astype(np.int64)

    @cached_property
    def _minima(self) -> np.ndarray:
        """Minima of `shared` over 2**level places from each place on, int32 [levels, rows].

        The common prefix of two sorted rows is the shortest one between neighbours from one to the other. With this table,
        any such minimum takes two look-ups (a sparse table: Bender and Farach-Colton, 2000, "The LCA
        problem revisited").
        """
        levels = max(len(self.shared), 1).bit_length()
        minima = np.tile(self.shared.astype(np.int32), (levels, 1))
        for level in range(1, levels):
            half = 1 << (level - 1)
            np.minimum(minima[level - 1, :-half], minima[level - 1, half:], out=minima[level, :-half])
        return minima


def sort_prompts(window: Window, limits: np.ndarray) -> PromptOrder:
    """Sort rows by the tokens that they may share.

    Groups of rows with equal prefixes are split where their rows first differ, all groups at a time, until no group can be
    split. Only a few tokens of each row are in memory at once.

    Args:
        window: reads tokens of rows.
        limits: int64 [rows], leading tokens that each row may share.
    """
    order, shared = np.arange(len(limits)), np.zeros(len(limits), np.int64)
    # For each place in `order`: the first place of its group, and the known length of the group's common prefix.
    group, depth = np.zeros_like(order), np.zeros_like(order)
    active = order.copy() if len(order) > 1 else order[:0]
    while len(active):
        rows, reached = order[active], depth[active]
        tokens = window(rows, reached)
        tokens[np.arange(WINDOW) >= (limits[rows] - reached)[:, None]] = ENDED
        heads = np.flatnonzero(np.diff(group[active], prepend=-1))
        sizes = np.diff(np.append(heads, len(active)))

        differs = tokens != tokens[np.repeat(heads, sizes)]
        column = np.where(differs.any(axis=1), differs.argmax(axis=1), WINDOW)
        column = np.repeat(np.minimum.reduceat(column, heads), sizes)
        reached += column
        # If a whole window is equal, its last token shows whether the rows have ended.
        token = tokens[np.arange(len(active)), np.minimum(column, WINDOW - 1)]
        sorting = np.lexsort((token, group[active]))
        order[active], token = rows[sorting], token[sorting]

        begins = np.diff(token, prepend=token[0]) != 0
        begins[heads] = False
        shared[active[begins]] = reached[begins]
        begins[heads] = True
        group[active] = active[np.maximum.accumulate(np.where(begins, np.arange(len(active)), 0))]
        depth[active] = reached + (column < WINDOW)
        # Rows that end at the same position with the same prefix are equal.
        alike = active[(token == ENDED) & ~begins]
        shared[alike] = limits[order[alike]]
        alone = begins & np.append(begins[1:], True)
        active = active[(token != ENDED) & ~alone]
    return PromptOrder(order, shared)
