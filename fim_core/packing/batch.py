"""Collation of packs into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.packing.layout import Layout, forest
from fim_core.packing.plan import Pack
from fim_core.packing.rows import Rows


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One micro-batch: all its packs as one sequence of T distinct tokens, and the targets to predict.

    Attributes:
        input_ids: int64 [1, T].
        position_ids: int64 [1, T], positions along each row's path.
        predict_positions: int64 [n], position of the hidden state that predicts each target.
        targets: int64 [n], the tokens to predict.
        target_rows: int64 [n], the row of the batch that each target belongs to; non-decreasing.
        row_ids: names of the rows.
        tokens: tokens of the rows before sharing.
        layout: the segments, for attention.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predict_positions: torch.Tensor
    targets: torch.Tensor
    target_rows: torch.Tensor
    row_ids: tuple[str, ...]
    tokens: int
    layout: Layout

    @property
    def distinct_tokens(self) -> int:
        """T, the tokens that the model sees."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        tensors = ("input_ids", "position_ids", "predict_positions", "targets", "target_rows")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in tensors})


def collate(packs: Sequence[Pack], rows: Rows) -> PackedBatch:
    """Join packs to one sequence. Packs do not attend to each other, so there is no padding.

    Args:
        packs: at least one.
        rows: the rows of the plan.
    """
    members = np.concatenate([pack.rows for pack in packs])
    lengths = np.concatenate([pack.lengths for pack in packs])
    shared = np.concatenate([pack.shared for pack in packs])
    layout, last = forest(lengths, shared)

    tokens, targets, predict_positions = [], [], []
    for row, depth, end in zip(members.tolist(), shared.tolist(), last.tolist(), strict=True):
        tokens.append(rows.tokens_of(row)[depth:])
        labels = rows.labels_of(row)
        trained = np.flatnonzero(labels[1:] != IGNORE_INDEX) + 1
        targets.append(labels[trained])
        predict_positions.append(end - len(labels) + trained)
    target_rows = np.repeat(np.arange(len(members)), [len(of_row) for of_row in targets])
    return PackedBatch(
        input_ids=_tensor(np.concatenate(tokens))[None],
        position_ids=_tensor(layout.positions)[None],
        predict_positions=_tensor(np.concatenate(predict_positions)),
        targets=_tensor(np.concatenate(targets)),
        target_rows=_tensor(target_rows),
        row_ids=tuple(name for pack in packs for name in pack.row_ids),
        tokens=int(lengths.sum()),
        layout=layout,
    )


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
