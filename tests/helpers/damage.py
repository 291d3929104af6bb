"""Kinds of file damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit": lambda content: _flip(content, len(content) // 2),
    "{}": lambda content: b"{}",
    "[]": lambda content: b"[]",
    "a number": lambda content: b"7",
    "not text": lambda content: b"\xff\xfe\x00",
}
"""Functions that damage a file's content, by name."""


@contextmanager
def damaged(path: Path, damage: str) -> Iterator[None]:
    """Context manager in which a file is damaged (a key of DAMAGES) or `missing`."""
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(DAMAGES[damage](content))
    try:
        yield
    finally:
        path.write_bytes(content)


def _flip(content: bytes, place: int) -> bytes:
    if not content:
        return b"\x01"
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
