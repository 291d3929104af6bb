"""Raw rows become the prompts table: every row is kept, or rejected with a reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.errors import FimError
from fim_core.parallel import ordered_map
from fim_core.prompts.builder import PromptBuilder
from fim_core.prompts.rows import RowBuilder
from fim_core.prompts.split import connected_groups, held_out_groups, statement_hash, text_hash
from fim_core.records.schema import RAW_SCHEMA, Rejection

PROMPTS = "prompts.parquet"
REJECTED = "rejected.parquet"
TOKENIZER = "tokenizer"
TOKENS = "tokens.json"

_BATCH_ROWS = 2048

_RENDERED_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("prefix", pa.string(), nullable=False),
        pa.field("suffix", pa.string(), nullable=False),
        pa.field("source_type", pa.string(), nullable=False),
        pa.field("control_spans", pa.list_(pa.int32())),
        pa.field("trained_spans", pa.list_(pa.int32())),
    ]
)
PROMPTS_SCHEMA = _RENDERED_SCHEMA.append(pa.field("split", pa.string(), nullable=False)).append(
    pa.field("group", pa.string(), nullable=False)
)
"""Columns of the prompts table.

    row_id, type, source_type     as in the raw table
    prompt, response              what the model reads, and what it learns to write; control tokens written out
    prefix, suffix                text around the cursor; empty in rows that are no completions
    control_spans                 [start, end, …] in characters of the control tokens of `prompt`, in rows whose user
                                  text looks like some too (control_tokens: neutralise); null elsewhere
    trained_spans                 [start, end, …] of earlier assistant turns in `prompt`, which are trained on as well
    split                         train or eval
    group                         rows of one group (hexadecimal) are never parted
"""


@dataclass(frozen=True)
class PromptCounts:
    """What became of the rows: rows_in = rows_kept + the sum of `rejected`.

    Attributes:
        repaired: kept rows whose INPUT was damaged JSON.
        rejected: rows by reason.
        train, eval: kept rows of each split.
        groups: groups of rows that are never parted.
        neutralised: kept rows with control tokens in user text, encoded as ordinary text.
        masked: secrets that were masked.
        notice: which markup the prompts have.
        family: the FIM control tokens' family; `added`: tokens that the tokenizer lacked.
        vocab_size: entries of the tokenizer, `added` included.
    """

    rows_in: int
    rows_kept: int
    repaired: int
    rejected: dict[str, int]
    train: int
    eval: int
    groups: int
    neutralised: int
    masked: int
    notice: str
    family: str
    added: list[str]
    vocab_size: int


def write_fim_prompts(
    raw: Path,
    output: Path,
    *,
    data: DataConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> PromptCounts:
    """Render every row of the raw table, by batch, and split the kept ones into train and eval.

    Writes into the folder `output`: `prompts.parquet` (PROMPTS_SCHEMA), `rejected.parquet` (row_id, reason, detail, the
    raw columns), `tokenizer/` with the FIM tokens, and `tokens.json` (FimTokens). Tokens that `tokenizer` lacks are
    added to it.

    Raises:
        FimError: a mistake in the template or the options.
    """
    builder = PromptBuilder(tokenizer, model, data)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output / TOKENIZER)
    (output / TOKENS).write_text(
        json.dumps(asdict(builder.tokens), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    rendered = output / ".rendered.parquet"
    source = pq.ParquetFile(raw)
    column = _group_column(source.schema_arrow, data.group_by)
    totals = _Totals()
    with (
        pq.ParquetWriter(rendered, _RENDERED_SCHEMA, compression="lz4") as kept,
        pq.ParquetWriter(output / REJECTED, _rejected_schema(source.schema_arrow), compression="zstd") as rejected,
    ):
        batches = source.iter_batches(_BATCH_ROWS)
        renderer = _Renderer(builder, column)
        make, arguments = (
            (lambda: renderer, ()) if data.num_proc == 1 else (_make_renderer, (tokenizer, model, data, column))
        )
        for result in ordered_map(make, arguments, batches, num_proc=data.num_proc):
            kept.write_table(result.kept)
            rejected.write_table(result.rejected)
            totals.add(result)
    groups, is_eval = totals.split(data, seed)
    _write_with_split(rendered, output / PROMPTS, groups, is_eval)
    rendered.unlink()
    return PromptCounts(
        rows_in=source.metadata.num_rows,
        rows_kept=len(groups),
        repaired=totals.repaired,
        rejected=dict(sorted(totals.reasons.items())),
        train=int(np.count_nonzero(~is_eval)),
        eval=int(np.count_nonzero(is_eval)),
        groups=len(np.unique(groups)),
        neutralised=totals.neutralised,
        masked=totals.masked,
        notice=builder.notice,
        family=builder.tokens.family,
        added=list(builder.tokens.added),
        vocab_size=len(tokenizer),
    )


@dataclass(frozen=True)
class _Rendered:
    """One batch after rendering; hashes are uint64 and belong to the kept rows."""

    kept: pa.Table
    rejected: pa.Table
    statements: np.ndarray
    column: np.ndarray
    held_out: np.ndarray
    repaired: int
    masked: int


class _Renderer:
    """Renders batches; each process has its own."""

    def __init__(self, builder: PromptBuilder, column: str | None) -> None:
        self._rows = RowBuilder(builder)
        self._column = column

    def __call__(self, batch: pa.RecordBatch) -> _Rendered:
        texts = {name: batch.column(name).to_pylist() for name in ("row_id", "source_type", "type", "input", "output")}
        results = [
            self._rows.build(*row) for row in zip(texts["source_type"], texts["input"], texts["output"], strict=True)
        ]
        kept = [number for number, row in enumerate(results) if not isinstance(row, Rejection)]
        rows = [row for row in results if not isinstance(row, Rejection)]
        rejections = [row for row in results if isinstance(row, Rejection)]
        columns = {name: [texts[name][number] for number in kept] for name in ("row_id", "type", "source_type")} | {
            name: [getattr(row, name) for row in rows]
            for name in ("prompt", "response", "prefix", "suffix", "control_spans", "trained_spans")
        }
        is_rejected = pa.array([isinstance(row, Rejection) for row in results], pa.bool_())
        original = pa.Table.from_batches([batch]).filter(is_rejected)
        rejected = original.add_column(
            1, "reason", pa.array([str(r.reason) for r in rejections], pa.string())
        ).add_column(2, "detail", pa.array([r.detail for r in rejections], pa.string()))
        held_out = batch.column("held_out").to_pylist()
        return _Rendered(
            kept=pa.table([columns[name] for name in _RENDERED_SCHEMA.names], schema=_RENDERED_SCHEMA),
            rejected=rejected,
            statements=np.array([statement_hash(row.statement) for row in rows], np.uint64),
            column=self._column_hashes(batch, kept),
            held_out=np.array([held_out[number] for number in kept], np.bool_),
            repaired=sum(row.repaired for row in rows),
            masked=sum(row.masked for row in rows),
        )

    def _column_hashes(self, batch: pa.RecordBatch, kept: list[int]) -> np.ndarray:
        if self._column is None:
            return np.zeros(len(kept), np.uint64)
        values = batch.column(self._column).to_pylist()
        return np.array([text_hash(values[number]) if values[number] else 0 for number in kept], np.uint64)


def _make_renderer(
    tokenizer: PreTrainedTokenizerFast, model: ModelConfig, data: DataConfig, column: str | None
) -> _Renderer:
    return _Renderer(PromptBuilder(tokenizer, model, data), column)


@dataclass
class _Totals:
    """What all batches add up to: counts, and some 17 bytes a kept row for the split."""

    statements: list[np.ndarray] = field(default_factory=list)
    column: list[np.ndarray] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    masked: int = 0
    neutralised: int = 0

    def add(self, result: _Rendered) -> None:
        self.statements.append(result.statements)
        self.column.append(result.column)
        self.held_out.append(result.held_out)
        self.reasons.update(result.rejected.column("reason").to_pylist())
        self.repaired += result.repaired
        self.masked += result.masked
        spans = result.kept.column("control_spans")
        self.neutralised += len(spans) - spans.null_count

    def split(self, data: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The group of each kept row (uint64), and whether it is for evaluation (bool)."""
        groups = connected_groups(
            np.concatenate([np.empty(0, np.uint64), *self.statements]),
            np.concatenate([np.empty(0, np.uint64), *self.column]),
        )
        is_eval = held_out_groups(
            groups,
            np.concatenate([np.empty(0, np.bool_), *self.held_out]),
            fraction=data.eval_fraction,
            has_eval_sources=bool(data.eval_sources),
            seed=seed,
        )
        return groups, is_eval


def _write_with_split(rendered: Path, output: Path, groups: np.ndarray, is_eval: np.ndarray) -> None:
    """Copy the rendered rows by batch, with their `split` and `group`."""
    position = 0
    with pq.ParquetWriter(output, PROMPTS_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(rendered).iter_batches(_BATCH_ROWS):
            end = position + batch.num_rows
            split = pa.array(np.where(is_eval[position:end], "eval", "train"), pa.string())
            names = pa.array([f"{group:016x}" for group in groups[position:end].tolist()], pa.string())
            writer.write_batch(pa.record_batch([*batch.columns, split, names], schema=PROMPTS_SCHEMA))
            position = end


def _group_column(schema: pa.Schema, group_by: str) -> str | None:
    """The raw table's column that keeps rows together beside the statement, or None.

    Raises:
        FimError: it has no such column.
    """
    if group_by == "statement":
        return None
    names = {field.name.casefold(): field.name for field in reversed(list(schema)) if pa.types.is_string(field.type)}
    if group_by.casefold() not in names:
        extra = [name for name in schema.names if name not in RAW_SCHEMA.names]
        raise FimError(
            f"data.group_by: the export has no column {group_by}. Use `statement`"
            + (f" or one of {', '.join(extra)}." if extra else "; it has no other columns.")
        )
    return names[group_by.casefold()]


def _rejected_schema(raw: pa.Schema) -> pa.Schema:
    added = [pa.field("reason", pa.string()), pa.field("detail", pa.string())]
    return pa.schema([raw.field(0), *added, *[raw.field(number) for number in range(1, len(raw))]])
