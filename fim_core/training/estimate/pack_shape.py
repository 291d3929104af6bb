"""A batch of given size, for simulations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.packing import Pack, PackedBatch, Rows, collate
from fim_core.packing.rows import FlatColumn


@dataclass(frozen=True)
class PackShape:
    """Size of a pack of one row.

    Attributes:
        tokens: of the row.
        targets: predicted positions; less than `tokens`.
    """

    tokens: int
    targets: int

    def batch(self) -> PackedBatch:
        """A batch of this size; its tokens are zeros, and the last ones are predicted."""
        labels = np.full(self.tokens, IGNORE_INDEX, np.int32)
        labels[self.tokens - self.targets :] = 0
        tokens = np.zeros(self.tokens, np.int32)
        rows = Rows(FlatColumn((tokens,)), FlatColumn((labels,)), np.array([0, self.tokens]), ["row"])
        pack = Pack(np.zeros(1, np.int64), ("row",), np.array([self.tokens], np.int32), np.zeros(1, np.int32))
        return collate([pack], rows)
