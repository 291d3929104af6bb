"""The pack plan: the rows of each sequence, batch by batch, for one epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.errors import DamagedFile
from fim_core.packing.batches import epoch_order
from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.cost import Cost
from fim_core.packing.layout import Layout, forest, segments_of
from fim_core.packing.prefix import pack_by_prefix
from fim_core.packing.rows import Rows

Strategy = Literal["prefix_tree", "flat", "none"]

SLACK_FACTORS = (1.0, 1.1, 1.25, 1.5)
"""Factors by which a pack may exceed an even share of its batch, tried in order."""


@dataclass(frozen=True, eq=False)
class Pack:
    """Rows that are trained on in one sequence, in prompt order.

    Attributes:
        rows: int64 [k], indices into Rows.
        row_ids: their names.
        lengths: int32 [k], tokens of each row.
        shared: int32 [k], leading tokens that a row shares with the row before; they are stored once.
        cost: of training on it, in the unit of the plan's Cost.
    """

    rows: np.ndarray
    row_ids: tuple[str, ...]
    lengths: np.ndarray
    shared: np.ndarray
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the rows before sharing."""
        return int(self.lengths.sum())

    @property
    def distinct_tokens(self) -> int:
        """Tokens of the packed sequence."""
        return int(self.lengths.sum() - self.shared.sum())

    @cached_property
    def layout(self) -> Layout:
        """The packed sequence's segments."""
        return forest(self.lengths, self.shared)[0]

    @property
    def segments(self) -> np.ndarray:
        """int32 [segments, 3]: start, length, parent (or -1)."""
        return self.layout.segments

    @property
    def leaves(self) -> np.ndarray:
        """The segment that each row ends in, int64 [k]."""
        layout, last = forest(self.lengths, self.shared)
        return layout.segment_of[last]


@dataclass(frozen=True)
class PackStats:
    """Figures of a plan.

    Attributes:
        batches: optimizer steps of the epoch.
        packs: sequences.
        rows: rows in them.
        tokens: tokens of all rows, before sharing.
        distinct_tokens: tokens that the model sees.
        rows_per_batch, packs_per_batch, rows_per_pack: means.
    """

    batches: int
    packs: int
    rows: int
    tokens: int
    distinct_tokens: int
    rows_per_batch: float
    packs_per_batch: float
    rows_per_pack: float


@dataclass(frozen=True, eq=False)
class PackPlan(Sequence[Pack]):
    """All packs of an epoch, by batch, in the order of training.

    Attributes:
        rows, row_ids, lengths, shared: of all packs one after the other, as of Pack.
        pack_starts: int64 [packs + 1], where each pack begins in them; the last entry is their length.
        batch_starts: int64 [batches + 1], the first pack of each batch; the last entry is the number of packs.
        costs: float64 [packs].
        strategy, pack_length, ranks: arguments of `plan_packs`.
    """

    rows: np.ndarray
    row_ids: pa.StringArray
    lengths: np.ndarray
    shared: np.ndarray
    pack_starts: np.ndarray
    batch_starts: np.ndarray
    costs: np.ndarray
    strategy: str
    pack_length: int
    ranks: int

    def __len__(self) -> int:
        return len(self.pack_starts) - 1

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start, stop = self.pack_starts[index : index + 2].tolist()
        names = tuple(self.row_ids[start:stop].to_pylist())
        span = slice(start, stop)
        return Pack(self.rows[span], names, self.lengths[span], self.shared[span], float(self.costs[index]))

    def __iter__(self) -> Iterator[Pack]:
        return (self[index] for index in range(len(self)))

    @property
    def batches(self) -> int:
        """Optimizer steps of the epoch."""
        return len(self.batch_starts) - 1

    def batch(self, index: int) -> list[Pack]:
        """The packs of one optimizer step."""
        start, stop = self.batch_starts[index : index + 2].tolist()
        return self[start:stop]

    @cached_property
    def stats(self) -> PackStats:
        """The plan in numbers."""
        batches, packs, rows, tokens = self.batches, len(self), len(self.rows), int(self.lengths.sum(dtype=np.int64))
        return PackStats(
            batches=batches,
            packs=packs,
            rows=rows,
            tokens=tokens,
            distinct_tokens=tokens - int(self.shared.sum(dtype=np.int64)),
            rows_per_batch=rows / batches if batches else 0.0,
            packs_per_batch=packs / batches if batches else 0.0,
            rows_per_pack=rows / packs if packs else 0.0,
        )

    @property
    def distinct_tokens(self) -> np.ndarray:
        """Tokens of each packed sequence, int64 [packs]."""
        return _sums(self.lengths.astype(np.int64) - self.shared, self.pack_starts)

    def write(self, path: Path) -> None:
        """Store the plan as a Parquet table: one row for each pack, with its row_ids and segments."""
        segments, segment_starts, leaves = self._segments()
        parts = [pa.array(segments[:, column], pa.int32()) for column in range(3)]
        structs = pa.StructArray.from_arrays(parts, names=["start", "length", "parent"])
        columns = {
            "batch": np.repeat(np.arange(self.batches, dtype=np.int32), np.diff(self.batch_starts)),
            "pack": np.arange(len(self), dtype=np.int32),
            "rows": _lists(self.rows, self.pack_starts),
            "row_ids": _lists(self.row_ids, self.pack_starts),
            "lengths": _lists(self.lengths, self.pack_starts),
            "shared": _lists(self.shared, self.pack_starts),
            "segments": _lists(structs, segment_starts),
            "leaves": _lists(leaves.astype(np.int32), self.pack_starts),
            "tokens": _sums(self.lengths, self.pack_starts),
            "distinct_tokens": self.distinct_tokens,
            "cost": self.costs,
        }
        known = {"strategy": self.strategy, "pack_length": str(self.pack_length), "ranks": str(self.ranks)}
        pq.write_table(pa.table(columns).replace_schema_metadata(known), path, write_page_checksum=True)

    def _segments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The segments of all packs, concatenated; where each pack's segments begin; and the rows' leaf segments.

        All packs are laid out as one long sequence first; positions are then made relative to each pack.
        """
        segments, last = segments_of(self.lengths, self.shared)
        token_starts = np.append(0, np.cumsum(self.distinct_tokens))
        segment_starts = np.searchsorted(segments[:, 0], token_starts)
        leaves = np.searchsorted(segments[:, 0], last, side="right") - 1
        leaves -= np.repeat(segment_starts[:-1], np.diff(self.pack_starts))
        pack = np.repeat(np.arange(len(self)), np.diff(segment_starts))
        segments[:, 0] -= token_starts[pack]
        segments[:, 2] = np.where(segments[:, 2] >= 0, segments[:, 2] - segment_starts[pack], -1)
        return segments, segment_starts, leaves

    @classmethod
    def read(cls, path: Path) -> PackPlan:
        """Read a plan stored by `write`.

        Raises:
            DamagedFile: the file is damaged.
        """
        try:
            return cls._read(path)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedFile(f"The pack plan {path} is damaged ({type(error).__name__}).") from error

    @classmethod
    def _read(cls, path: Path) -> PackPlan:
        names = ["batch", "rows", "row_ids", "lengths", "shared", "cost"]
        table = pq.read_table(path, columns=names, page_checksum_verification=True)
        columns = {name: table[name].combine_chunks() for name in names}
        pack_starts = np.append(0, np.cumsum(columns["rows"].value_lengths().to_numpy()))
        batch = columns["batch"].to_numpy()
        return cls(
            rows=columns["rows"].flatten().to_numpy(),
            row_ids=columns["row_ids"].flatten(),
            lengths=columns["lengths"].flatten().to_numpy(),
            shared=columns["shared"].flatten().to_numpy(),
            pack_starts=pack_starts.astype(np.int64),
            batch_starts=np.searchsorted(batch, np.arange(batch[-1] + 2 if len(batch) else 1)),
            costs=columns["cost"].to_numpy(),
            strategy=table.schema.metadata[b"strategy"].decode(),
            pack_length=int(table.schema.metadata[b"pack_length"]),
            ranks=int(table.schema.metadata[b"ranks"]),
        )


def plan_packs(
    rows: Rows,
    *,
    strategy: Strategy,
    pack_length: int,
    batch_rows: int | None = None,
    ranks: int = 1,
    seed: int = 0,
    epoch: int = 0,
    cost: Cost | None = None,
) -> PackPlan:
    """Decide which rows share a sequence in this epoch.

    The epoch's rows are cut into batches first (`batches.epoch_order`), then each batch is packed separately, so that
    the strategy changes how a batch is computed and not its rows. `none`: one row in each pack. `flat`: concatenated rows,
    best-fit decreasing. `prefix_tree`: rows with long common prompts together, each common prefix once. The same
    arguments give the same plan.

    Args:
        rows: every row ends up in exactly one pack.
        strategy: one of the three.
        pack_length: limit of distinct tokens in a pack; a longer row is packed alone.
        batch_rows: rows of a batch; the last batch of the epoch has the rest. None for one batch of all rows.
        ranks: each batch is cut into a multiple of this number of packs, if it has enough rows.
        seed: of all random choices.
        epoch: counted from 0.
        cost: for balancing packs; `modeling.flops.training_cost(config)` gives a model's.
    """
    cost = cost or Cost()
    batch_rows = batch_rows or max(len(rows), 1)
    batch = np.arange(len(rows)) // batch_rows
    order = rows.prompt_order
    places = order.places[epoch_order(rows, seed=seed, epoch=epoch)]
    places = places[np.lexsort((places, batch))]
    starts = np.append(np.arange(0, len(rows), batch_rows), len(rows))
    members, packs_of_batch = _pack_batches(rows, places, starts, strategy, pack_length, ranks, cost)

    pack_starts = np.append(0, np.cumsum([len(pack) for pack in members], dtype=np.int64))
    places = places[np.concatenate([np.empty(0, np.int64), *members])]
    chosen = order.order[places]
    lengths = rows.lengths[chosen]
    shared = _shared(order.common(places), pack_starts, strategy)
    spent = cost.of_rows(lengths, rows.targets_per_row[chosen]) - cost.of_prefix(shared)
    return PackPlan(
        rows=chosen,
        row_ids=rows.names(chosen),
        lengths=lengths.astype(np.int32),
        shared=shared.astype(np.int32),
        pack_starts=pack_starts,
        batch_starts=np.append(0, np.cumsum(packs_of_batch, dtype=np.int64)),
        costs=_sums(spent, pack_starts),
        strategy=strategy,
        pack_length=pack_length,
        ranks=ranks,
    )


def _pack_batches(
    rows: Rows, places: np.ndarray, starts: np.ndarray, strategy: Strategy, pack_length: int, ranks: int, cost: Cost
) -> tuple[list[np.ndarray], list[int]]:
    """Cut each batch into packs.

    Args:
        places: of the rows in the prompt order, int64; ascending in each batch.
        starts: where each batch begins in them; the last entry is their length.

    Returns:
        For each pack its indices into `places`, and the number of packs in each batch.
    """
    chosen = rows.prompt_order.order[places]
    lengths, targets = rows.lengths[chosen], rows.targets_per_row[chosen]
    shared = _shared(rows.prompt_order.common(places), starts, strategy)
    members: list[np.ndarray] = []
    packs_of_batch = []
    for start, stop in pairwise(starts.tolist()):
        span = slice(start, stop)
        if strategy == "none":
            packs = list(np.arange(stop - start)[:, None])
        else:
            packs = _pack(lengths[span], shared[span], targets[span], strategy, pack_length, ranks, cost)
        members += [start + pack for pack in packs]
        packs_of_batch.append(len(packs))
    return members, packs_of_batch


def _pack(
    lengths: np.ndarray,
    shared: np.ndarray,
    targets: np.ndarray,
    strategy: Strategy,
    pack_length: int,
    ranks: int,
    cost: Cost,
) -> list[np.ndarray]:
    """Cut one batch into packs, as evenly as needed to give each rank the same number of packs."""

    def fill(capacity: int) -> list[np.ndarray]:
        if strategy == "prefix_tree":
            return pack_by_prefix(lengths, shared, targets, capacity=capacity, cost=cost)
        bins = best_fit_decreasing(np.minimum(lengths, capacity), capacity)
        return [np.sort(np.array(items, np.int64)) for items in bins]

    total = int((lengths - shared).sum())
    packs = [np.arange(len(lengths))] if total <= pack_length else fill(pack_length)
    wanted = -(-len(packs) // ranks) * ranks
    if len(packs) == wanted:
        return packs
    common = int(shared[1:].min(initial=pack_length)) if len(shared) > 1 else 0
    share = (total - common) / wanted
    for slack in SLACK_FACTORS:
        even = fill(min(pack_length, max(int(lengths.max()), common + int(np.ceil(slack * share)))))
        if len(even) <= wanted:
            return even
    return packs


def _shared(common: np.ndarray, starts: np.ndarray, strategy: Strategy) -> np.ndarray:
    """Leading tokens that each row shares with the one before: 0 at a start, and 0 without a tree; int64."""
    if strategy != "prefix_tree":
        return np.zeros(len(common), np.int64)
    common[starts[:-1]] = 0
    return common


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums over consecutive, non-empty slices."""
    if len(starts) == 1:
        return np.zeros(0, values.dtype)
    return np.add.reduceat(values, starts[:-1], dtype=np.result_type(values, np.int64))


def _lists(values: np.ndarray | pa.Array, starts: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(values))
