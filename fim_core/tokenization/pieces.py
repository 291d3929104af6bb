"""Encoding many rows at once: each distinct piece of a batch is split once, and each distinct line encoded once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from fim_core.tokenization.encoder import Piece, TextEncoder

MAX_TOKENS = 4_000_000
MAX_CHARACTERS = 64_000_000
"""Limits beyond which the table is cleared, which bounds its memory to some 200 MB."""


class PieceTable:
    """Caches the ids of lines (or of segments, see `TextEncoder.granularity`).

    Attributes:
        encoded: tokens produced by the tokenizer, not taken from the cache.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.encoded = 0
        self._clear()

    def gather(self, rows: Sequence[Sequence[Piece]]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of rows of pieces.

        Returns:
            ids: int32, of all pieces of all rows one after the other.
            lengths: int64, tokens of each piece.
        """
        if len(self._ids) > MAX_TOKENS or self._characters > MAX_CHARACTERS:
            self._clear()
        distinct = dict.fromkeys(itertools.chain.from_iterable(rows))
        lines = [self.encoder.lines(piece) for piece in distinct]
        self._learn(set(itertools.chain.from_iterable(lines)).difference(self._slots))
        slots = _numbers(self._slots, lines)
        ids, line_lengths = _concatenated(self._ids, self._starts[slots], self._lengths[slots])
        # Every piece has at least one line.
        per_piece = np.fromiter(map(len, lines), np.int64, len(lines))
        lengths = np.add.reduceat(line_lengths, np.cumsum(per_piece) - per_piece) if len(lines) else per_piece
        chosen = _numbers(dict(zip(distinct, range(len(distinct)), strict=True)), rows)
        return _concatenated(ids, (np.cumsum(lengths) - lengths)[chosen], lengths[chosen])

    def _clear(self) -> None:
        self._slots: dict[Piece, int] = {}
        self._ids = np.empty(0, np.int32)
        self._starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)
        self._characters = 0

    def _learn(self, fresh: Iterable[Piece]) -> None:
        controls: list[int] = []
        texts: list[str] = []
        for piece in fresh:
            if isinstance(piece, int):
                controls.append(piece)
            else:
                texts.append(piece)
        if not controls and not texts:
            return
        encoded = [np.array(controls, np.int32), *self.encoder.encode_pieces(texts)]
        lengths = np.array([1] * len(controls) + [len(ids) for ids in encoded[1:]], np.int64)
        first = len(self._slots)
        self._slots.update(zip([*controls, *texts], range(first, first + len(lengths)), strict=True))
        self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, *encoded])
        self._characters += sum(map(len, texts))
        self.encoded += int(lengths.sum()) - len(controls)


def _numbers(number_of: dict[Piece, int], groups: Sequence[Sequence[Piece]]) -> np.ndarray:
    """The number of each piece of all groups, int64."""
    total = sum(map(len, groups))
    return np.fromiter(map(number_of.__getitem__, itertools.chain.from_iterable(groups)), np.int64, total)


def _concatenated(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`ids[start : start + length]` of each pair one after the other, and `lengths`."""
    ends = np.cumsum(lengths)
    # Position of each token in `ids`: the start of its slice, plus its offset in the slice.
    places = np.repeat(starts - ends + lengths, lengths)
    places += np.arange(len(places))
    return ids[places], lengths
