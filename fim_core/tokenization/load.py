"""Loading a tokenized data set, memory-mapped."""

from __future__ import annotations

from pathlib import Path

from fim_core.folders.tokenized import TokenizedFolder
from fim_core.packing.rows import Rows


def load_rows(folder: Path, split: str) -> Rows:
    """The rows of a split, memory-mapped.

    Args:
        folder: written by `tokenize_prompts`.
        split: train or eval.
    """
    import datasets  # slow, and models are served without it

    return Rows.from_dataset(datasets.load_from_disk(str(TokenizedFolder(folder).split(split))))
