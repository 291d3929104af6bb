"""Digests of files, by which damage is found when they are read.

The hash is XXH3 with 128 bits (https://xxhash.com): it reads 16 GiB a second where SHA-256 reads 1, so that checking the
weights of a large model takes as long as reading them from the disk. It finds damage, and is no protection from forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import xxhash


def digests_of(folder: Path, *, without: str) -> dict[str, str]:
    """XXH3 of every file in a folder and below, 32 hex digits, by its path in the folder.

    Args:
        without: name of the file in the folder that holds these digests.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / without)
    return {path.relative_to(folder).as_posix(): _digest_now(path) for path in files}


def find_damage(folder: Path, digests: Mapping[str, str], ignore: tuple[str, ...] = ()) -> str | None:
    """The first file that is missing, cannot be read or has changed, and which of these; None if all are whole.

    Each file is read once in a process, and again when its size or time of change is another. Files that have no digest
    do not count.

    Args:
        digests: of `digests_of`.
        ignore: files that may have changed.
    """
    for name, expected in digests.items():
        if name in ignore:
            continue
        path = folder / name
        try:
            if _digest(path) != expected:
                return f"{name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of_state(path, status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _digest_of_state(path: Path, inode: int, size: int, changed: int) -> str:
    return _digest_now(path)


def _digest_now(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
