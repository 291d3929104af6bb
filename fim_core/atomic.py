"""Atomic writes of files and folders."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fim_core.errors import DamagedFile, FimError

T = TypeVar("T")


@contextmanager
def replacing(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` if the block ends without an error, and removed otherwise.

    Each caller gets another one, so that several writers of one file, such as threads of a process, do not collide: the
    last to finish wins.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, whose files are moved to `folder` only if the block ends without an error."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{os.getpid()}-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        yield scratch
        for path in sorted(scratch.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `final`, which is flushed to disk and renamed to it if the block ends without an error.

    Raises:
        OSError: `final` exists, and is not an empty folder.
    """
    scratch = final.with_name(f".{final.name}-{os.getpid()}-{secrets.token_hex(4)}")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        flush_tree(scratch)
        os.rename(scratch, final)
        flush(final.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_free(*places: Path) -> None:
    """Require that none of these paths exists, not even as a broken link.

    Raises:
        FimError: one exists; it is never replaced.
    """
    for place in places:
        if os.path.lexists(place):
            raise FimError(f"{place} exists already and is not replaced. Name another path, or remove it.")


def read_json(path: Path) -> Any:
    """The content of a JSON file, of any type; see `read_json_as` and `integrity.read_sealed` for stricter readers.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not JSON, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        # Messages of the JSON parser may quote the content, and those of the system repeat the path.
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise DamagedFile(
            f"{path} cannot be read ({reason}). Restore it from a copy, or make what it belongs to again."
        ) from error


def read_json_as(path: Path, kind: type[T]) -> T:
    """The content of a JSON file as a value of a type: a dataclass, `list[str]`, `dict[str, int]`.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is not JSON, cannot be read, or is not of that type.
    """
    from pydantic import TypeAdapter, ValidationError

    text = json.dumps(read_json(path))
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        keys = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_url=False)})
        raise DamagedFile(
            f"{path} is damaged ({', '.join(keys[:3]) or 'unexpected type'}). Restore it from a copy, or make what it "
            "belongs to again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        flush(path)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(new: Path, final: Path) -> None:
    """Swap two folders, in one step where the system can (renameat2 of Linux), so that a kill cannot leave `final` missing."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    places = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(final))
    if renameat2 is None or renameat2(*places, _RENAME_EXCHANGE) != 0:
        os.rename(final, new.with_name("old"))
        os.rename(new, final)
    flush(final.parent)
