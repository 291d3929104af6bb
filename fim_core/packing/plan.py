"""The pack plan: which rows share a sequence in which order, for one epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.errors import FimError
from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.cost import Cost
from fim_core.packing.layout import Layout, forest
from fim_core.packing.prefix import pack_by_prefix, shared_with_previous
from fim_core.packing.rows import Rows

Strategy = Literal["prefix_tree", "flat", "none"]

PLAN_SCHEMA = pa.schema(
    [
        ("pack", pa.int32()),
        ("rows", pa.list_(pa.int64())),
        ("row_ids", pa.list_(pa.string())),
        ("lengths", pa.list_(pa.int32())),
        ("shared", pa.list_(pa.int32())),
        ("segments", pa.list_(pa.struct([("start", pa.int32()), ("length", pa.int32()), ("parent", pa.int32())]))),
        ("leaves", pa.list_(pa.int32())),
        ("tokens", pa.int64()),
        ("distinct_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True, eq=False)
class Pack:
    """Rows that are trained on in one sequence, in prefix order.

    Attributes:
        rows: int64 [k], indices into Rows.
        row_ids: their names.
        lengths: int32 [k], tokens of each row.
        shared: int32 [k], leading tokens that a row has in common with the row before and that stand only once.
    """

    rows: np.ndarray
    row_ids: tuple[str, ...]
    lengths: np.ndarray
    shared: np.ndarray

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
    """A plan in numbers.

    Attributes:
        packs: sequences.
        rows: rows in them.
        tokens: tokens of all rows, before sharing.
        distinct_tokens: tokens that the model sees.
        fill: distinct tokens as a share of `packs * max_length`.
        rows_per_pack: mean.
    """

    packs: int
    rows: int
    tokens: int
    distinct_tokens: int
    fill: float
    rows_per_pack: float


@dataclass(frozen=True)
class PackPlan(Sequence[Pack]):
    """All packs of an epoch, in the order they are trained on."""

    packs: tuple[Pack, ...]
    strategy: str
    max_length: int

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.packs[index]

    def __iter__(self) -> Iterator[Pack]:
        return iter(self.packs)

    @cached_property
    def stats(self) -> PackStats:
        """The plan in numbers."""
        packs, rows = len(self.packs), sum(len(pack.rows) for pack in self.packs)
        distinct = sum(pack.distinct_tokens for pack in self.packs)
        return PackStats(
            packs=packs,
            rows=rows,
            tokens=sum(pack.tokens for pack in self.packs),
            distinct_tokens=distinct,
            fill=distinct / (packs * self.max_length) if packs else 0.0,
            rows_per_pack=rows / packs if packs else 0.0,
        )

    def write(self, path: Path) -> None:
        """Store the plan as a Parquet table, one row a pack, with the names of its rows."""
        records = [
            {
                "pack": index,
                "rows": pack.rows,
                "row_ids": pack.row_ids,
                "lengths": pack.lengths,
                "shared": pack.shared,
                "segments": [dict(zip(("start", "length", "parent"), s, strict=True)) for s in pack.segments.tolist()],
                "leaves": pack.leaves,
                "tokens": pack.tokens,
                "distinct_tokens": pack.distinct_tokens,
            }
            for index, pack in enumerate(self.packs)
        ]
        schema = PLAN_SCHEMA.with_metadata({"strategy": self.strategy, "max_length": str(self.max_length)})
        pq.write_table(pa.Table.from_pylist(records, schema=schema), path)

    @classmethod
    def read(cls, path: Path) -> PackPlan:
        """A plan that `write` has stored."""
        table = pq.read_table(path, columns=["rows", "row_ids", "lengths", "shared"])
        packs = tuple(
            Pack(
                np.array(record["rows"], np.int64),
                tuple(record["row_ids"]),
                np.array(record["lengths"], np.int32),
                np.array(record["shared"], np.int32),
            )
            for record in table.to_pylist()
        )
        metadata = table.schema.metadata
        return cls(packs, metadata[b"strategy"].decode(), int(metadata[b"max_length"]))


def plan_packs(
    rows: Rows, *, strategy: Strategy, max_length: int, seed: int = 0, epoch: int = 0, cost: Cost | None = None
) -> PackPlan:
    """Decide which rows share a sequence in this epoch.

    `none`: each row by itself. `flat`: rows one after the other, bins filled best-fit decreasing over the whole data
    set. `prefix_tree`: rows with long common prompts together, each common prefix once. The same arguments give the
    same plan; another epoch gives another order of packs and, where lengths and sharing allow, other company.

    Args:
        rows: every row ends up in exactly one pack.
        strategy: one of the three.
        max_length: distinct tokens that a pack may hold.
        seed: of everything random.
        epoch: counted from 0.
        cost: what `prefix_tree` balances packs by; give `modeling.flops.training_cost(config)` for a model's own.

    Raises:
        FimError: a row is longer than `max_length`; rows are never cut.
    """
    lengths = rows.lengths
    overlong = np.flatnonzero(lengths > max_length)
    if len(overlong):
        longest = overlong[np.argmax(lengths[overlong])]
        raise FimError(
            f"{len(overlong)} rows are longer than max_length {max_length}; the longest, {rows.row_ids[int(longest)]}, "
            f"has {lengths[longest]} tokens. Rows are never cut: raise data.max_length, or tokenize again."
        )
    rng = np.random.default_rng([seed, epoch])
    if len(rows) == 0:
        members = []
    elif strategy == "none":
        members = list(np.arange(len(rows))[:, None])
    elif strategy == "flat":
        members = [rng.permutation(items) for items in best_fit_decreasing(lengths, max_length, rng)]
    else:
        members = pack_by_prefix(rows, max_length=max_length, cost=cost or Cost(), rng=rng)
    packs = []
    for pack in rng.permutation(len(members)).tolist():
        items = np.asarray(members[pack], np.int64)
        shared = shared_with_previous(rows, items) if strategy == "prefix_tree" else np.zeros(len(items))
        names = tuple(rows.row_ids[row] for row in items.tolist())
        packs.append(Pack(items, names, lengths[items].astype(np.int32), shared.astype(np.int32)))
    return PackPlan(tuple(packs), strategy, max_length)
