"""Folder of tokenized_dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

IGNORE_INDEX = -100
"""The label of a token that is not trained on, as in PyTorch's cross entropy."""


@dataclass(frozen=True)
class TokenizedFolder:
    """Files of tokenized_dataset."""

    path: Path

    @property
    def dataset(self) -> Path:
        """The token ids and labels, as `datasets.load_from_disk` reads them, in the splits train and eval."""
        return self.path / "dataset"

    def split(self, name: str) -> Path:
        """One split of `dataset`."""
        return self.dataset / name

    @property
    def rejected(self) -> Path:
        """Rows that are not used, with the reason."""
        return self.path / "rejected.parquet"

    @property
    def changed(self) -> Path:
        """Ids of rows whose response is not restored by decoding its tokens."""
        return self.path / "changed.parquet"
