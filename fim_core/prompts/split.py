"""Splitting rows into training and held-out rows by group, so that no evaluated statement is trained on.

The group of a row is its value in the `group_by` column, or its statement if that is empty. A statement in several groups
does not join them: everyone types `SELECT CURRENT_DATE`, and a single group of all rows could not be split. Instead, rows
of such a statement are not evaluated unless all of its groups are held out. They are trained on if their own group is,
and left out if it is held out, since their context may show other statements of that group.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fim_core.config import DataConfig
from fim_core.errors import FimError
from fim_core.records.schema import RAW_SCHEMA

TOLERANCE = 0.02
"""Maximum deviation from the configured share, or a fifth of that share if this is less. If groups are too large for that,
the share is the nearest that whole groups allow."""

FEWEST_GROUPS = 10
"""Fewer held-out groups give meaningless intervals. A group with more than 1 / FEWEST_GROUPS of the held-out rows is not drawn,
unless groups of its size are common, or the other groups are too few."""

_SLACK = 2
"""Multiple of the tolerance by which the share may be exceeded between rows: later rows often correct it."""

_CHOICE = 2
"""Minimum of rows to draw from, for each row to hold out."""


def statement_hash(text: str) -> int:
    """64-bit hash of a statement, white space and case folded."""
    return text_hash(" ".join(text.split()).casefold())


def text_hash(text: str) -> int:
    """64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def group_name(statement: str, value: str | None = None) -> str:
    """The group of a row in the prompts table: that of its value in the column to group by, else of its statement."""
    return f"{text_hash(value) if value else statement_hash(statement):016x}"


def group_column(schema: pa.Schema, group_by: str) -> str | None:
    """The column of a table of raw rows to group by, or None for grouping by statement.

    Raises:
        FimError: there is no such column.
    """
    if group_by == "statement":
        return None
    names = {field.name.casefold(): field.name for field in reversed(list(schema)) if pa.types.is_string(field.type)}
    if group_by.casefold() not in names:
        extra = [name for name in schema.names if name not in RAW_SCHEMA.names]
        raise FimError(
            f"data.group_by: the export has no column {group_by}. Use `statement`"
            + (f" or one of {', '.join(extra)}." if extra else "; it has no other columns.")
        )
    return names[group_by.casefold()]


@dataclass(frozen=True)
class Split:
    """The split of the kept rows.

    Attributes:
        groups: uint64 [rows], the group of each row.
        is_eval: bool [rows], held out.
        is_left_out: bool [rows], neither trained on nor held out: the group is held out, and the statement is trained
            on in another one.
        is_shared: bool [rows], the statement occurs in several groups.
    """

    groups: np.ndarray
    is_eval: np.ndarray
    is_left_out: np.ndarray
    is_shared: np.ndarray


def split_rows(
    statements: np.ndarray,
    column: np.ndarray,
    from_eval_source: np.ndarray,
    *,
    fraction: float,
    has_eval_sources: bool,
    seed: int,
) -> Split:
    """Split rows into training and held-out rows.

    With eval sources, the groups of their rows are held out; otherwise groups are drawn (see `draw_groups`).

    Args:
        statements: uint64 [rows], a hash of each row's statement.
        column: uint64 [rows], a hash of the `group_by` column's value; 0 if it is empty or there is no such column.
        from_eval_source: bool [rows].
        fraction: share of the rows to hold out.
    """
    groups = np.where(column != 0, column, statements)
    is_shared = _found_in_several(statements, groups)
    if has_eval_sources:
        is_held = np.isin(groups, groups[from_eval_source])
    else:
        is_held = draw_groups(groups, ~is_shared, fraction=fraction, seed=seed)
    is_trained_on = np.isin(statements, statements[~is_held])
    return Split(groups, is_held & ~is_trained_on, is_held & is_trained_on, is_shared)


def explain_empty_eval(split: Split, data: DataConfig) -> str:
    """Explain why no row is held out, and what to change; empty if some are, or none should be."""
    asked = bool(data.eval_sources) or data.eval_fraction > 0
    if not asked or split.is_eval.any() or not len(split.groups):
        return ""
    groups, rows = np.unique(split.groups, return_counts=True)
    if data.eval_sources and not split.is_left_out.any():
        return "No row of eval_sources was kept. The table of rejected rows gives the reasons."
    if data.eval_sources or split.is_shared.all():
        return (
            f"Each statement that could be held out also occurs in another group of `data.group_by: {data.group_by}`, "
            "and is trained on there. Use `data.group_by: statement`, or other eval_sources."
        )
    apart = np.unique(split.groups[~split.is_shared], return_counts=True)[1]
    return (
        f"The {len(split.groups):,} rows fall into {len(groups):,} groups by `data.group_by: {data.group_by}`, of "
        f"{rows.min():,} to {rows.max():,} rows; the smallest that could be held out has {apart.min():,}; "
        f"data.eval_fraction is {data.eval_fraction:.1%}. Use `data.group_by: statement`, raise data.eval_fraction, or give "
        "eval_sources."
    )


def _found_in_several(statements: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Whether a row's statement occurs in more than one group, bool [rows]."""
    order = np.lexsort((groups, statements))
    statements_in_order, groups_in_order = statements[order], groups[order]
    is_same = statements_in_order[1:] == statements_in_order[:-1]
    is_apart = is_same & (groups_in_order[1:] != groups_in_order[:-1])
    return np.isin(statements, statements_in_order[1:][is_apart])


def draw_groups(groups: np.ndarray, may_be_evaluated: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """Draw groups with `fraction` of the rows within TOLERANCE, by their hash and the seed.

    Rows are processed in order, as if the export grew, and each decision depends only on the rows before it. So a held-out
    group stays held out when rows are appended, unless the share would leave the tolerance. Inserted rows change less than
    a new draw would, since the hash of a group decides most.

    Args:
        groups: uint64 [rows].
        may_be_evaluated: bool [rows], the rows of a group that count for the share.
        fraction: share of all rows.

    Returns:
        bool [rows]: whether the row's group is held out.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    counted = may_be_evaluated & _small_groups(numbers, may_be_evaluated, fraction)
    draw = _Draw(fraction, _uniform(names, seed))
    for number, counts in zip(numbers.tolist(), counted.tolist(), strict=True):
        draw.add_row(number, counts)
    draw.end()
    return np.isin(numbers, list(draw.held))


def _small_groups(numbers: np.ndarray, may_be_evaluated: np.ndarray, fraction: float) -> np.ndarray:
    """Rows of groups that are small enough to be drawn, bool [rows].

    The limit is stable while data grows: it depends on the median size of groups, or on the number of rows.
    """
    sizes = np.bincount(numbers[may_be_evaluated], minlength=numbers.max(initial=-1) + 1)
    if not sizes.any():
        return may_be_evaluated
    wanted = fraction * len(numbers)
    limit = max(wanted / FEWEST_GROUPS, 2 * float(np.median(sizes[sizes > 0])))
    while limit < min(sizes.max(), 2 * wanted) and sizes[sizes <= limit].sum() < _CHOICE * wanted:
        limit *= 2
    return (sizes <= limit)[numbers]


class _Draw:
    """Draws groups while rows are added. `held`: the groups held out so far."""

    def __init__(self, fraction: float, order: list[float]) -> None:
        self._fraction = fraction
        self._tolerance = min(TOLERANCE, fraction / 5)
        # A number in [0, 1) for each group; groups with small numbers are held out first.
        self._order = order
        self._sizes = [0] * len(order)
        self.held: set[int] = set()
        self._others: list[tuple[float, int]] = []
        self._rows = self._held_rows = 0

    def add_row(self, group: int, counts: bool) -> None:
        """Add one row, and adjust the groups held out."""
        self._rows += 1
        if counts:
            if not self._sizes[group]:
                self._place(group)
            self._sizes[group] += 1
            self._held_rows += group in self.held
        missing = self._fraction * self._rows - self._held_rows
        if missing > self._tolerance * self._rows:
            self._hold_more()
        elif -missing > _SLACK * self._tolerance * self._rows:
            self._hold_fewer()

    def end(self) -> None:
        """Release groups until the share is within the tolerance."""
        while self._held_rows > (self._fraction + self._tolerance) * self._rows and self._hold_fewer():
            pass

    def _place(self, group: int) -> None:
        """Decide on a new group, with the probability raised or lowered by the deviation so far."""
        missing = self._fraction * self._rows - self._held_rows
        off = missing / (self._tolerance / 2 * self._rows) if self._tolerance else -1.0
        if self._order[group] < self._fraction * (1 + max(-1.0, min(off, 1.0))):
            self.held.add(group)
        else:
            heapq.heappush(self._others, (self._order[group], group))

    def _hold_more(self) -> None:
        """Hold out the next groups in order that bring the share closer to `fraction`."""
        passed_over = []
        while self._others and (missing := self._fraction * self._rows - self._held_rows) > 0:
            group = heapq.heappop(self._others)[1]
            # At least one row is held out, however few there are.
            if self._sizes[group] <= max(2 * missing, 1):
                self.held.add(group)
                self._held_rows += self._sizes[group]
            else:
                passed_over.append((self._order[group], group))
        for entry in passed_over:
            heapq.heappush(self._others, entry)

    def _hold_fewer(self) -> bool:
        """Release the largest group whose removal improves the share, if there is one."""
        excess = self._held_rows - self._fraction * self._rows
        # Groups of one row stay, or `_hold_more` would take them back when there are few rows.
        fitting = [group for group in self.held if 1 < self._sizes[group] < 2 * excess]
        if not fitting:
            return False
        group = max(fitting, key=lambda group: (self._sizes[group], self._order[group]))
        self.held.remove(group)
        self._held_rows -= self._sizes[group]
        heapq.heappush(self._others, (self._order[group], group))
        return True


def _uniform(names: np.ndarray, seed: int) -> list[float]:
    """A number in [0, 1) for each name (uint64), by the finaliser of SplitMix64 (Steele et al., 2014)."""
    values = names ^ np.uint64(text_hash(f"split {seed}"))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return [value / 2**64 for value in values.tolist()]
