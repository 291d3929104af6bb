"""Digests of files and of JSON, by which damage is found when they are read.

The hash is XXH3 with 128 bits (https://xxhash.com): it reads 16 GiB a second where SHA-256 reads 1, so that checking the
weights of a large model takes as long as reading them from the disk. It finds damage, and is no protection from forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from fim_core.atomic import read_json, write_json
from fim_core.errors import DamagedFile

_SEAL = "digest"


def digests_of(folder: Path, *, without: str) -> dict[str, str]:
    """XXH3 of every file in a folder and below, 32 hex digits, by its path in the folder.

    Args:
        without: name of the file in the folder that holds these digests.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / without)
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


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


def digest_of(path: Path) -> str:
    """XXH3 of a file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content for a JSON file, with its own digest under the key `digest`."""
    # As it will be read: keys that are numbers become texts.
    plain = json.loads(json.dumps(content))
    return {**plain, _SEAL: _digest_of_content(plain)}


def unseal(content: Any) -> dict[str, Any] | None:
    """What `seal` was given; None if that is not what this is."""
    if not isinstance(content, dict):
        return None
    plain = {key: value for key, value in content.items() if key != _SEAL}
    return plain if content.get(_SEAL) == _digest_of_content(plain) else None


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its own digest, whole or not at all."""
    write_json(path, seal(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a file that `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is not what was written.
    """
    if (content := unseal(read_json(path))) is None:
        raise DamagedFile(
            f"{path} is damaged: its content and its digest differ. Restore it from a copy, or make again what it "
            "belongs to."
        )
    return content


def _digest_of_content(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_of_state(path, status.st_ino, status.st_size, status.st_mtime_ns)


@cache
def _digest_of_state(path: Path, inode: int, size: int, changed: int) -> str:
    return digest_of(path)
