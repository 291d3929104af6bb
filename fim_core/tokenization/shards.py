"""A split on disk in the form that `datasets` saves and memory-maps, written as a stream."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from fim_core.tokenization.batch import DATASET_SCHEMA

_SHARD_BYTES = 500_000_000


class SplitWriter:
    """Writes one split as `datasets` saves it, shard by shard, without a second copy of the data."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.rows = 0
        self._folder = folder
        self._names: list[str] = []
        self._bytes = 0
        self._hash = hashlib.blake2b(digest_size=8)
        self._open()

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        if not table.num_rows:
            return
        if self._bytes > _SHARD_BYTES:
            self._shard.close()
            self._open()
        self._shard.write_table(table)
        self.rows += table.num_rows
        self._bytes += table.nbytes
        for column in ("input_ids", "labels"):
            for chunk in table.column(column).chunks:
                self._hash.update(chunk.flatten().to_numpy())

    def close(self) -> None:
        """Finish the last shard and describe the split."""
        self._shard.close()
        features = datasets.Features.from_arrow_schema(DATASET_SCHEMA)
        datasets.DatasetInfo(features=features).write_to_directory(str(self._folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in self._names],
            "_fingerprint": self._hash.hexdigest(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self._folder.name,
        }
        path = self._folder / datasets.config.DATASET_STATE_JSON_FILENAME
        path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _open(self) -> None:
        self._names.append(f"data-{len(self._names):05d}.arrow")
        self._bytes = 0
        self._shard = pa.ipc.new_stream(str(self._folder / self._names[-1]), DATASET_SCHEMA)
