"""Daily exports: sources whose path has `{date}` in the place of a date, such as `exports/{date}/*.parquet`."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from fim_core.config.data import DATE, DataConfig, Source
from fim_core.errors import FimError

_DATE_GLOB = "-".join(("[0-9]" * 4, "[0-9]" * 2, "[0-9]" * 2))
_DATE_TEXT = r"\d{4}-\d\d-\d\d"


@dataclass(frozen=True)
class Days:
    """The days from `first` to `last`, both included."""

    first: date
    last: date

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last


def days_to_read(data: DataConfig) -> Days | None:
    """The days whose exports are read: a single one, or the window that ends with the newest export; None for all.

    The window does not depend on the clock: the same exports make the same version.
    """
    if data.day is not None:
        return Days(data.day, data.day)
    if data.window is None or not (dates := dates_of(data)):
        return None
    return Days(dates[-1] - timedelta(days=data.window - 1), dates[-1])


def dates_of(data: DataConfig) -> list[date]:
    """Every day of which a source has an export, sorted."""
    return sorted({day for source in data.sources if source.is_dated for day, _ in _matches(source)})


def dated_files(source: Source, days: Days | None) -> tuple[Path, list[Path]]:
    """The folder that the names of a dated source's exports are relative to, and what is there of the given days.

    Returns:
        The folder, and files and folders in it, sorted by path.
    """
    return _root(source), sorted(path for day, path in _matches(source) if days is None or day in days)


def require_exports(data: DataConfig, days: Days | None) -> None:
    """Check that a dated source has an export of the days to read, if there are dated sources.

    Raises:
        FimError: none has.
    """
    dated = [source for source in data.sources if source.is_dated]
    if not dated or any(dated_files(source, days)[1] for source in dated):
        return
    patterns = ", ".join(str(source.name_or_path) for source in dated)
    of_day = f" of {data.day}" if data.day else ""
    raise FimError(
        f"There is no export{of_day}: no file matches {patterns}. {DATE} stands for a date such as 2026-01-31."
    )


def day_of(source: Source, path: Path) -> date | None:
    """The day of a file or folder of a dated source, by the parts of its path; None if the path is of another shape."""
    pattern, parts = Path(os.path.abspath(_place(source))).parts, Path(os.path.abspath(path)).parts
    length = 1 + max(at for at, part in enumerate(pattern) if DATE in part)
    if len(parts) < length:
        return None
    texts: set[str] = set()
    for expected, part in zip(pattern[:length], parts, strict=False):
        match = re.fullmatch(fnmatch.translate(expected.replace(DATE, "\0")).replace("\0", f"({_DATE_TEXT})"), part)
        if match is None:
            return None
        texts |= set(match.groups())
    return _day(*texts) if len(texts) == 1 else None


def _matches(source: Source) -> Iterator[tuple[date, Path]]:
    """Files and folders that match a dated path, each with its date."""
    for found in glob.iglob(str(_place(source)).replace(DATE, _DATE_GLOB), recursive=True):
        if (day := day_of(source, path := Path(found))) is not None:
            yield day, path


def _place(source: Source) -> Path:
    return Path(source.name_or_path or "").expanduser()


def _day(text: str) -> date | None:
    """The date; None for one that no calendar has, such as 2026-02-30."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _root(source: Source) -> Path:
    parts = _place(source).parts
    return Path(*parts[: next(at for at, part in enumerate(parts) if DATE in part or glob.has_magic(part))])
