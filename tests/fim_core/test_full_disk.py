"""Full and read-only disks: a clear error, and nothing left behind that prevents a retry.

The disks are mounted in memory, which requires root; without it these tests are skipped.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from fim_core.atomic import staging, write_json
from fim_core.batch_cache import BatchCache
from fim_core.benchmark.build import build_benchmark
from fim_core.cli.main import app
from fim_core.demo.export import write_export
from fim_core.errors import FimError, system_error
from fim_core.store import Store

DISK_BYTES = 64 * 1024


def mount(place: Path, options: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "fim", place], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount(place, f"size={DISK_BYTES}"):
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def publish(store: Store) -> None:
    with store.publish("raw_completions", experiment="demo", inputs={}, config={}, code="1") as draft:
        (draft.path / "rows").write_bytes(b"x" * DISK_BYTES)


def cache_batch(folder: Path) -> None:
    rows = pa.RecordBatch.from_pydict({"text": [random.Random(1).randbytes(DISK_BYTES)]})
    BatchCache(folder, "identity").get_or_compute(rows, lambda batch: batch)


WRITERS: dict[str, Callable[[Path], object]] = {
    "export as CSV": lambda disk: write_export(disk / "demo.csv", rows=500, seed=1),
    "export as Parquet": lambda disk: write_export(disk / "demo.parquet", rows=3000, seed=1),
    "benchmark": lambda disk: build_benchmark(disk, items_per_kind=1, seed=1),
    "artifact": lambda disk: publish(Store(disk)),
    "cached batch": cache_batch,
    "JSON": lambda disk: write_json(disk / "file.json", "x" * DISK_BYTES),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(name: str, disk: Path) -> None:
    (disk / "filler").write_bytes(b"x" * (DISK_BYTES - 4096))
    with pytest.raises((FimError, OSError)) as raised:
        WRITERS[name](disk)
    error = raised.value if isinstance(raised.value, FimError) else system_error(raised.value)
    assert "The disk is full" in str(error)
    left = {path.name for path in disk.rglob("*") if path.is_file() and path.parent.name != "locks"}
    assert left <= {"filler", "fim-store.json"}


def test_a_tokenizer_on_a_full_disk_is_a_clear_error(disk: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """tokenizers does not raise an OSError."""
    (disk / "filler").write_bytes(b"x" * (DISK_BYTES - 8192))
    with pytest.raises(Exception, match="No space left") as raised:
        tokenizer.save_pretrained(disk / "tokenizer")
    assert "The disk is full" in str(system_error(raised.value))


def test_removal_from_a_read_only_store_is_a_clear_error(disk: Path) -> None:
    store = Store(disk)
    with store.publish("raw_completions", experiment="demo", inputs={}, config={}, code="1") as draft:
        (draft.path / "rows").write_text("rows")
    [artifact] = store.versions("raw_completions")
    (artifact.path / "rows").write_text("damage")
    assert subprocess.run(["mount", "-o", "remount,ro", disk]).returncode == 0
    for command in (["verify", "--delete"], ["gc", "--delete", "--fresh-minutes", "0"]):
        result = CliRunner().invoke(app, [*command, "--storage", str(disk)])
        assert isinstance(result.exception, FimError)
        assert "cannot be written (Read-only file system). Make it writable" in str(result.exception)
    assert (artifact.path / "rows").read_text() == "damage"


def test_files_of_a_staging_folder_appear_together_or_not_at_all(tmp_path: Path) -> None:
    with staging(tmp_path / "made") as folder:
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")
        assert [path.name for path in (tmp_path / "made").iterdir()] == [folder.name]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a", "b"]

    def interrupted() -> None:
        with staging(tmp_path / "made") as folder:
            (folder / "a").write_text("other")
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        interrupted()
    assert {path.name: path.read_text() for path in (tmp_path / "made").iterdir()} == {"a": "1", "b": "2"}
