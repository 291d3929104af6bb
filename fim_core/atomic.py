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
def replacing(path: Path) -> Iterator[Path]:
    """A scratch path next to `path` that is renamed to it when the block ends well, and removed when it does not.

    Each caller has its own, so that several writers of one file, threads of one process among them, do not collide: the
    last to end wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` when the block ends well; none of them does when it does not."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{os.getpid()}-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        yield scratch
        for path in sorted(scratch.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def require_free(*places: Path) -> None:
    """Go on if nothing is at any of these places, not even a link that leads nowhere.

    Raises:
        FimError: something is; it is never replaced.
    """
    for place in places:
        if os.path.lexists(place):
            raise FimError(f"{place} exists already and is not replaced. Name another place, or remove it.")


def read_json(path: Path) -> Any:
    """The content of a JSON file, whatever it is; `read_json_as` and `integrity.read_sealed` say more.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is not JSON, or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        # Neither the content nor a path twice: what is said of JSON is a place in it.
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise DamagedFile(
            f"{path} cannot be read ({reason}). Restore it from a copy, or have made again what it belongs to."
        ) from error


def read_json_as(path: Path, kind: type[T]) -> T:
    """The content of a JSON file as a value of a type: a dataclass, `list[str]`, `dict[str, int]`.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is not JSON, cannot be read, or is not of that type.
    """
    from pydantic import TypeAdapter, ValidationError

    text = json.dumps(read_json(path))
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        keys = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_url=False)})
        raise DamagedFile(
            f"{path} is damaged ({', '.join(keys[:3]) or 'it is something else'}). Restore it from a copy, or have made "
            "again what it belongs to."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole, or not at all."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def flush(path: Path) -> None:
    """Have the disk hold a file, or the entries of a folder, before what comes after (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have the disk hold a folder and all that is in it."""
    for path in [*sorted(folder.rglob("*")), folder]:
        flush(path)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(new: Path, final: Path) -> None:
    """Swap two folders: in one step where the system can (Linux's renameat2), so that no kill leaves neither."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    places = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(final))
    if renameat2 is None or renameat2(*places, _RENAME_EXCHANGE) != 0:
        os.rename(final, new.with_name("old"))
        os.rename(new, final)
    flush(final.parent)
