"""Which rows are held out: whole groups, so that no statement is completed on both sides.

Statements also stand in the context of others. Grouping by worksheet or source keeps those on one side too.
"""

from __future__ import annotations

import hashlib

import numpy as np


def statement_hash(text: str) -> int:
    """64-bit hash of a statement, white space and case folded."""
    return text_hash(" ".join(text.split()).casefold())


def text_hash(text: str) -> int:
    """64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def connected_groups(statements: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Join rows that share a statement or a value of a column, directly or over other rows.

    Args:
        statements: uint64 [rows], a hash of each row's statement.
        column: uint64 [rows], a hash of the column's value; 0 where it is empty, which joins nothing.

    Returns:
        uint64 [rows]: the smallest statement hash of the row's group.
    """
    names, statement = np.unique(statements, return_inverse=True)
    linked = np.flatnonzero(column)
    _, value = np.unique(column[linked], return_inverse=True)
    # `names` is sorted, so the smallest index is the smallest hash. Minima travel along shared statements and values
    # until none changes; following `root[root]` shortens long chains.
    root = np.arange(len(names))
    lowest = np.empty(value.max() + 1 if len(value) else 0, root.dtype)
    while True:
        lowest[:] = len(names)
        np.minimum.at(lowest, value, root[statement[linked]])
        fresh = root.copy()
        np.minimum.at(fresh, statement[linked], lowest[value])
        fresh = fresh[fresh]
        if np.array_equal(fresh, root):
            return names[root][statement]
        root = fresh


def held_out_groups(
    groups: np.ndarray, from_eval_source: np.ndarray, *, fraction: float, has_eval_sources: bool, seed: int
) -> np.ndarray:
    """Which rows are for evaluation, bool [rows].

    With eval sources: their rows, and every training row of the same group, which would leak otherwise. Without: the
    groups whose hash falls below `fraction`.

    Args:
        groups: uint64 [rows].
        from_eval_source: bool [rows].
    """
    if has_eval_sources:
        return np.isin(groups, groups[from_eval_source])
    mixed = _mix(groups ^ np.uint64(text_hash(f"split {seed}")))
    return mixed < np.uint64(int(fraction * 2**64))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): spreads each bit over the whole number."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
