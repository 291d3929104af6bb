"""Cache of computed batches: equal rows under the same options are computed once.

    .fim/batch_cache/<asset>/<key>.arrow

A key is the hash of the rows' content and of everything else that decides the result. Any file may be removed or damaged
at any time: each begins with the digest of its content, and what is missing or damaged is computed again. `fim gc`
removes files that were not used lately.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from fim_core.atomic import flush, replacing

BATCH_CACHE = "batch_cache"
"""Folder in the store."""

_DIGEST_BYTES = 16
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True)
class BatchCache:
    """Cached batches of one asset under the same options and code.

    Attributes:
        folder: holds one file for each batch.
        identity: hash of everything but the rows that decides the results.
        renew: compute every batch again, and replace what is cached.
    """

    folder: Path
    identity: str
    renew: bool = False

    def keyed_also_by(self, *files: Path, **options: object) -> BatchCache:
        """The same cache with these files (their names and content) and options as part of every key."""
        hasher = hashlib.sha256(f"{self.identity} {options}".encode())
        for file in files:
            hasher.update(f" {file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
        return replace(self, identity=hasher.hexdigest())

    def get_or_compute(
        self, rows: pa.RecordBatch, compute: Callable[[pa.RecordBatch], pa.RecordBatch]
    ) -> tuple[pa.RecordBatch, bool]:
        """The result of `compute` for `rows`, and whether it was called."""
        key = hashlib.sha256(self.identity.encode())
        for column in rows.columns:
            _hash_values(key, column)
        path = self.folder / f"{key.hexdigest()}.arrow"
        if not self.renew and (found := _read(path)) is not None:
            return found, False
        computed = compute(rows)
        _write(path, computed)
        return computed, True


def _hash_values(hasher: hashlib._Hash, array: pa.Array) -> None:
    """Hash the values of an array of texts, numbers, booleans or lists of these.

    Equal values give equal hashes. Hashes of serialized arrays would not: their bytes also depend on the array's offset,
    and on whether it has a validity bitmap.
    """
    hasher.update(f"{array.type} {len(array)} {array.null_count} ".encode())
    if array.null_count:
        hasher.update(array.is_null().to_numpy(zero_copy_only=False).tobytes())
        array = array.drop_null()
    if pa.types.is_list(array.type):
        hasher.update(pc.list_value_length(array).to_numpy(zero_copy_only=False).tobytes())
        _hash_values(hasher, array.flatten())
    elif pa.types.is_string(array.type):
        offsets = np.frombuffer(array.buffers()[1] or b"\0" * 4, np.int32, len(array) + 1, 4 * array.offset)
        hasher.update(np.diff(offsets).tobytes())
        hasher.update(memoryview(array.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    else:
        hasher.update(array.to_numpy(zero_copy_only=False).tobytes())


def _read(path: Path) -> pa.RecordBatch | None:
    try:
        content = pa.py_buffer(path.read_bytes())
        digest, written = content.slice(0, _DIGEST_BYTES), content.slice(_DIGEST_BYTES)
        if xxhash.xxh3_128_digest(written) != digest.to_pybytes():
            return None
        with pa.ipc.open_file(written) as reader:
            batch = reader.get_batch(0)
        # `fim gc` goes by the time of the last use.
        os.utime(path)
    except (pa.ArrowException, OSError, IndexError):
        # Missing, or incomplete after a power failure: computed again.
        return None
    return batch


def _write(path: Path, batch: pa.RecordBatch) -> None:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, batch.schema, options=_OPTIONS) as writer:
        writer.write_batch(batch)
    content = stream.getvalue()
    with replacing(path) as scratch:
        with scratch.open("wb") as file:
            file.write(xxhash.xxh3_128_digest(content))
            file.write(content)
        flush(scratch)


def unused_since(folder: Path, oldest: float) -> list[Path]:
    """Batches in `folder` that no build has used since `oldest` (seconds since the epoch), and scratch files of killed runs."""
    files = (path for path in folder.glob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if path.stat().st_mtime < oldest)
