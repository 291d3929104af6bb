"""Streaming writer of a split in the on-disk format of `datasets`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

_SHARD_BYTES = 500_000_000


class SplitWriter:
    """Writes one split as `Dataset.save_to_disk` does, shard by shard, without a second copy of the data.

    Args:
        folder: is created.
        schema: of the tables.
        split: the split's name, or None.
    """

    def __init__(self, folder: Path, schema: pa.Schema, split: str | None) -> None:
        folder.mkdir(parents=True)
        self._schema = schema
        self._split = split
        self.rows = 0
        self._folder = folder
        self._names: list[str] = []
        self._bytes = 0
        self._hash = hashlib.sha256()
        self._open()

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Append rows."""
        if not rows.num_rows:
            return
        if self._bytes > _SHARD_BYTES:
            self._finish_shard()
            self._open()
        self._shard.write(rows)
        self.rows += rows.num_rows
        self._bytes += rows.nbytes

    def close(self) -> None:
        """Finish the last shard and describe the split."""
        import datasets  # slow, and models are served without it

        self._finish_shard()
        features = datasets.Features.from_arrow_schema(self._schema)
        datasets.DatasetInfo(features=features).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in self._names],
            "_fingerprint": self._hash.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self._split,
        }
        path = self._folder / datasets.config.DATASET_STATE_JSON_FILENAME
        path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _open(self) -> None:
        self._names.append(f"data-{len(self._names):05d}.arrow")
        self._bytes = 0
        self._shard = pa.ipc.new_stream(str(self._folder / self._names[-1]), self._schema)

    def _finish_shard(self) -> None:
        self._shard.close()
        with (self._folder / self._names[-1]).open("rb") as shard:
            self._hash.update(hashlib.file_digest(shard, "sha256").digest())
