"""Atomic writes, also with several writers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fim_core.atomic import read_json, replacing, write_json
from fim_core.errors import DamagedFile


def test_threads_that_write_one_file_do_not_collide(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way.json"
    contents = [{"writer": number, "filling": "x" * 10_000} for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_json(path, content), contents))
    assert json.loads(path.read_text()) in contents
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5_000 + b"}"])
def test_damaged_json_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"file\.json cannot be read"):
        read_json(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_json(path)


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as scratch:
            scratch.write_text("half")
            raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
