"""Digests of files and of JSON content, by which damage is detected.

The hash is XXH3 with 128 bits (https://xxhash.com). It reads 16 GiB per second where SHA-256 reads 1, so that checking
the weights of a large model takes as long as reading them from disk. It detects damage, but not forgery.
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
    """XXH3 (32 hex digits) of every file in a folder and its subfolders, by path relative to the folder.

    Args:
        without: name of the file that will hold these digests.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / without)
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


def find_damage(folder: Path, digests: Mapping[str, str], ignore: tuple[str, ...] = ()) -> str | None:
    """The first file that is missing, unreadable or changed, as a phrase that says which; None if all are intact.

    Each file is read once per process, and again when its size or modification time has changed. Files without a digest
    are ignored.

    Args:
        digests: result of `digests_of`.
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
    """Content of a JSON file with its own digest added, under the key `digest`."""
    # As it will be read: keys that are numbers become strings.
    plain = json.loads(json.dumps(content))
    return {**plain, _SEAL: _digest_of_content(plain)}


def unseal(content: Any) -> dict[str, Any] | None:
    """The content that was passed to `seal`; None if the digest does not match."""
    if not isinstance(content, dict):
        return None
    plain = {key: value for key, value in content.items() if key != _SEAL}
    return plain if content.get(_SEAL) == _digest_of_content(plain) else None


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with its own digest, atomically."""
    write_json(path, seal(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a file that `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not what was written.
    """
    if (content := unseal(read_json(path))) is None:
        raise DamagedFile(
            f"{path} is damaged: its content and its digest differ. Restore it from a copy, or make what it belongs "
            "to again."
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
