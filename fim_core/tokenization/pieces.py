"""A table of distinct pieces and their ids; ids of whole rows are gathered from it without a loop over tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from fim_core.tokenization.encoder import Piece, TextEncoder

MAX_TOKENS = 4_000_000
MAX_CHARACTERS = 64_000_000
"""The table starts anew once it holds more than this, which bounds its memory to some 200 MB."""


class PieceTable:
    """Remembers the ids of the pieces that it has seen.

    Attributes:
        pieces: text pieces gathered so far, each occurrence counted.
        encoded: text pieces that had to be encoded.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.pieces = 0
        self.encoded = 0
        self._clear()

    def gather(self, rows: Sequence[Sequence[Piece]]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of rows of pieces.

        Returns:
            ids: int32, of all pieces of all rows one after the other.
            lengths: int64, tokens of each piece.
        """
        if self._used > MAX_TOKENS or self._characters > MAX_CHARACTERS:
            self._clear()
        occurrences = sum(map(len, rows))
        self._learn(set(itertools.chain.from_iterable(rows)).difference(self._slots))
        slots = np.fromiter(
            map(self._slots.__getitem__, itertools.chain.from_iterable(rows)), dtype=np.int64, count=occurrences
        )
        self.pieces += occurrences
        lengths = self._lengths[slots]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if occurrences else 0
        # Position of each token in the table: where its piece starts there, plus how far into the piece it is.
        places = np.repeat(self._starts[slots] - ends + lengths, lengths)
        places += np.arange(total)
        return self._ids[places], lengths

    def _clear(self) -> None:
        self._slots: dict[Piece, int] = {}
        self._ids = np.empty(0, np.int32)
        self._starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)
        self._used = 0
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
        encoded = [*(np.array([control], np.int32) for control in controls), *self.encoder.encode_pieces(texts)]
        first = len(self._slots)
        self._slots.update(zip([*controls, *texts], range(first, first + len(encoded)), strict=True))
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        self._starts = np.concatenate([self._starts, self._used + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, *encoded])
        self._used = len(self._ids)
        self._characters += sum(map(len, texts))
        self.encoded += len(texts)
