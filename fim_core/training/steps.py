"""What an optimizer step is: which rows, in which packs, on which rank.

A step takes a batch of `batch_rows` rows, over all ranks, micro-batches and packs; the last batch of an epoch takes the
rest. The epoch's rows are put in order and cut into batches before anything is packed
(`fim_core.packing.batches.epoch_order`), and the loss is a mean over the whole batch. So a step is the same whatever
computes it: packing, `pack_length`, the number of ranks and the launcher change the time and memory that it takes, not
its rows, its loss or its gradient.

An example: 100 rows of 1,000 tokens, `batch_rows: 32`, `pack_length: 8192`, two ranks, two epochs.

- An epoch is 4 batches of 32, 32, 32 and 4 rows, so the run takes 8 steps.
- `flat`: a batch of 32 rows has 32,000 tokens and needs 4 packs of 8 rows. Each rank gets 2, computes one after the
  other, and adds up their gradients; then the ranks add up theirs, and the optimizer steps. The batch of 4 rows would
  fit one pack but becomes 2, so that both ranks have work.
- `prefix_tree`: if the rows of a batch have 800 tokens in common, its packs hold 800 + 32 x 200 = 7,200 distinct
  tokens, in 2 packs of 800 + 16 x 200 = 4,000, one a rank.
- `none`: 32 packs of one row, 16 a rank.

The three take the same 8 steps. `micro_batch_size: 4` and `gradient_accumulation_steps: 4` would say the same batch as
`batch_rows: 32` on these two ranks; they have no other meaning.
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
    """How far a run has come: `step` optimizer steps are done; `batch` of `epoch` is the next to train on."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step as one rank sees it.

    Attributes:
        position: where the run stands after it.
        micro_batches: this rank's packs, computed one after the other; as many on every rank, None where a rank has
            nothing left to compute.
        denominator: weight of all rows of the step on all ranks; what the summed loss is divided by.
        rows, packs, tokens, distinct_tokens, trained_tokens: of the step on all ranks; distinct_tokens has shared
            prefixes once, trained_tokens are the positions that are predicted.
        ends_epoch: whether it is the last of its epoch.
    """

    position: Position
    micro_batches: list[Pack | None]
    denominator: float
    rows: int
    packs: int
    tokens: int
    distinct_tokens: int
    trained_tokens: int
    ends_epoch: bool


def row_weights(rows: Rows, reduction: Reduction) -> np.ndarray:
    """What each row counts in the mean: its trained positions, or 1 if it has any. float64 [rows]."""
    targets = rows.targets_per_row.astype(np.float64)
    return targets if reduction == "token" else (targets > 0).astype(np.float64)


def deal(packs: Sequence[Pack], ranks: int) -> list[list[Pack | None]]:
    """Packs for each rank: equally many, at about equal cost, None where there are too few.

    The costliest pack goes first, each to the rank that has least so far (Graham, 1969, "Bounds on multiprocessing
    timing anomalies"). Packs that ranks compute at the same time thus cost about the same, too.
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
    """Optimizer steps of a whole run over so many rows.

    Args:
        epochs: passes over the rows; None for as many as `limit` needs.
        limit: most steps.
        least: fewest steps; beyond `epochs`, rows are passed over again until then.
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

    All ranks know every plan, so each knows a step's denominator before the step.

    Args:
        plan_of: the pack plan of an epoch.
        weights: what `row_weights` gave.
        total_steps: what `count_steps` gave.
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
            micro_batches=deal(packs, ranks)[rank],
            denominator=float(weights[members].sum()),
            rows=len(members),
            packs=len(packs),
            tokens=sum(pack.tokens for pack in packs),
            distinct_tokens=sum(pack.distinct_tokens for pack in packs),
            trained_tokens=int(rows.targets_per_row[members].sum()),
            ends_epoch=ends_epoch,
        )
