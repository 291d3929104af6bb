"""Locating the exports of a source: a file, a folder, a glob, a saved data set, each also in object storage, a hub id, or a Snowflake query."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePath

from fim_core.config.data import Source, SqlFileOptions
from fim_core.config.split_expression import parse_split
from fim_core.errors import FimError
from fim_core.object_storage.download import download, download_folder, read_start
from fim_core.object_storage.listing import Listing, list_files
from fim_core.object_storage.urls import is_url
from fim_core.records.dated import Days, dated_files, dated_objects
from fim_core.records.parquet_file import PARQUET_MAGIC, is_parquet
from fim_core.records.readers import DATA_SUFFIXES, Export, read_file
from fim_core.records.text_file import EmptyExport, is_utf8

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HIDDEN = re.compile(r"(^|/)[._]")
_SQL_SUFFIXES = (".sql",)
_NAMED_FILES = 20
_SAVED_DATASET = ("dataset_dict.json", "dataset_info.json")
# What `fim convert` writes next to a data set, by default into the folder of the export.
_REPORTS_OF_CONVERT = (".summary.json", ".rejected.parquet")


def locate(
    source: Source, cache_dir: str | None, downloads: Path, warn: Callable[[str], None], days: Days | None = None
) -> list[Export]:
    """The exports of a source (any but the demo), sorted by name.

    Those in object storage are copied to this machine (see `fim_core.object_storage.download`) and read like others.

    In folders and globs, names that begin with `.` or `_`, files with other suffixes and the reports of `fim convert` are
    skipped. In a folder, so are data sets saved there and Parquet files without a suffix: by default `fim convert`
    writes next to its export, whose rows would be read twice.

    Args:
        cache_dir: cache of data sets from a hub.
        downloads: folder for copies of objects.
        days: of a source with one export a day, only these are read; it may have none of them.

    Raises:
        FimError: nothing has that name, or nothing in it can be read.
    """
    if source.type == "snowflake":
        from fim_core.records.snowflake import snowflake_export

        return [snowflake_export(source, downloads)]
    place = source.name_or_path or ""
    path = Path(place).expanduser()
    split, _ = parse_split(source.split)
    if source.is_dated and is_url(place):
        objects = dated_objects(source, days)
        return _in_object_storage(objects, source, split, downloads, warn) if objects.files else []
    if source.is_dated:
        root, found = dated_files(source, days)
        exports = [p for p in found if is_export(p.relative_to(root).as_posix()) and p.is_file()]
        exports += [file for p in found if p.is_dir() for file in _files_below(p)]
        return _exports(_named(root, exports), source, warn) if found else []
    if is_url(place):
        return _in_object_storage(list_files(place), source, split, downloads, warn)
    if path.is_dir():
        if source.type != "sql_files" and any((path / mark).is_file() for mark in _SAVED_DATASET):
            from fim_core.records.datasets_library import saved_dataset

            _refuse_arguments(source)
            return [saved_dataset(path, path.name, split)]
        return _exports(_named(path, _files_below(path)), source, warn)
    if path.is_file():
        is_data = _has_suffix(path.name) or is_parquet(path)
        return _exports({path.name: path} if is_data else {}, source, warn)
    if glob.has_magic(place):
        root = Path(*path.parts[: next(at for at, part in enumerate(path.parts) if glob.has_magic(part))])
        found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
        exports = [p for p in found if is_export(p.relative_to(root).as_posix()) or _is_bare_parquet(p)]
        return _exports(_named(root, exports), source, warn)
    if (
        source.type == "sql_files"
        or not _HUB_ID.fullmatch(place)
        or place.lower().endswith((*DATA_SUFFIXES, *_SQL_SUFFIXES))
    ):
        raise FimError(f"There is no file or folder {place}. Check `name_or_path`; it is relative to {Path.cwd()}.")
    from fim_core.records.datasets_library import hub_dataset

    return [hub_dataset(place, split, cache_dir, source.kwargs)]


def _in_object_storage(
    listing: Listing, source: Source, split: str, downloads: Path, warn: Callable[[str], None]
) -> list[Export]:
    visible = {name: file for name, file in listing.files.items() if not _HIDDEN.search(name)}
    if listing.kind == "folder":
        if source.type != "sql_files" and any(mark in visible for mark in _SAVED_DATASET):
            from fim_core.records.datasets_library import saved_dataset

            _refuse_arguments(source)
            name = listing.url.rstrip("/").rpartition("/")[2]
            return [saved_dataset(download_folder(listing, visible, downloads), name, split)]
        saved = {PurePath(name).parent for name in visible if PurePath(name).name in _SAVED_DATASET}
        wanted = {
            name: file for name, file in visible.items() if is_export(name) and saved.isdisjoint(PurePath(name).parents)
        }
    elif listing.kind == "pattern":
        wanted = {
            name: file
            for name, file in visible.items()
            if is_export(name)
            or (not _has_suffix(name) and read_start(listing, file, len(PARQUET_MAGIC)) == PARQUET_MAGIC)
        }
    else:
        wanted = dict(listing.files)
    files = download(listing, wanted, downloads)
    if listing.kind == "file":
        files = {name: path for name, path in files.items() if _has_suffix(name) or is_parquet(path)}
    return _exports(files, source, warn)


def _refuse_arguments(source: Source) -> None:
    if source.kwargs:
        raise FimError(f"`kwargs` goes with a data set of a hub; {source.name_or_path} is not one. Leave it out.")


def is_export(name: str) -> bool:
    """Whether a file of a folder is read, by its path below the folder."""
    return not _HIDDEN.search(name) and _has_suffix(name) and not name.lower().endswith(_REPORTS_OF_CONVERT)


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders. Links to folders are followed, and each folder is entered only once, so that
    link cycles end."""
    pending, entered = [folder], set()
    while pending:
        place = pending.pop()
        status = place.stat()
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        for path in sorted(place.iterdir()):
            if path.is_dir():
                pending.append(path)
            elif path.is_file():
                yield path


def _files_below(folder: Path) -> list[Path]:
    files = list(files_below(folder))
    saved = {path.parent for path in files if path.name in _SAVED_DATASET}
    return [p for p in files if is_export(p.relative_to(folder).as_posix()) and saved.isdisjoint(p.parents)]


def _has_suffix(name: str) -> bool:
    return name.lower().endswith((*DATA_SUFFIXES, *_SQL_SUFFIXES))


def _is_bare_parquet(path: Path) -> bool:
    return not _HIDDEN.search(path.name) and not _has_suffix(path.name) and is_parquet(path)


def _named(root: Path, paths: Iterable[Path]) -> dict[str, Path]:
    return {path.relative_to(root).as_posix(): path for path in paths}


def _exports(files: Mapping[str, Path], source: Source, warn: Callable[[str], None]) -> list[Export]:
    _refuse_arguments(source)
    seen = dict(sorted(files.items()))
    sql = {name: path for name, path in seen.items() if name.lower().endswith(_SQL_SUFFIXES)}
    data = {name: path for name, path in seen.items() if name not in sql}
    if source.type == "sql_files" or (source.type == "auto" and sql and not data):
        if not sql:
            raise FimError(f"{source.name_or_path} holds no *.sql file.")
        from fim_core.records.sql_files import read_sql_file

        broken = [name for name, path in sql.items() if not is_utf8(path)]
        if len(broken) == len(sql):
            raise FimError(
                f"None of the SQL files of {source.name_or_path} is UTF-8. Save them as UTF-8, for example with iconv."
            )
        if broken:
            warn(
                f"{len(broken):,} of {len(sql):,} SQL files of {source.name_or_path} are not UTF-8 and are skipped: "
                f"{', '.join(broken[:_NAMED_FILES])}{', …' if len(broken) > _NAMED_FILES else ''}."
            )
        sql = {name: path for name, path in sql.items() if name not in broken}
        options = source.sql if isinstance(source.sql, SqlFileOptions) else SqlFileOptions()
        return [read_sql_file(path, name, options, source.seed) for name, path in sql.items()]
    if not data:
        raise FimError(f"{source.name_or_path} holds no file with one of the suffixes {', '.join(DATA_SUFFIXES)}.")
    if sql and source.type == "auto":
        warn(
            f"{source.name_or_path} holds data files and SQL files: the data files are read. "
            "`type: sql_files` reads the others."
        )
    return _read_files(data, warn)


def _read_files(files: Mapping[str, Path], warn: Callable[[str], None]) -> list[Export]:
    """The files that are not empty; an export may cover an hour without completions.

    Raises:
        FimError: a file cannot be read, or all are empty.
    """
    exports, empty = [], None
    for name, path in files.items():
        try:
            exports.append(read_file(path, name))
        except EmptyExport as error:
            empty = error
            warn(f"{name} is empty: 0 rows.")
    if empty is not None and not exports:
        raise empty
    return exports
