"""Masks of packs: dense for any attention, and by blocks for FlexAttention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from fim_core.packing import Layout

BLOCK = 128
"""Tokens of a block: FlexAttention's default."""


def pack_mask(layout: Layout, window: int | None, device: torch.device) -> torch.Tensor:
    """Dense mask of a pack, bool [T, T]: row t is true at the tokens that token t attends to."""
    name = ("mask", window, device)
    if name not in layout.derived:
        tokens = torch.arange(layout.tokens, device=device)
        layout.derived[name] = mask_rule(layout, window, device)(None, None, tokens[:, None], tokens)
    return layout.derived[name]


def pack_block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Block mask of a pack for FlexAttention.

    torch's `create_block_mask` evaluates all T x T pairs in memory, 10 GB at 100,000 tokens. Here the blocks follow from
    the layout, with memory for (T / 128)^2 numbers.
    """
    name = ("blocks", window, device)
    if name not in layout.derived:
        some, every = attended_blocks(layout, window)
        layout.derived[name] = BlockMask.from_kv_blocks(
            *_ordered(some & ~every, device),
            *_ordered(every, device),
            BLOCK_SIZE=BLOCK,
            mask_mod=mask_rule(layout, window, device),
            seq_lengths=(layout.tokens, layout.tokens),
        )
    return layout.derived[name]


def attended_blocks(layout: Layout, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of queries attend to which blocks of keys, bool [blocks, blocks] each.

    Returns:
        some: a query may attend to a key; every: all queries attend to all keys. Without a window both are exact; with
        one, `some` may hold more blocks and `every` fewer, which are then masked pair by pair.
    """
    starts = np.arange(0, layout.tokens, BLOCK)
    diagonal = np.eye(len(starts), dtype=bool)
    earlier = starts < starts[:, None]
    # A token is attended to from itself up to the end of its segment's subtree.
    stops = layout.subtree_stops[layout.segment_of]
    some = earlier & (np.maximum.reduceat(stops, starts) > starts[:, None])
    every = earlier & (np.minimum.reduceat(stops, starts) >= starts[:, None] + BLOCK)
    if window is not None:
        lowest, highest = (extreme.reduceat(layout.positions, starts) for extreme in (np.minimum, np.maximum))
        some &= lowest[:, None] - highest < window
        every &= highest[:, None] - lowest < window
    return some | diagonal, every


def _ordered(blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of blocks of each row, int32 [1, 1, rows], and their indices before all others, int32 [1, 1, rows, columns]."""
    dense = torch.from_numpy(blocks).to(device)[None, None].to(torch.int32)
    return dense.sum(-1, dtype=torch.int32), dense.argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def mask_rule(layout: Layout, window: int | None, device: torch.device) -> Callable[..., torch.Tensor]:
    """The rule that a query attends to itself and to earlier tokens of its own segment and of its ancestors.

    It holds tensors only: a number would be compiled into FlexAttention's kernels.
    """
    stops = torch.from_numpy(layout.subtree_stops[layout.segment_of]).to(device)

    def rule(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < stops[key])

    if window is None:
        return rule
    positions = torch.from_numpy(layout.positions).to(device)
    too_old = positions - window

    def rule_in_window(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < stops[key]) & (positions[key] > too_old[query])

    return rule_in_window
