"""Order of the rows in an epoch, which decides the rows of each optimizer step before packing."""

from __future__ import annotations

import numpy as np

from fim_core.packing.rows import Rows

BLOCK_ROWS = 4
"""Rows with similar prompts that are put into a batch together."""


def epoch_order(rows: Rows, *, seed: int, epoch: int, block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """The order of all rows in an epoch, int64 [rows]; batches are consecutive rows of it.

    Rows are sorted by prompt and cut into blocks of neighbours, and the blocks are shuffled. The rows of a block share a
    long prefix; a batch of many blocks is still diverse. The end of the first block is random in each epoch, so that the
    composition of blocks changes.

    Args:
        seed, epoch: these and the rows alone decide the order, not packing, ranks or batch size.
        block_rows: 1 shuffles single rows.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rows.prompt_order.order
    block = (np.arange(len(order)) + int(rng.integers(block_rows))) // block_rows
    shuffled = rng.permutation(int(block[-1]) + 1 if len(order) else 0)
    return order[np.argsort(shuffled[block], kind="stable")]
