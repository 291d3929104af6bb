"""Copies of objects on this machine, one for each version of an object.

    .fim/downloads/<key>/<name>…

A key is the hash of the path, size and revision of every object in the folder. So what was copied once is not fetched
again, and an object with new content is. A folder may be removed at any time. `fim gc` removes those that were not used
lately.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fim_core.atomic import new_folder
from fim_core.errors import FimError
from fim_core.object_storage.filesystem import reporting
from fim_core.object_storage.listing import Listing, RemoteFile, remote_file
from fim_core.object_storage.urls import scheme_of

DOWNLOADS = "downloads"
"""Folder in the store."""

_AT_ONCE = 8


def download(listing: Listing, files: Mapping[str, RemoteFile], downloads: Path) -> dict[str, Path]:
    """Copy objects that are not here yet; each gets a folder to itself, so that a new object costs only itself.

    Args:
        files: those objects of the listing that are needed, by name.
        downloads: folder of all copies.

    Returns:
        the copy of each object, under the last part of its name.

    Raises:
        FimError: an object is gone, changed while it was copied, or cannot be read.
    """

    def copy(name: str) -> Path:
        last = name.rpartition("/")[2]
        return download_folder(listing, {last: files[name]}, downloads) / last

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        try:
            return dict(zip(files, threads.map(copy, files), strict=True))
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def download_folder(listing: Listing, files: Mapping[str, RemoteFile], downloads: Path) -> Path:
    """Copy objects into one folder, where they have their names; see `download`."""
    final = _place(downloads, files)
    if _is_whole(final, files):
        # `fim gc` goes by the time of the last use.
        os.utime(final)
        return final
    shutil.rmtree(final, ignore_errors=True)
    try:
        with new_folder(final) as scratch:
            for name, file in files.items():
                if {"", ".", ".."} & set(name.split("/")):
                    raise FimError(f"{file.path} has an empty part, `.` or `..` in its name. Rename the object.")
                _copy(listing, file, scratch / name)
    except OSError:
        # Another process copied the same version first.
        if not _is_whole(final, files):
            raise
    return final


def read_start(listing: Listing, file: RemoteFile, size: int) -> bytes:
    """The first bytes of an object.

    Raises:
        FimError: it cannot be read.
    """
    with reporting(listing.url):
        return listing.filesystem.cat_file(file.path, start=0, end=min(size, file.size)) if file.size else b""


def _copy(listing: Listing, file: RemoteFile, target: Path) -> None:
    filesystem = listing.filesystem
    target.parent.mkdir(parents=True, exist_ok=True)
    with reporting(f"{scheme_of(listing.url)}://{file.path}"):
        filesystem.get_file(file.path, str(target))
        filesystem.invalidate_cache()
        now = remote_file(file.path, filesystem.info(file.path))
    if (now.revision, now.size) != (file.revision, file.size) or target.stat().st_size != file.size:
        raise FimError(
            f"{file.path} changed while it was read. Run again when it is completely written; exports that are written "
            "once, under a name of their own, do not have this problem."
        )


def _place(downloads: Path, files: Mapping[str, RemoteFile]) -> Path:
    content = [[name, file.path, file.size, file.revision] for name, file in sorted(files.items())]
    return downloads / hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_whole(folder: Path, files: Mapping[str, RemoteFile]) -> bool:
    paths = {folder / name: file.size for name, file in files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
