"""Tokenizing one batch of the prompts table to ids and labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fim_core.batch_cache import BatchCache
from fim_core.config import DataConfig
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.records.schema import LEFT_OUT, Reason
from fim_core.tokenization.encoder import Piece, TextEncoder
from fim_core.tokenization.pieces import PieceTable
from fim_core.tokenization.spans import cut_at_spans

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
"""`prompt_length`: tokens before the response, including earlier assistant turns, whose labels are their tokens."""

REJECTED_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("row_id", "reason", "detail", "type", "prompt", "response")]
)


_ENCODED_FROM = ("is_finished", "prompt", "response", "control_spans", "trained_spans")
_ENCODED_SCHEMA = pa.schema(
    [
        *(DATASET_SCHEMA.field(name) for name in ("input_ids", "labels", "prompt_length")),
        pa.field("length", pa.int32()),
        pa.field("has_stray", pa.bool_()),
        pa.field("is_changed", pa.bool_()),
    ]
)
"""The result of encoding each row; rows that are too long or have a stray control token have no ids."""


@dataclass(frozen=True)
class TokenizedBatch:
    """One batch: kept rows by split (DATASET_SCHEMA), rejected ones, and counts.

    left_out: rows that are neither trained on nor held out. They are encoded as well, so that the batches of an export do
    not depend on the split.
    changed: row_ids of kept rows whose response is not restored by decoding its tokens.
    """

    kept: dict[str, pa.RecordBatch]
    rejected: pa.Table
    types: list[str]
    lengths: np.ndarray
    left_out: int
    trained_tokens: int
    neutralised: int
    changed: pa.Array
    encoded: int
    tokenizer_tokens: int


class BatchTokenizer:
    """Tokenizes batches. Each worker process has its own instance, with its own table of pieces."""

    def __init__(self, prompts: Path, data: DataConfig, falls_back: bool, cache: BatchCache | None) -> None:
        fim, folder = read_recipe(prompts).fim_tokens, PromptsFolder(prompts).tokenizer
        self._end = fim.end_id
        self.encoder = TextEncoder(load_tokenizer(folder), fim, takes_over=True)
        controls = sorted(self.encoder.controls)
        self._cache = (
            cache.keyed_also_by(folder / "tokenizer.json", falls_back=falls_back, end=self._end, controls=controls)
            if cache
            else None
        )
        if falls_back:
            self.encoder.fall_back()
        self._table = PieceTable(self.encoder)
        self._max_length = data.max_length
        self._mask_inputs = data.mask_inputs

    def __call__(self, batch: pa.RecordBatch) -> TokenizedBatch:
        decisive, before = batch.select(_ENCODED_FROM), self._table.encoded
        encoded, is_new = (
            self._cache.get_or_compute(decisive, self._encode) if self._cache else (self._encode(decisive), True)
        )
        lengths = encoded.column("length").to_numpy()
        has_stray = encoded.column("has_stray").to_numpy(zero_copy_only=False)
        split = batch.column("split").to_numpy(zero_copy_only=False)
        is_used, can_be_used = split != LEFT_OUT, (lengths <= self._max_length) & ~has_stray
        is_kept = is_used & can_be_used
        columns = {
            name: (encoded if name in encoded.schema.names else batch).column(name) for name in DATASET_SCHEMA.names
        }
        rows = pa.record_batch(list(columns.values()), schema=DATASET_SCHEMA)
        labels = rows.column("labels").filter(pa.array(is_kept))
        return TokenizedBatch(
            kept={name: rows.filter(pa.array(is_kept & (split == name))) for name in SPLITS},
            rejected=self._rejected(batch, is_used & ~can_be_used, lengths, has_stray),
            types=batch.column("type").filter(pa.array(is_kept)).to_pylist(),
            lengths=lengths[is_kept],
            left_out=int(np.count_nonzero(~is_used)),
            trained_tokens=int(np.count_nonzero(labels.flatten().to_numpy() != IGNORE_INDEX)),
            neutralised=len(batch) - batch.column("control_spans").null_count,
            changed=batch.column("row_id").filter(
                pa.array(encoded.column("is_changed").to_numpy(zero_copy_only=False) & is_kept)
            ),
            encoded=len(batch) if is_new else 0,
            tokenizer_tokens=self._table.encoded - before,
        )

    def _encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Ids and labels of each row, as _ENCODED_SCHEMA."""
        columns = {name: batch.column(name).to_pylist() for name in _ENCODED_FROM}
        is_finished = np.array(columns.pop("is_finished"), np.bool_)
        rows, prompt_pieces, trained_pieces = self._cut(columns)
        ids, piece_lengths = self._table.gather(rows)
        per_row = np.array([len(row) for row in rows], np.int64)
        first_piece = np.cumsum(per_row) - per_row
        place = np.arange(len(piece_lengths)) - np.repeat(first_piece, per_row)
        is_trained = place >= np.repeat(np.array(prompt_pieces, np.int64), per_row)
        is_trained[trained_pieces] = True

        piece_starts = np.cumsum(piece_lengths) - piece_lengths
        # At least the end token follows the prompt's pieces.
        behind_prompt = first_piece + np.array(prompt_pieces, np.int64)
        prompt_lengths = (piece_starts[behind_prompt] - piece_starts[first_piece]).astype(np.int32)
        lengths = np.add.reduceat(piece_lengths, first_piece).astype(np.int32)
        labels = ids
        if self._mask_inputs:
            labels = np.where(np.repeat(is_trained, piece_lengths), ids, np.int32(IGNORE_INDEX))

        # Only pieces that are control tokens may give one, and finished prompts, which may contain them anywhere.
        is_own = np.fromiter((isinstance(piece, int) for row in rows for piece in row), np.bool_, len(piece_lengths))
        is_own |= np.repeat(is_finished, per_row) & (place < np.repeat(np.array(prompt_pieces, np.int64), per_row))
        is_stray = self.encoder.is_control[ids] & ~np.repeat(is_own, piece_lengths)
        has_stray = np.logical_or.reduceat(is_stray, piece_starts[first_piece])
        is_changed = [self.encoder.changed_by(response) is not None for response in columns["response"]]

        is_kept = (lengths <= self._max_length) & ~has_stray
        if not is_kept.all():
            of_tokens = np.repeat(is_kept, lengths)
            ids, labels = ids[of_tokens], labels[of_tokens]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths * is_kept)]).astype(np.int32))
        lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, labels)]
        figures = (prompt_lengths, lengths, has_stray, np.array(is_changed, np.bool_))
        return pa.record_batch([*lists, *map(pa.array, figures)], schema=_ENCODED_SCHEMA)

    def _cut(self, columns: dict[str, list[Any]]) -> tuple[list[list[Piece]], list[int], list[int]]:
        """Pieces of each row; how many of them are the prompt's; indices of the prompts' pieces to train on."""
        rows: list[list[Piece]] = []
        prompt_pieces: list[int] = []
        trained: list[int] = []
        total = 0
        for prompt, response, control_spans, trained_spans in zip(*columns.values(), strict=True):
            if trained_spans is None:
                pieces = self.encoder.pieces(prompt, control_spans)
            else:
                pieces, chosen = cut_at_spans(self.encoder, prompt, control_spans, trained_spans)
                trained += [total + number for number in chosen]
            prompt_pieces.append(len(pieces))
            if response:
                # One piece, so that names of control tokens in it are text.
                pieces.append(response)
            pieces.append(self._end)
            rows.append(pieces)
            total += len(pieces)
        return rows, prompt_pieces, trained

    def _rejected(
        self, batch: pa.RecordBatch, chosen: np.ndarray, lengths: np.ndarray, has_stray: np.ndarray
    ) -> pa.Table:
        table = pa.Table.from_batches([batch]).filter(pa.array(chosen))
        found = [
            (Reason.CONTROL_TOKEN, "the tokenizer makes a control token of user text")
            if stray
            else (Reason.TOO_LONG, f"{length} tokens, {self._max_length} allowed")
            for length, stray in zip(lengths[chosen].tolist(), has_stray[chosen].tolist(), strict=True)
        ]
        columns = {name: table.column(name) for name in ("row_id", "type", "prompt", "response")} | {
            "reason": pa.array([str(reason) for reason, _ in found], pa.string()),
            "detail": pa.array([detail for _, detail in found], pa.string()),
        }
        return pa.table([columns[name] for name in REJECTED_SCHEMA.names], schema=REJECTED_SCHEMA)
