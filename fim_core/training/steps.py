"""Optimizer steps: their rows, packs, ranks and denominators.

A step takes a batch of `batch_rows` rows over all ranks, micro-batches and packs; the last batch of an epoch takes the
remaining rows. The rows of an epoch are ordered and divided into batches before anything is packed
(`fim_core.packing.batches.epoch_order`), and the loss is a mean over the whole batch. Packing, `pack_length`, the number
of ranks and the launcher therefore change the time and memory of a step, but not its rows, loss or gradient.

Example: 100 rows of 1,000 tokens, `batch_rows: 32`, `pack_length: 8192`, two ranks, two epochs.

- An epoch is 4 batches of 32, 32, 32 and 4 rows, so the run takes 8 steps.
- `flat`: a batch of 32 rows has 32,000 tokens and needs 4 packs of 8 rows. Each rank gets 2, computes them one after
  the other, and sums their gradients; then gradients are summed over the ranks, and the optimizer takes its step. The
  batch of 4 rows would fit one pack but is divided into 2, so that both ranks have work.
- `prefix_tree`: if the rows of a batch have 800 tokens in common, they hold 800 + 32 x 200 = 7,200 distinct tokens,
  and become 2 packs of 800 + 16 x 200 = 4,000, one for each rank.
- `none`: 32 packs of one row, 16 for each rank.

All three take the same 8 steps. On these two ranks, `micro_batch_size: 4` with `gradient_accumulation_steps: 4` is
another way to write `batch_rows: 32`; these options have no other meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fim_core.packing import Pack, PackPlan, Rows

Reduction = Literal["token", "sample"]


@dataclass(frozen=True)
class Position:
    """Position of a run in its data: `step` optimizer steps are done, and `batch` of `epoch` is next."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step as one rank sees it.

    Attributes:
        position: that of the run after the step.
        micro_batches: this rank's packs, to be computed one after the other; the same number on every rank, with None
            where a rank has nothing left to compute.
        denominator: weight of all rows of the step on all ranks, by which the summed loss is divided.
        rows, packs, tokens, distinct_tokens, trained_tokens: counts of the step over all ranks; distinct_tokens counts
            shared prefixes once, trained_tokens counts the positions that are predicted.
        cost: of its packs, in the unit of the plan's Cost.
        ends_epoch: whether it is the last step of its epoch.
    """

    position: Position
    micro_batches: list[Pack | None]
    denominator: float
    rows: int
    packs: int
    tokens: int
    distinct_tokens: int
    trained_tokens: int
    cost: float
    ends_epoch: bool


def row_weights(rows: Rows, reduction: Reduction) -> np.ndarray:
    """Weight of each row in the mean: its number of trained positions, or 1 if it has any. float64 [rows]."""
    targets = rows.targets_per_row.astype(np.float64)
    return targets if reduction == "token" else (targets > 0).astype(np.float64)


def distribute(packs: Sequence[Pack], ranks: int) -> list[list[Pack | None]]:
    """Distribute packs to ranks, the same number at about equal cost to each; None fills up where there are too few.

    Packs are taken in descending order of cost, each for the rank with the least cost so far (Graham, 1969, "Bounds on
    multiprocessing timing anomalies"). Packs that ranks compute at the same time therefore cost about the same, too.
    """
    rounds = -(-len(packs) // ranks)
    dealt: list[list[Pack | None]] = [[] for _ in range(ranks)]
    spent = [0.0] * ranks
    for pack in sorted(packs, key=lambda pack: -pack.cost):
        rank = min((rank for rank in range(ranks) if len(dealt[rank]) < rounds), key=spent.__getitem__)
        dealt[rank].append(pack)
        spent[rank] += pack.cost
    return [of_rank + [None] * (rounds - len(of_rank)) for of_rank in dealt]


def count_steps(
    rows: int, batch_rows: int, epochs: int | None, limit: int | None = None, least: int | None = None
) -> int:
    """Number of optimizer steps of a whole run.

    Args:
        rows: number of training rows.
        epochs: passes over the rows; None for as many as `limit` needs.
        limit: maximum number of steps.
        least: minimum number of steps; training continues beyond `epochs` to reach it.
    """
    if epochs is None:
        assert limit is not None, "validated"
        return limit
    steps = max(epochs * -(-rows // batch_rows), least or 0)
    return steps if limit is None else min(steps, limit)


def steps(
    plan_of: Callable[[int], PackPlan],
    rows: Rows,
    weights: np.ndarray,
    *,
    ranks: int,
    rank: int,
    start: Position,
    total_steps: int,
) -> Iterator[Step]:
    """The steps of a rank from `start` to the end of the run.

    All ranks know every plan, so each of them knows the denominator of a step beforehand.

    Args:
        plan_of: returns the pack plan of an epoch.
        weights: result of `row_weights`.
        ranks, rank: number of ranks, or of groups of ranks, that compute different packs, and which of them this is.
        total_steps: result of `count_steps`.
    """
    position = start
    while position.step < total_steps:
        plan = plan_of(position.epoch)
        packs = plan.batch(position.batch)
        members = np.concatenate([pack.rows for pack in packs])
        ends_epoch = position.batch + 1 == plan.batches
        if ends_epoch:
            position = Position(position.step + 1, position.epoch + 1, 0)
        else:
            position = Position(position.step + 1, position.epoch, position.batch + 1)
        yield Step(
            position=position,
            micro_batches=distribute(packs, ranks)[rank],
            denominator=float(weights[members].sum()),
            rows=len(members),
            packs=len(packs),
            tokens=sum(pack.tokens for pack in packs),
            distinct_tokens=sum(pack.distinct_tokens for pack in packs),
            trained_tokens=int(rows.targets_per_row[members].sum()),
            cost=sum(pack.cost for pack in packs),
            ends_epoch=ends_epoch,
        )
