"""Rows in the order of their prompts, so that rows with long common prefixes are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class PromptOrder:
    """All rows of a split, sorted by what they may share.

    Attributes:
        order: int64 [rows], the rows in lexicographic order of their shareable tokens. How two tokens compare is
            arbitrary, but always the same.
        shared: int64 [rows], for each place in `order` the length of the prefix common with the place before.
    """

    order: np.ndarray
    shared: np.ndarray

    @cached_property
    def places(self) -> np.ndarray:
        """Where each row stands in `order`, int64 [rows]."""
        places = np.empty(len(self.order), np.int64)
        places[self.order] = np.arange(len(self.order))
        return places

    def common(self, places: np.ndarray) -> np.ndarray:
        """For each of several places the prefix common with the one before it in the list, int64; 0 for the first.

        Args:
            places: int64, in ascending order wherever the answer is used; elsewhere the answer has no meaning.
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

        Sorted rows have as their common prefix the shortest one between neighbours on the way from one to the other.
        With this table any such minimum takes two look-ups (a sparse table: Bender and Farach-Colton, 2000, "The LCA
        problem revisited").
        """
        levels = max(len(self.shared), 1).bit_length()
        minima = np.tile(self.shared.astype(np.int32), (levels, 1))
        for level in range(1, levels):
            half = 1 << (level - 1)
            np.minimum(minima[level - 1, :-half], minima[level - 1, half:], out=minima[level, :-half])
        return minima


def sort_prompts(prompts: Sequence[np.ndarray]) -> PromptOrder:
    """Sort what rows may share.

    Args:
        prompts: int32 tokens of each row.
    """
    keys = [prompt.tobytes() for prompt in prompts]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    shared = np.zeros(len(keys), np.int64)
    for place in range(1, len(order)):
        shared[place] = _common(keys[order[place - 1]], keys[order[place]]) // 4
    return PromptOrder(np.array(order, np.int64), shared)


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
