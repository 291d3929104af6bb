"""Which packs make up which optimizer step, on which rank, in which micro-batch.

An optimizer step takes the next `ranks x accumulation x micro_batch_size` packs of the epoch's plan, the last of an
epoch what is left. What a step holds depends on that product alone, so the same rows meet the same weights however
the product is split up. All ranks know every plan, so each knows a step's denominator before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np

from fim_core.packing import Pack, PackPlan, Rows

Reduction = Literal["token", "sample"]


@dataclass(frozen=True)
class Position:
    """How far a run has come: `step` optimizer steps are done; `pack` of `epoch` is the next to train on."""

    step: int = 0
    epoch: int = 0
    pack: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step as one rank sees it.

    Attributes:
        position: where the run stands after it.
        micro_batches: packs of each of this rank's micro-batches; as many on every rank, some may be empty.
        denominator: weight of all rows of the step on all ranks; what the summed loss is divided by.
        rows, tokens, distinct_tokens, targets: of the step on all ranks; distinct_tokens has shared prefixes once.
        ends_epoch: whether it is the last of its epoch.
    """

    position: Position
    micro_batches: list[list[Pack]]
    denominator: float
    rows: int
    tokens: int
    distinct_tokens: int
    targets: int
    ends_epoch: bool


@dataclass(frozen=True)
class Sharding:
    """How a step is split up."""

    ranks: int
    rank: int
    accumulation: int
    micro_batch_size: int

    @property
    def packs_per_step(self) -> int:
        """Packs of one optimizer step on all ranks."""
        return self.ranks * self.accumulation * self.micro_batch_size


def row_weights(rows: Rows, reduction: Reduction) -> np.ndarray:
    """What each row counts in the mean: its trained positions, or 1 if it has any. float64 [rows]."""
    targets = rows.targets_per_row.astype(np.float64)
    return targets if reduction == "token" else (targets > 0).astype(np.float64)


def micro_batches(packs: list[Pack], sharding: Sharding) -> list[list[Pack]]:
    """This rank's share of packs, dealt out micro-batch by micro-batch; every rank gets a list of the same length."""
    size, ranks = sharding.micro_batch_size, sharding.ranks
    rounds = -(-len(packs) // (size * ranks))
    first = [(turn * ranks + sharding.rank) * size for turn in range(rounds)]
    return [packs[start : start + size] for start in first]


def count_steps(
    packs_of: Callable[[int], int],
    sharding: Sharding,
    start: Position,
    epochs: int | None,
    limit: int | None,
    least: int | None = None,
) -> int:
    """Optimizer steps of the whole run, those before `start` included.

    Args:
        packs_of: how many packs an epoch has; asked only for epochs that are reached.
        epochs: passes over the rows; None for as many as `limit` needs.
        limit: most steps.
        least: fewest steps; beyond `epochs`, rows are passed over again until then.
    """
    steps = start.step
    for epoch in count(start.epoch):
        is_asked = epochs is None or epoch < epochs
        if (limit is not None and steps >= limit) or not (is_asked or steps < (least or 0)):
            break
        left = packs_of(epoch) - (start.pack if epoch == start.epoch else 0)
        in_epoch = -(-left // sharding.packs_per_step)
        steps = steps + in_epoch if is_asked else min(steps + in_epoch, least or 0)
    return steps if limit is None else min(steps, limit)


def steps(
    plan_of: Callable[[int], PackPlan],
    rows: Rows,
    weights: np.ndarray,
    sharding: Sharding,
    start: Position,
    total_steps: int,
) -> Iterator[Step]:
    """The steps from `start` to the end of the run.

    Args:
        plan_of: the pack plan of an epoch.
        weights: what `row_weights` gave.
        total_steps: what `count_steps` gave.
    """
    position = start
    while position.step < total_steps:
        plan = plan_of(position.epoch)
        stop = min(position.pack + sharding.packs_per_step, len(plan))
        packs = list(plan[position.pack : stop])
        members = np.concatenate([pack.rows for pack in packs])
        ends_epoch = stop == len(plan)
        if ends_epoch:
            position = Position(position.step + 1, position.epoch + 1, 0)
        else:
            position = Position(position.step + 1, position.epoch, stop)
        yield Step(
            position=position,
            micro_batches=micro_batches(packs, sharding),
            denominator=float(weights[members].sum()),
            rows=len(members),
            tokens=sum(pack.tokens for pack in packs),
            distinct_tokens=sum(pack.distinct_tokens for pack in packs),
            targets=int(rows.targets_per_row[members].sum()),
            ends_epoch=ends_epoch,
        )
