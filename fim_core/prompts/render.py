"""Rendering batches of the raw table, with a cache."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from fim_core.batch_cache import BatchCache
from fim_core.config import DataConfig, ModelConfig
from fim_core.prompt_format.recipe import Recipe
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.rows import RowBuilder
from fim_core.prompts.split import statement_hash, text_hash
from fim_core.records.schema import RAW_SCHEMA, VERDICT_COLUMNS, Rejection

_FROM_RAW = ("row_id", "type", "source_type")
RENDERED_SCHEMA = pa.schema(
    [
        *(RAW_SCHEMA.field(name) for name in _FROM_RAW),
        pa.field("is_completion", pa.bool_(), nullable=False),
        pa.field("is_finished", pa.bool_(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("prefix", pa.string()),
        pa.field("suffix", pa.string()),
        pa.field("control_spans", pa.list_(pa.int32())),
        pa.field("trained_spans", pa.list_(pa.int32())),
    ]
)
"""Columns of _FROM_RAW are copied from the raw table, the others are fields of `PromptRow`."""

_OUTCOME_SCHEMA = pa.schema(
    [
        *(field.with_nullable(True) for field in RENDERED_SCHEMA if field.name not in _FROM_RAW),
        pa.field("statement", pa.uint64()),
        pa.field("repaired", pa.bool_()),
        pa.field("masked", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""The outcome of rendering each row: `reason` and `detail` of a rejected row, everything else of a kept one."""

_RENDERED_FROM = ("source_type", "input", "output")
_RENDERED_FROM_FEEDBACK = (*_RENDERED_FROM, *VERDICT_COLUMNS)


@dataclass(frozen=True)
class Rendered:
    """A rendered batch.

    Attributes:
        kept: rows of RENDERED_SCHEMA.
        rejected: raw rows with reason and detail.
        statements, column: uint64 [kept], hashes of the statement and of the column to group by (0: no value).
        held_out: bool [kept], from an eval source.
        repaired, masked, rendered: see `PromptCounts`.
    """

    kept: pa.RecordBatch
    rejected: pa.RecordBatch
    statements: np.ndarray
    column: np.ndarray
    held_out: np.ndarray
    repaired: int
    masked: int
    rendered: int


class Renderer:
    """Renders batches. Each worker process has its own instance."""

    def __init__(self, builder: PromptBuilder, column: str | None, cache: BatchCache | None) -> None:
        self._rows = RowBuilder(builder)
        self._decisive = _RENDERED_FROM_FEEDBACK if builder.data.has_feedback else _RENDERED_FROM
        self._column = column
        self._cache = cache

    def __call__(self, batch: pa.RecordBatch) -> Rendered:
        decisive = batch.select(self._decisive)
        outcome, is_new = (
            self._cache.get_or_compute(decisive, self._render) if self._cache else (self._render(decisive), True)
        )
        is_kept = outcome.column("reason").is_null()
        rows, source = outcome.filter(is_kept), batch.filter(is_kept)
        kept = {name: (rows if name in rows.schema.names else source).column(name) for name in RENDERED_SCHEMA.names}
        is_rejected = pc.invert(is_kept)
        reasons, original = outcome.filter(is_rejected), batch.filter(is_rejected)
        return Rendered(
            kept=pa.record_batch(list(kept.values()), schema=RENDERED_SCHEMA),
            rejected=original.add_column(1, "reason", reasons.column("reason")).add_column(
                2, "detail", reasons.column("detail")
            ),
            statements=rows.column("statement").to_numpy(zero_copy_only=False),
            column=self._column_hashes(source),
            held_out=source.column("held_out").to_numpy(zero_copy_only=False),
            repaired=rows.column("repaired").true_count,
            masked=pc.sum(rows.column("masked"), min_count=0).as_py(),
            rendered=len(batch) if is_new else 0,
        )

    def _render(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The outcome of each row, as _OUTCOME_SCHEMA."""
        texts = [batch.column(name).to_pylist() for name in self._decisive]
        outcomes = [_outcome(self._rows.build(*row)) for row in zip(*texts, strict=True)]
        return pa.RecordBatch.from_pylist(outcomes, _OUTCOME_SCHEMA)

    def _column_hashes(self, kept: pa.RecordBatch) -> np.ndarray:
        if self._column is None:
            return np.zeros(len(kept), np.uint64)
        values = kept.column(self._column).to_pylist()
        return np.array([text_hash(value) if value else 0 for value in values], np.uint64)


def _outcome(row: PromptRow | Rejection) -> dict[str, Any]:
    """Values of _OUTCOME_SCHEMA; those that are missing are null."""
    if isinstance(row, Rejection):
        return {"reason": str(row.reason), "detail": row.detail}
    return {field.name: getattr(row, field.name) for field in fields(row)} | {
        "statement": statement_hash(row.statement)
    }


def make_renderer(
    tokenizer: PreTrainedTokenizerFast,
    model: ModelConfig,
    data: DataConfig,
    recipe: Recipe | None,
    chat_rows: bool,
    column: str | None,
    cache: BatchCache | None,
) -> Renderer:
    return Renderer(PromptBuilder(tokenizer, model, data, recipe, chat_rows=chat_rows), column, cache)
