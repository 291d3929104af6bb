"""Daily exports: sources whose path or URL has `{date}` in the place of a date, such as `exports/{date}/*.parquet`."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

from fim_core.config.data import DATE, DataConfig, Source
from fim_core.errors import FimError
from fim_core.object_storage.listing import Listing, list_files
from fim_core.object_storage.urls import is_url

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
    """Every day of which a source has an export, sorted.

    Raises:
        FimError: a bucket cannot be listed.
    """
    return sorted({day for source in data.sources if source.is_dated for day in _days_of(source, None)})


def dated_files(source: Source, days: Days | None) -> tuple[Path, list[Path]]:
    """The folder that the names of a dated source's exports are relative to, and what is there of the given days.

    Returns:
        The folder, and files and folders in it, sorted by path.
    """
    return Path(*_folder(_place(source))), sorted(path for day, path in _matches(source) if days is None or day in days)


def dated_objects(source: Source, days: Days | None) -> Listing:
    """The objects of a dated source in object storage, of the given days, as a listing of the folder without wildcards.

    Of a single day, only the folder of that day is listed.

    Raises:
        FimError: the bucket cannot be listed.
    """
    place = source.name_or_path or ""
    pattern, folder = _parts(place), "/".join(_folder(place))
    one_day = days.first.isoformat() if days is not None and days.first == days.last else DATE
    listing = list_files("/".join(_folder(place.replace(DATE, one_day))), may_be_empty=True)
    base = listing.filesystem._strip_protocol(folder).rstrip("/") + "/"
    files = {}
    for file in listing.files.values():
        name = file.path.removeprefix(base)
        parts = _parts(f"{folder}/{name}")
        if (day := _day_in(pattern, parts)) is not None and (days is None or day in days) and _is_below(pattern, parts):
            files[name] = file
    return replace(listing, url=folder, kind="folder", files=files)


def require_exports(data: DataConfig, days: Days | None) -> None:
    """Check that a dated source has an export of the days to read, if there are dated sources.

    Raises:
        FimError: none has, or a bucket cannot be listed.
    """
    dated = [source for source in data.sources if source.is_dated]
    if not dated or any(_days_of(source, days) for source in dated):
        return
    patterns = ", ".join(str(source.name_or_path) for source in dated)
    of_day = f" of {data.day}" if data.day else ""
    raise FimError(
        f"There is no export{of_day}: no file matches {patterns}. {DATE} stands for a date such as 2026-01-31."
    )


def day_of(source: Source, place: str) -> date | None:
    """The day of a file, folder or object of a dated source, by the parts of its path or URL; None if it is of another shape."""
    return _day_in(_parts(_place(source)), _parts(place))


def _days_of(source: Source, days: Days | None) -> set[date]:
    """The days, of the given ones, of which a dated source has an export."""
    if is_url(source.name_or_path or ""):
        objects = dated_objects(source, days)
        found = (day_of(source, f"{objects.url}/{name}") for name in objects.files)
    else:
        found = (day for day, _ in _matches(source))
    return {day for day in found if day is not None and (days is None or day in days)}


def _matches(source: Source) -> Iterator[tuple[date, Path]]:
    """Files and folders on this machine that match a dated path, each with its date."""
    for found in glob.iglob(_place(source).replace(DATE, _DATE_GLOB), recursive=True):
        if (day := day_of(source, found)) is not None:
            yield day, Path(found)


def _day_in(pattern: Sequence[str], parts: Sequence[str]) -> date | None:
    """The day that the parts of a path have where a pattern has DATE; None if they differ from the pattern up to there."""
    length = _length_to_date(pattern)
    if len(parts) < length:
        return None
    texts: set[str] = set()
    for expected, part in zip(pattern[:length], parts, strict=False):
        match = re.fullmatch(fnmatch.translate(expected.replace(DATE, "\0")).replace("\0", f"({_DATE_TEXT})"), part)
        if match is None or _is_hidden(expected, part):
            return None
        texts |= set(match.groups())
    return _day(*texts) if len(texts) == 1 else None


def _is_below(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a path after the date match the pattern, or those of a folder that it is in do."""

    def match(expected: Sequence[str], rest: Sequence[str]) -> bool:
        if not expected:
            return True
        if expected[0] == "**":
            return match(expected[1:], rest) or (
                bool(rest) and not _is_hidden("**", rest[0]) and match(expected, rest[1:])
            )
        fits = bool(rest) and fnmatch.fnmatchcase(rest[0], expected[0]) and not _is_hidden(expected[0], rest[0])
        return fits and match(expected[1:], rest[1:])

    length = _length_to_date(pattern)
    return match(pattern[length:], parts[length:])


def _is_hidden(pattern: str, name: str) -> bool:
    """Whether a pattern passes over a name, as `glob` does on this machine: a wildcard does not match a dot at the start."""
    return name.startswith(".") and not pattern.startswith(".")


def _length_to_date(pattern: Sequence[str]) -> int:
    """The number of parts up to the last one with DATE."""
    return 1 + max(at for at, part in enumerate(pattern) if DATE in part)


def _place(source: Source) -> str:
    place = source.name_or_path or ""
    return place if is_url(place) else str(Path(place).expanduser())


def _parts(place: str) -> Sequence[str]:
    return place.rstrip("/").split("/") if is_url(place) else Path(os.path.abspath(place)).parts


def _folder(place: str) -> Sequence[str]:
    """The parts of a path or URL before the first with a date or wildcard."""
    parts = place.split("/") if is_url(place) else Path(place).parts
    return parts[: next((at for at, part in enumerate(parts) if DATE in part or glob.has_magic(part)), None)]


def _day(text: str) -> date | None:
    """The date; None for one that no calendar has, such as 2026-02-30."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
