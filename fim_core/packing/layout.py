"""Layout of a packed sequence: a forest of segments in which each shared prefix occurs once.

Tokens are in preorder: a segment comes before everything that continues it, so the descendants of a segment are the
contiguous tokens after it. Attention and collation rely on that. For example, the rows `a b c` and `a b d e` become the
tokens `a b c d e` with three segments: `a b` (no parent), `c` and `d e` (parent 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Layout:
    """Segments of one packed sequence.

    Attributes:
        segments: int32 [segments, 3]: start, length, parent (an earlier segment, or -1), sorted by start.
            Each token attends to its own segment up to itself and to all tokens of its segment's ancestors.
        derived: values that attention computes from the segments once for all layers.
    """

    segments: np.ndarray
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens of the packed sequence."""
        return int(self.starts[-1] + self.lengths[-1])

    @property
    def starts(self) -> np.ndarray:
        """First token of each segment, int32."""
        return self.segments[:, 0]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each segment, int32."""
        return self.segments[:, 1]

    @property
    def parents(self) -> np.ndarray:
        """Index of the segment that each one continues, or -1; int32."""
        return self.segments[:, 2]

    @property
    def stops(self) -> np.ndarray:
        """End of each segment (exclusive), int32."""
        return self.starts + self.lengths

    @cached_property
    def depths(self) -> np.ndarray:
        """Position of each segment's first token along its path, int64."""
        depths = np.zeros(len(self.segments), np.int64)
        for index, (_, _, parent) in enumerate(self.segments.tolist()):
            if parent >= 0:
                depths[index] = depths[parent] + self.segments[parent, 1]
        return depths

    @cached_property
    def subtree_stops(self) -> np.ndarray:
        """End (exclusive) of the tokens of each segment and all its descendants, int64."""
        stops = self.stops.astype(np.int64)
        for index in range(len(self.segments) - 1, -1, -1):
            parent = self.segments[index, 2]
            if parent >= 0:
                stops[parent] = max(stops[parent], stops[index])
        return stops

    @cached_property
    def segment_of(self) -> np.ndarray:
        """Segment of each token, int64 [tokens]."""
        return np.repeat(np.arange(len(self.segments)), self.lengths)

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of each token along its path, int64 [tokens]: what position embeddings see."""
        return np.arange(self.tokens) - np.repeat(self.starts - self.depths, self.lengths)

    def path(self, segment: int) -> list[int]:
        """The segment and its ancestors, root first."""
        path = []
        while segment >= 0:
            path.append(segment)
            segment = int(self.parents[segment])
        return path[::-1]


def forest(lengths: np.ndarray, shared: np.ndarray) -> tuple[Layout, np.ndarray]:
    """The layout of rows in prefix order, and each row's last token in it.

    Args:
        lengths: int [rows], tokens of each row.
        shared: int [rows], leading tokens that each row shares with the row before it, which are not repeated; less than
            both rows' lengths, and 0 where a new tree begins.

    Returns:
        The layout, and int64 [rows]: the index of each row's last token in the packed sequence.
    """
    segments, last = segments_of(lengths, shared)
    return Layout(segments.astype(np.int32)), last


def segments_of(lengths: np.ndarray, shared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same as `forest`, for any number of tokens: the segments as int64, and each row's last token."""
    own = np.asarray(lengths, np.int64) - shared
    ends = np.cumsum(own)
    starts = ends - own
    # The token that each row continues from: the one at depth shared-1 on the path of the row before it.
    attach = np.full(len(starts), -1, np.int64)
    path: list[tuple[int, int]] = []
    for row, (start, depth) in enumerate(zip(starts.tolist(), np.asarray(shared).tolist(), strict=True)):
        while path and path[-1][1] >= depth:
            path.pop()
        if depth:
            attach[row] = path[-1][0] + depth - 1 - path[-1][1]
        path.append((start, depth))
    cuts = np.unique(np.concatenate([starts, attach[attach >= 0] + 1]))
    parents = np.arange(-1, len(cuts) - 1)
    of_row = np.searchsorted(cuts, starts)
    parents[of_row] = np.where(attach >= 0, np.searchsorted(cuts, attach, side="right") - 1, -1)
    return np.stack([cuts, np.diff(np.append(cuts, ends[-1:])), parents], axis=1), ends - 1
