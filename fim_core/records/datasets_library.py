"""Reading data sets with the Hugging Face datasets library: folders of `save_to_disk`, and hub ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.config import DATASETDICT_JSON_FILENAME as DATASETDICT_JSON

from fim_core.atomic import read_json_as
from fim_core.errors import FimError
from fim_core.prompt_format.recipe import Recipe, find_recipe
from fim_core.records.readers import Export, digest_files
from fim_core.records.text import READ_ROWS, text_batches


@dataclass(frozen=True)
class _Splits:
    """What the library writes for a folder of several splits."""

    splits: list[str]


def saved_dataset(path: Path, name: str, split: str) -> Export:
    """A folder written by `save_to_disk`, of one split or several.

    Args:
        name: of the export, and for messages.

    Raises:
        FimError: the folder is damaged, or has no such split.
    """
    folder = path
    if (path / DATASETDICT_JSON).is_file():
        splits = read_json_as(path / DATASETDICT_JSON, _Splits).splits
        if split not in splits:
            raise FimError(f"{name} has no split {split}. Its splits are: {', '.join(splits)}.")
        # The other splits are not needed, and the library fails to load an empty split that it saved itself.
        folder = path / split
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises its own errors, Arrow's, and others for unexpected content
        raise FimError(
            f"{name}: the data set saved here is damaged or holds no rows ({type(error).__name__})."
        ) from error
    return _export(loaded, name, split, find_recipe(folder) or find_recipe(path))


def hub_dataset(name: str, split: str, cache_dir: str | None, arguments: Mapping[str, Any]) -> Export:
    """A data set of the hub, downloaded once. Its own code is never run.

    Args:
        arguments: more arguments of `datasets.load_dataset`.

    Raises:
        FimError: it cannot be loaded, or has no such split.
    """
    try:
        loaded = datasets.load_dataset(name, split=split, cache_dir=cache_dir, **arguments)
    except Exception as error:  # the library raises its own errors, the hub client's, the network's and Arrow's
        raise FimError(
            f"There is no file or folder {name}, and no data set of that name could be loaded ({type(error).__name__}). "
            "Check `name_or_path`, `split` and `kwargs`, and whether this machine may reach the hub."
        ) from error
    return _export(loaded, name, split)


def _export(loaded: datasets.Dataset, name: str, split: str, recipe: Recipe | None = None) -> Export:
    columns = tuple(loaded.column_names)

    def batches(_: Callable[[str], None]) -> Iterator[pa.RecordBatch]:
        try:
            yield from text_batches(columns, loaded.with_format("arrow").iter(batch_size=READ_ROWS))
        except (pa.ArrowException, OSError) as error:
            raise FimError(f"{name} is damaged ({type(error).__name__}). Save or download it again.") from error

    def digest() -> str:
        content = digest_files(sorted(Path(file["filename"]) for file in loaded.cache_files))
        # One Arrow file may hold the rows of several splits.
        described = f" {recipe}" if recipe else ""
        return hashlib.sha256(f"{content} {split} {len(loaded)}{described}".encode()).hexdigest()

    return Export(name, columns, digest, batches, recipe=recipe)
