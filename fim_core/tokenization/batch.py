"""One batch of the prompts table becomes rows of ids and labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from fim_core.config import DataConfig
from fim_core.records.schema import Reason
from fim_core.tokenization.encoder import Piece, TextEncoder
from fim_core.tokenization.pieces import PieceTable
from fim_core.tokenization.spans import cut_at_spans

IGNORED = -100
SPLITS = ("train", "eval")

DATASET_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string()),
        pa.field("type", pa.string()),
        pa.field("input_ids", pa.list_(pa.int32())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("prompt_length", pa.int32()),
    ]
)
"""`prompt_length`: tokens before the response, earlier assistant turns among them, whose labels are their tokens."""

REJECTED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("row_id", "reason", "detail", "type", "prompt", "response")]
)


@dataclass(frozen=True)
class TokenizedBatch:
    """One batch: kept rows by split (DATASET_SCHEMA), rejected ones, and what there is to count."""

    kept: dict[str, pa.Table]
    rejected: pa.Table
    types: list[str]
    lengths: np.ndarray
    trained_tokens: int
    neutralised: int
    pieces: int
    distinct_pieces: int


class BatchTokenizer:
    """Tokenizes batches; each process has its own, with its own table of pieces."""

    def __init__(self, prompts: Path, data: DataConfig, falls_back: bool) -> None:
        tokens = json.loads((prompts / "tokens.json").read_text(encoding="utf-8"))
        self.encoder = TextEncoder(Tokenizer.from_file(str(prompts / "tokenizer" / "tokenizer.json")))
        if falls_back:
            self.encoder.fall_back()
        self._end = int(tokens["end_id"])
        self._table = PieceTable(self.encoder)
        self._max_length = data.max_length
        self._mask_inputs = data.mask_inputs

    def __call__(self, batch: pa.RecordBatch) -> TokenizedBatch:
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
        rows, prompt_pieces, trained_pieces = self._cut(columns)
        seen, encoded = self._table.pieces, self._table.encoded
        ids, piece_lengths = self._table.gather(rows)
        per_row = np.array([len(row) for row in rows], np.int64)
        first_piece = np.cumsum(per_row) - per_row
        place = np.arange(len(piece_lengths)) - np.repeat(first_piece, per_row)
        is_trained = place >= np.repeat(np.array(prompt_pieces, np.int64), per_row)
        is_trained[trained_pieces] = True

        piece_starts = np.cumsum(piece_lengths) - piece_lengths
        # Behind the prompt's pieces there is always another one: the end token.
        behind_prompt = first_piece + np.array(prompt_pieces, np.int64)
        prompt_lengths = (piece_starts[behind_prompt] - piece_starts[first_piece]).astype(np.int32)
        lengths = np.add.reduceat(piece_lengths, first_piece)
        has_label = np.repeat(is_trained, piece_lengths) if self._mask_inputs else np.ones(len(ids), np.bool_)
        labels = np.where(has_label, ids, np.int32(IGNORED))

        is_kept = lengths <= self._max_length
        split = np.array(columns["split"])
        kept = {}
        for name in SPLITS:
            chosen = is_kept & (split == name)
            kept[name] = _dataset_table(batch, chosen, lengths, prompt_lengths, ids, labels)
        return TokenizedBatch(
            kept=kept,
            rejected=self._rejected(batch, ~is_kept, lengths),
            types=[kind for kind, keep in zip(columns["type"], is_kept.tolist(), strict=True) if keep],
            lengths=lengths[is_kept].astype(np.int32),
            trained_tokens=int(np.count_nonzero(has_label & np.repeat(is_kept, lengths))),
            neutralised=len(rows) - batch.column("control_spans").null_count,
            pieces=self._table.pieces - seen,
            distinct_pieces=self._table.encoded - encoded,
        )

    def _cut(self, columns: dict[str, list[Any]]) -> tuple[list[list[Piece]], list[int], list[int]]:
        """Pieces of each row; how many of them are the prompt's; which of all pieces are trained on besides."""
        rows: list[list[Piece]] = []
        prompt_pieces: list[int] = []
        trained: list[int] = []
        total = 0
        names = ("prompt", "response", "control_spans", "trained_spans")
        for prompt, response, control_spans, trained_spans in zip(*(columns[name] for name in names), strict=True):
            if trained_spans is None:
                pieces = self.encoder.pieces(prompt, control_spans)
            else:
                pieces, chosen = cut_at_spans(self.encoder, prompt, control_spans, trained_spans)
                trained += [total + number for number in chosen]
            prompt_pieces.append(len(pieces))
            pieces += self.encoder.text_pieces(response)
            pieces.append(self._end)
            rows.append(pieces)
            total += len(pieces)
        return rows, prompt_pieces, trained

    def _rejected(self, batch: pa.RecordBatch, chosen: np.ndarray, lengths: np.ndarray) -> pa.Table:
        table = pa.Table.from_batches([batch]).filter(pa.array(chosen))
        details = [f"{length} tokens, {self._max_length} allowed" for length in lengths[chosen].tolist()]
        columns = {name: table.column(name) for name in ("row_id", "type", "prompt", "response")} | {
            "reason": pa.array([str(Reason.TOO_LONG)] * len(details), pa.string()),
            "detail": pa.array(details, pa.string()),
        }
        return pa.table([columns[name] for name in REJECTED_SCHEMA.names], schema=REJECTED_SCHEMA)


def _dataset_table(
    batch: pa.RecordBatch,
    chosen: np.ndarray,
    lengths: np.ndarray,
    prompt_lengths: np.ndarray,
    ids: np.ndarray,
    labels: np.ndarray,
) -> pa.Table:
    """The chosen rows of a batch as DATASET_SCHEMA; `ids` and `labels` are those of all its rows."""
    of_tokens = np.repeat(chosen, lengths)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int32))
    mask = pa.array(chosen)
    return pa.table(
        [
            batch.column("row_id").filter(mask),
            batch.column("type").filter(mask),
            pa.ListArray.from_arrays(offsets, pa.array(ids[of_tokens])),
            pa.ListArray.from_arrays(offsets, pa.array(labels[of_tokens])),
            pa.array(prompt_lengths[chosen]),
        ],
        schema=DATASET_SCHEMA,
    )
