"""Tokenized rows as flat arrays over memory-mapped Arrow buffers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fim_core.errors import FimError
from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.packing.prompt_order import WINDOW, PromptOrder, sort_prompts

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class FlatColumn:
    """One long int32 array in several parts: one for each Arrow record batch.

    A slice must be within one part, as slices of whole rows are; it is a view, not a copy.
    """

    parts: tuple[np.ndarray, ...]

    @cached_property
    def starts(self) -> list[int]:
        """Offset of each part in the array; the last entry is the total length."""
        return [0, *np.cumsum([len(part) for part in self.parts]).tolist()]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        part = max(bisect_right(self.starts, span.start) - 1, 0)
        if span.start == span.stop:
            return np.empty(0, np.int32)
        return self.parts[part][span.start - self.starts[part] : span.stop - self.starts[part]]

    def windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """`width` values from each start on, int32 [n, width], a copy. Values beyond the end of a part are undefined.

        Args:
            starts: int64 [n].
        """
        found = np.empty((len(starts), width), np.int32)
        part_of = np.searchsorted(self.starts, starts, side="right") - 1
        part_of = np.minimum(part_of, len(self.parts) - 1)
        by_part = np.argsort(part_of, kind="stable")
        edges = np.searchsorted(part_of[by_part], np.arange(len(self.parts) + 1))
        for part, (first, last) in enumerate(pairwise(edges.tolist())):
            if first < last and len(self.parts[part]):
                chosen = by_part[first:last]
                places = (starts[chosen] - self.starts[part])[:, None] + np.arange(width)
                found[chosen] = self.parts[part][np.minimum(places, len(self.parts[part]) - 1)]
        return found


@dataclass(frozen=True)
class Rows:
    """All rows of a split, in the order of the data set.

    Attributes:
        tokens: input ids of all rows, concatenated (int32).
        labels: the token at each position, or IGNORE_INDEX where it is not trained on (int32).
        offsets: int64 [rows + 1]; row `i` is `tokens[offsets[i]:offsets[i + 1]]`.
        row_ids: for messages and lineage.
    """

    tokens: FlatColumn
    labels: FlatColumn
    offsets: np.ndarray
    row_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def tokens_of(self, row: int) -> np.ndarray:
        """Input ids of one row, int32, a view."""
        return self.tokens[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def labels_of(self, row: int) -> np.ndarray:
        """Labels of one row, int32, a view."""
        return self.labels[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @cached_property
    def targets_per_row(self) -> np.ndarray:
        """Positions that are predicted and trained on, int64 [rows]. Position 0 cannot be predicted."""
        return self._over_labels(lambda trained, starts: np.add.reduceat(trained, starts, dtype=np.int64))

    @cached_property
    def first_targets(self) -> np.ndarray:
        """Index of the first position that is predicted and trained on, or the row's length; int64 [rows]."""

        def first(trained: np.ndarray, starts: np.ndarray) -> np.ndarray:
            found = np.append(np.flatnonzero(trained), len(trained))
            return found[np.searchsorted(found, starts)] - starts

        return np.minimum(self._over_labels(first), self.lengths)

    @cached_property
    def shareable(self) -> np.ndarray:
        """Leading tokens of each row that other rows may share, int64 [rows].

        They end before the position that predicts the row's first target: all of them are masked, and each row keeps at
        least one unshared token.
        """
        return np.maximum(np.minimum(self.first_targets, self.lengths) - 1, 0)

    @cached_property
    def prompt_order(self) -> PromptOrder:
        """The rows sorted by the tokens that they may share."""
        return sort_prompts(
            lambda rows, position: self.tokens.windows(self.offsets[rows] + position, WINDOW), self.shareable
        )

    def names(self, rows: np.ndarray) -> pa.StringArray:
        """The row_ids of some rows."""
        if isinstance(self.row_ids, _Names):
            return self.row_ids.take(rows)
        return pa.array([self.row_ids[row] for row in rows.tolist()], pa.string())

    def _over_labels(self, summarise) -> np.ndarray:  # type: ignore[no-untyped-def]
        """Concatenate `summarise(trained, row starts)` of each part, so that not all labels are in memory at once."""
        results = [np.empty(0, np.int64)]
        edges = np.searchsorted(self.offsets, self.labels.starts)
        for part, start, (first, last) in zip(self.labels.parts, self.labels.starts[:-1], pairwise(edges), strict=True):
            if first == last:
                continue
            starts = self.offsets[first:last] - start
            trained = part != IGNORE_INDEX
            trained[starts] = False
            results.append(summarise(trained, starts))
        return np.concatenate(results)

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset) -> Rows:
        """Views over a data set with columns input_ids, labels and row_id.

        Raises:
            FimError: a column is missing, a row is empty, or labels and input ids differ in length.
        """
        missing = {"input_ids", "labels", "row_id"} - set(dataset.column_names)
        if missing:
            raise FimError(
                f"The tokenized data set lacks the column {sorted(missing)[0]}. Materialize tokenized_dataset again."
            )
        if dataset._indices is not None:
            dataset = dataset.flatten_indices()
        table = dataset.data
        tokens, offsets = _flatten(table.column("input_ids"))
        labels, label_offsets = _flatten(table.column("labels"))
        row_ids = _Names(table.column("row_id"))
        for problem, bad in (
            ("no tokens", np.diff(offsets) == 0),
            ("not one label for each token", offsets != label_offsets),
        ):
            if bad.any():
                row = min(int(np.argmax(bad)), len(row_ids) - 1)
                raise FimError(f"Row {row_ids[row]} of the tokenized data set has {problem}. Tokenize the data again.")
        return cls(tokens, labels, offsets, row_ids)

    @classmethod
    def from_lists(
        cls, tokens: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], row_ids: Sequence[str] | None = None
    ) -> Rows:
        """Rows from lists in memory."""
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        flat = [np.array([value for row in rows for value in row], np.int32) for rows in (tokens, labels)]
        names = [str(row) for row in range(len(tokens))] if row_ids is None else row_ids
        return cls(FlatColumn((flat[0],)), FlatColumn((flat[1],)), offsets, names)


class _Names(Sequence[str]):
    """Row ids, read from Arrow on access."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        return self._column[row].as_py()

    def take(self, rows: np.ndarray) -> pa.StringArray:
        """The names of some rows."""
        taken = self._column.take(pa.array(rows)).cast(pa.string()).combine_chunks()
        return taken if isinstance(taken, pa.StringArray) else pa.concat_arrays(taken.chunks)


def _flatten(column: pa.ChunkedArray) -> tuple[FlatColumn, np.ndarray]:
    """The values of a list column, without copying, and the rows' offsets in them."""
    parts, lengths = [], [np.zeros(1, np.int64)]
    for chunk in column.chunks:
        values = chunk.flatten()
        parts.append(values.to_numpy(zero_copy_only=values.type == pa.int32()).astype(np.int32, copy=False))
        lengths.append(chunk.value_lengths().to_numpy().astype(np.int64))
    return FlatColumn(tuple(parts)), np.cumsum(np.concatenate(lengths))
