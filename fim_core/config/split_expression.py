"""Split expressions of a source: `train`, `train[10:20]`, `train[-5%:]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOUND = r"(?:(-?\d[\d_]*)(%)?)?"
_SLICED = re.compile(rf"(?P<name>[^\[\]]+)\[{_BOUND}:{_BOUND}\]")


@dataclass(frozen=True)
class Slice:
    """Rows from `start` up to but excluding `stop`. Negative bounds count from the end; None is the first or last row.

    Attributes:
        percent: whether the bounds are percentages of the rows, rounded to the nearest row.
    """

    start: int | None
    stop: int | None
    percent: bool

    def rows(self, total: int) -> range:
        """Indices of the selected rows out of `total`. Bounds outside are clamped."""
        start, stop = (self._row(bound, total) for bound in (self.start, self.stop))
        return range(0 if start is None else start, total if stop is None else stop)

    def _row(self, bound: int | None, total: int) -> int | None:
        if bound is None:
            return None
        row = round(bound * total / 100) if self.percent else bound
        return min(max(row + total, 0) if row < 0 else row, total)


def parse_split(split: str) -> tuple[str, Slice | None]:
    """Parse a split into its name and an optional slice, with the syntax of the datasets library.

    Raises:
        ValueError: the slice is not of the form `[10:20]` or `[:10%]`.
    """
    if "[" not in split and "]" not in split:
        return split, None
    match = _SLICED.fullmatch(split.replace(" ", ""))
    if match is None:
        raise ValueError(
            f"{split!r} has a slice that cannot be read; slices are written like train[10:20] or train[:10%]"
        )
    name, start, start_percent, stop, stop_percent = match.groups()
    percent = bool(start_percent or stop_percent)
    first, last = (None if bound is None else int(bound) for bound in (start, stop))
    if percent and any(bound is not None and abs(bound) > 100 for bound in (first, last)):
        raise ValueError(f"{split!r} has a bound beyond 100%")
    return name, Slice(first, last, percent)
