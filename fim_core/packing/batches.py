"""Which rows make up which optimizer step: the order of an epoch, decided before anything is packed."""

from __future__ import annotations

import numpy as np

from fim_core.packing.rows import Rows

BLOCK_ROWS = 4
"""Rows with similar prompts that go into a batch together."""


def epoch_order(rows: Rows, *, seed: int, epoch: int, block_rows: int = BLOCK_ROWS) -> np.ndarray:
    """All rows in the order that an epoch trains on them, int64 [rows]; batches are cut from it.

    Rows are sorted by prompt and cut into blocks of neighbours, and the blocks are shuffled. A block shares a long
    prefix; a batch of many blocks still holds rows of many kinds. Where the first block ends is drawn for each epoch, so
    that the company in a block changes.

    Args:
        seed, epoch: decide the order, together with the rows alone: not the packing, the ranks or the batch's size.
        block_rows: 1 shuffles single rows.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rows.prompt_order.order
    block = (np.arange(len(order)) + int(rng.integers(block_rows))) // block_rows
    shuffled = rng.permutation(int(block[-1]) + 1 if len(order) else 0)
    return order[np.argsort(shuffled[block], kind="stable")]
