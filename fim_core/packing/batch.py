"""Collation of packs into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

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
        row_targets: int64 [rows], number of targets of each row, also those that other ranks predict.
        row_ids: names of the rows.
        tokens: tokens of the rows before sharing.
        layout: the segments, for attention.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    predict_positions: torch.Tensor
    targets: torch.Tensor
    target_rows: torch.Tensor
    row_targets: torch.Tensor
    row_ids: tuple[str, ...]
    tokens: int
    layout: Layout

    @property
    def distinct_tokens(self) -> int:
        """T, the tokens that the model sees."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        tensors = ("input_ids", "position_ids", "predict_positions", "targets", "target_rows", "row_targets")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in tensors})

    def part(self, rank: int, ranks: int) -> PackedBatch:
        """The part of one of `ranks` ranks that divide the tokens equally.

        It has that rank's tokens, the targets that are predicted at them, with positions relative to the part, and the
        layout of the whole sequence, for attention. The sequence is padded to a multiple of `ranks` by a segment of its
        own, from which nothing is predicted and to which no row attends.
        """
        padding = -self.distinct_tokens % ranks
        input_ids, position_ids, layout = self.input_ids, self.position_ids, self.layout
        if padding:
            layout = Layout(np.append(layout.segments, [[layout.tokens, padding, -1]], axis=0).astype(np.int32))
            input_ids = nn.functional.pad(input_ids, (0, padding))
            position_ids = torch.cat([position_ids, torch.arange(padding, device=position_ids.device)[None]], dim=1)
        size = layout.tokens // ranks
        start, stop = rank * size, (rank + 1) * size
        here = (self.predict_positions >= start) & (self.predict_positions < stop)
        return replace(
            self,
            input_ids=input_ids[:, start:stop],
            position_ids=position_ids[:, start:stop],
            predict_positions=self.predict_positions[here] - start,
            targets=self.targets[here],
            target_rows=self.target_rows[here],
            layout=layout,
        )


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
    row_targets = np.array([len(of_row) for of_row in targets])
    target_rows = np.repeat(np.arange(len(members)), row_targets)
    return PackedBatch(
        input_ids=_tensor(np.concatenate(tokens))[None],
        position_ids=_tensor(layout.positions)[None],
        predict_positions=_tensor(np.concatenate(predict_positions)),
        targets=_tensor(np.concatenate(targets)),
        target_rows=_tensor(target_rows),
        row_targets=_tensor(row_targets),
        row_ids=tuple(name for pack in packs for name in pack.row_ids),
        tokens=int(lengths.sum()),
        layout=layout,
    )


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.int64))
