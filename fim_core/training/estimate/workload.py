"""What a run computes: its longest row, its largest pack, its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fim_core.config import Experiment
from fim_core.packing import Rows, plan_packs
from fim_core.packing.cost import Cost
from fim_core.packing.plan import Strategy
from fim_core.store import Store
from fim_core.tokenization import load_rows
from fim_core.training.estimate.pack_shape import PackShape

ASSUMED_TARGETS = 0.25
"""Assumed share of tokens that are predicted, where there are no rows yet and prompts are not trained on."""

MOST_PLANNED_ROWS = 200_000
"""Up to this number of rows, an epoch is packed to find its largest pack."""


@dataclass(frozen=True)
class Workload:
    """Sizes of a run.

    Attributes:
        longest_row: tokens.
        pack: the largest pack.
        several_packs: whether a rank computes several packs for an optimizer step.
        target_share: predicted positions for each token of a row.
        rows, tokens: of an epoch; None if unknown.
        operations: floating-point operations of an epoch; None if the tokens are unknown.
        notes: where the figures come from.
    """

    longest_row: int
    pack: PackShape
    several_packs: bool
    target_share: float
    rows: int | None
    tokens: int | None
    operations: float | None
    notes: tuple[str, ...]

    def row(self, tokens: int) -> PackShape:
        """A pack of one row of this length."""
        return shape_of(tokens, self.target_share)


def shape_of(tokens: int, target_share: float) -> PackShape:
    """A pack with this share of targets."""
    return PackShape(tokens, min(max(1, round(tokens * target_share)), tokens - 1))


def training_rows(experiment: Experiment) -> Rows | None:
    """The rows of the experiment's tokenized_dataset; None if it has not been made with the present options."""
    if not experiment.storage.is_dir():
        return None
    dataset = Store(experiment.storage).find_current("tokenized_dataset", experiment.name)
    if dataset is None or dataset.manifest["config"]["data"]["max_length"] != experiment.data.max_length:
        return None
    return load_rows(dataset.require_whole().path, "train")


def workload_of_rows(
    experiment: Experiment, rows: Rows, *, strategy: Strategy, data_ranks: int, cost: Cost
) -> Workload:
    """The workload of rows that exist.

    Args:
        strategy: the packing with which the model can be trained.
        data_ranks: ranks that compute different packs.
        cost: operations of training.
    """
    longest, tokens = int(rows.lengths.max()), int(rows.offsets[-1])
    targets = rows.targets_per_row
    share = float(targets.sum() / tokens)
    batch_rows = experiment.rows_per_step(data_ranks)
    notes = [f"{len(rows):,} rows of the tokenized_dataset, the longest of {longest:,} tokens"]
    if len(rows) > MOST_PLANNED_ROWS:
        pack = shape_of(_largest_pack(experiment, strategy, longest, batch_rows), share)
        several = strategy == "none" or batch_rows > data_ranks
        operations = float(cost.of_rows(rows.lengths, targets).sum())
        notes.append("operations counted without shared prefixes")
    else:
        plan = plan_packs(
            rows,
            strategy=strategy,
            pack_length=experiment.data.pack_length,
            batch_rows=batch_rows,
            ranks=data_ranks,
            seed=experiment.seed,
            cost=cost,
        )
        largest = plan[int(np.argmax(plan.distinct_tokens))]
        pack = PackShape(largest.distinct_tokens, int(targets[largest.rows].sum()))
        several = bool(np.diff(plan.batch_starts).max() > data_ranks)
        operations = float(plan.costs.sum())
        notes.append(f"largest pack of the first epoch: {len(largest.rows):,} rows, {pack.tokens:,} distinct tokens")
    return Workload(longest, pack, several, share, len(rows), tokens, operations, tuple(notes))


def assumed_workload(
    experiment: Experiment,
    *,
    strategy: Strategy,
    data_ranks: int,
    cost: Cost,
    rows: int | None = None,
    tokens: int | None = None,
) -> Workload:
    """The workload where there are no rows yet: rows of data.max_length tokens.

    Args:
        strategy, data_ranks, cost: see `workload_of_rows`.
        rows, tokens: of an epoch, if they are known. Without `rows`, all are assumed to be as long as the longest.
    """
    longest, batch_rows = experiment.data.max_length, experiment.rows_per_step(data_ranks)
    share = ASSUMED_TARGETS if experiment.data.mask_inputs else 1.0
    notes = [f"no rows yet: assumed a row of data.max_length, {longest:,} tokens, of which {share:.0%} are predicted"]
    operations = None
    if tokens is not None:
        rows = rows or -(-tokens // longest)
        mean = tokens / rows
        operations = rows * float(cost.of_rows(np.array([mean]), np.array([share * mean]))[0])
        notes.append(f"assumed {rows:,} rows of {mean:,.0f} tokens, without shared prefixes")
    pack = shape_of(_largest_pack(experiment, strategy, longest, batch_rows), share)
    return Workload(longest, pack, batch_rows > data_ranks, share, rows, tokens, operations, tuple(notes))


def _largest_pack(experiment: Experiment, strategy: Strategy, longest: int, batch_rows: int) -> int:
    """Upper bound of the tokens of a pack."""
    if strategy == "none":
        return longest
    return max(longest, min(experiment.data.pack_length, batch_rows * longest))
