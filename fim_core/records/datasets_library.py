"""Rows that the Hugging Face datasets library keeps: folders of `save_to_disk`, and data sets of the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from fim_core.errors import FimError
from fim_core.records.readers import BATCH_ROWS, Export, arrow_batch, digest_files


def saved_dataset(path: Path, split: str) -> Export:
    """A folder written by `save_to_disk`, of one split or several.

    Raises:
        FimError: the folder is damaged, or has no such split.
    """
    return _export(_load(path.name, lambda: datasets.load_from_disk(str(path))), path.name, split)


def hub_dataset(name: str, split: str, cache_dir: str | None) -> Export:
    """A data set of the hub, downloaded once; code that comes with a data set is never run.

    Raises:
        FimError: it cannot be had, or has no such split.
    """
    return _export(_load(name, lambda: datasets.load_dataset(name, split=split, cache_dir=cache_dir)), name, split)


def _load(
    name: str, load: Callable[[], datasets.Dataset | datasets.DatasetDict]
) -> datasets.Dataset | datasets.DatasetDict:
    try:
        return load()
    except Exception as error:  # the library raises errors of its own, the hub client's, the network's and Arrow's
        raise FimError(
            f"{name} is no file or folder here, and no data set that could be loaded ({type(error).__name__}). "
            "Check `name_or_path` and `split`, and whether this machine may reach the hub."
        ) from error


def _export(loaded: datasets.Dataset | datasets.DatasetDict, name: str, split: str) -> Export:
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise FimError(f"{name} has no split {split}. Its splits are: {', '.join(map(str, loaded))}.")
        loaded = loaded[split]
    columns = tuple(loaded.column_names)

    def batches(_: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
        try:
            for table in loaded.with_format("arrow").iter(batch_size=BATCH_ROWS):
                yield arrow_batch(columns, table)
        except (pa.ArrowException, OSError) as error:
            raise FimError(f"{name} is damaged ({type(error).__name__}). Save or download it again.") from error

    def digest() -> str:
        content = digest_files(sorted(Path(file["filename"]) for file in loaded.cache_files))
        # One Arrow file may hold several splits' rows, of which this is a part.
        return hashlib.sha256(f"{content} {split} {len(loaded)}".encode()).hexdigest()

    return Export(name, columns, digest, batches)
