"""Raw rows become the prompts table: every row is kept, or rejected with a reason."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from fim_core.batches import GroupWriter, by_export
from fim_core.config import DataConfig, ModelConfig
from fim_core.errors import FimError
from fim_core.parallel import ordered_map
from fim_core.parts import Parts
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.finished import FoundForm, find_form
from fim_core.prompts.rows import RowBuilder
from fim_core.prompts.split import connected_groups, held_out_groups, statement_hash, text_hash
from fim_core.recipe import RECIPE, Recipe, recipe_of, write_recipe
from fim_core.records.schema import RAW_SCHEMA, Rejection

logger = logging.getLogger(__name__)

PROMPTS = "prompts.parquet"
REJECTED = "rejected.parquet"
TOKENIZER = "tokenizer"

_BATCH_ROWS = 1024
_LIGHT = pa.ipc.IpcWriteOptions(compression="lz4")

_RENDERED_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("prefix", pa.string()),
        pa.field("suffix", pa.string()),
        pa.field("source_type", pa.string(), nullable=False),
        pa.field("control_spans", pa.list_(pa.int32())),
        pa.field("trained_spans", pa.list_(pa.int32())),
    ]
)
_PART_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string()),
        pa.field("response", pa.string()),
        pa.field("prefix", pa.string()),
        pa.field("suffix", pa.string()),
        pa.field("control_spans", pa.list_(pa.int32())),
        pa.field("trained_spans", pa.list_(pa.int32())),
        pa.field("statement", pa.uint64()),
        pa.field("repaired", pa.bool_()),
        pa.field("masked", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""What rendering makes of each row: all but the last two are null in rejected rows, the last two in kept ones."""

_LOOKED_AT = 2000
"""Finished prompts that are looked at where no recipe says how they were built."""

_RENDERED_FROM = ("source_type", "input", "output")

PROMPTS_SCHEMA = _RENDERED_SCHEMA.append(pa.field("split", pa.string(), nullable=False)).append(
    pa.field("group", pa.string(), nullable=False)
)
"""Columns of the prompts table.

    row_id, type, source_type     as in the raw table
    prompt, response              what the model reads, and what it learns to write; control tokens written out
    prefix, suffix                text around the cursor; empty in conversations, null in finished prompts whose FIM
                                  tokens do not tell
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
        rendered: rows that had to be parsed and rendered; what became of the others was known from an earlier run.
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
    rendered: int
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
    parts: Parts | None = None,
) -> PromptCounts:
    """Render every row of the raw table, by batch, and split the kept ones into train and eval.

    Writes into the folder `output`: `prompts.parquet` (PROMPTS_SCHEMA), `rejected.parquet` (row_id, reason, detail, the
    raw columns), `tokenizer/` with the FIM tokens, and the recipe of the prompts (see `read_recipe`). Tokens that
    `tokenizer` lacks are added to it.

    Args:
        parts: where what became of rows is kept; must be of the same options, template and code.

    Raises:
        FimError: a mistake in the template or the options.
    """
    source = pq.ParquetFile(raw)
    recipe, notice, chat_rows = recipe_of(source.schema_arrow, raw.name), "", _has_chat_rows(raw)
    if recipe is None:
        found = _find_form(source, tokenizer, model, data)
        model, data, recipe, notice = found.model, found.data, found.recipe, found.notice
        chat_rows |= found.is_chat
    builder = PromptBuilder(tokenizer, model, data, recipe, chat_rows=chat_rows)
    notice = " ".join(filter(None, [builder.notice, notice]))
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output / TOKENIZER)
    write_recipe(output, builder.recipe)
    if parts is not None:
        parts = parts.narrowed(*sorted((output / TOKENIZER).iterdir()), output / RECIPE)
    rendered = output / ".rendered.arrow"
    column = _group_column(source.schema_arrow, data.group_by)
    totals = _Totals()
    with (
        pa.ipc.new_file(str(rendered), _RENDERED_SCHEMA, options=_LIGHT) as kept,
        GroupWriter(output / REJECTED, _rejected_schema(source.schema_arrow)) as rejected,
    ):
        batches = by_export(source.iter_batches(_BATCH_ROWS), _BATCH_ROWS)
        renderer = _Renderer(builder, column, parts)
        make, arguments = (
            (lambda: renderer, ())
            if data.num_proc == 1
            else (_make_renderer, (tokenizer, model, data, recipe, chat_rows, column, parts))
        )
        for result in ordered_map(make, arguments, batches, num_proc=data.num_proc):
            kept.write_batch(result.kept)
            rejected.write(result.rejected)
            totals.add(result)
    groups, is_eval = totals.split(data, seed)
    _write_with_split(rendered, output / PROMPTS, groups, is_eval)
    rendered.unlink()
    return PromptCounts(
        rows_in=source.metadata.num_rows,
        rows_kept=len(groups),
        repaired=totals.repaired,
        rejected=dict(sorted(totals.reasons.items())),
        rendered=totals.rendered,
        train=int(np.count_nonzero(~is_eval)),
        eval=int(np.count_nonzero(is_eval)),
        groups=len(np.unique(groups)),
        neutralised=totals.neutralised,
        masked=totals.masked,
        notice=notice,
        family=builder.tokens.family,
        added=list(builder.tokens.added),
        vocab_size=len(tokenizer),
    )


@dataclass(frozen=True)
class _Rendered:
    """One batch after rendering; hashes are uint64 and belong to the kept rows."""

    kept: pa.RecordBatch
    rejected: pa.RecordBatch
    statements: np.ndarray
    column: np.ndarray
    held_out: np.ndarray
    repaired: int
    masked: int
    rendered: int


class _Renderer:
    """Renders batches; each process has its own."""

    def __init__(self, builder: PromptBuilder, column: str | None, parts: Parts | None) -> None:
        self._rows = RowBuilder(builder)
        self._column = column
        self._parts = parts

    def __call__(self, batch: pa.RecordBatch) -> _Rendered:
        decisive = batch.select(_RENDERED_FROM)
        part, is_new = (
            self._parts.find_or_make(decisive, self._render) if self._parts else (self._render(decisive), True)
        )
        is_kept = part.column("reason").is_null()
        rows, source = part.filter(is_kept), batch.filter(is_kept)
        kept = {name: (rows if name in rows.schema.names else source).column(name) for name in _RENDERED_SCHEMA.names}
        is_rejected = pc.invert(is_kept)
        reasons, original = part.filter(is_rejected), batch.filter(is_rejected)
        return _Rendered(
            kept=pa.record_batch(list(kept.values()), schema=_RENDERED_SCHEMA),
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
        """What becomes of each row, as _PART_SCHEMA."""
        texts = [batch.column(name).to_pylist() for name in _RENDERED_FROM]
        records = [_record(self._rows.build(*row)) for row in zip(*texts, strict=True)]
        columns = zip(*records, strict=True)
        return pa.record_batch(
            [pa.array(values, field.type) for values, field in zip(columns, _PART_SCHEMA, strict=True)], _PART_SCHEMA
        )

    def _column_hashes(self, kept: pa.RecordBatch) -> np.ndarray:
        if self._column is None:
            return np.zeros(len(kept), np.uint64)
        values = kept.column(self._column).to_pylist()
        return np.array([text_hash(value) if value else 0 for value in values], np.uint64)


def _record(row: PromptRow | Rejection) -> tuple[Any, ...]:
    """The values of _PART_SCHEMA."""
    if isinstance(row, Rejection):
        return (*[None] * (len(_PART_SCHEMA) - 2), str(row.reason), row.detail)
    return (
        row.prompt,
        row.response,
        row.prefix,
        row.suffix,
        row.control_spans,
        row.trained_spans,
        statement_hash(row.statement),
        row.repaired,
        row.masked,
        None,
        None,
    )


def _make_renderer(
    tokenizer: PreTrainedTokenizerFast,
    model: ModelConfig,
    data: DataConfig,
    recipe: Recipe | None,
    chat_rows: bool,
    column: str | None,
    parts: Parts | None,
) -> _Renderer:
    return _Renderer(PromptBuilder(tokenizer, model, data, recipe, chat_rows=chat_rows), column, parts)


def _find_form(
    raw: pq.ParquetFile, tokenizer: PreTrainedTokenizerFast, model: ModelConfig, data: DataConfig
) -> FoundForm:
    """What finished prompts without a recipe tell; without finished prompts, the options as they are."""
    prompts: list[str] = []
    has_states = False
    for group in range(raw.num_row_groups):
        types = raw.read_row_group(group, columns=["source_type"]).column("source_type")
        kinds = set(types.unique().to_pylist())
        has_states |= "fim_completions" in kinds
        if "prompt_response" in kinds and len(prompts) < _LOOKED_AT:
            inputs = raw.read_row_group(group, columns=["input"]).column("input")
            prompts += inputs.filter(pc.equal(types, "prompt_response")).to_pylist()[: _LOOKED_AT - len(prompts)]
    if not prompts:
        return FoundForm(model, data, None, "", is_chat=False)
    found = find_form(prompts, tokenizer, model, data, has_template=has_states or "template" in data.model_fields_set)
    logger.warning("%s", found.notice)
    return found


@dataclass
class _Totals:
    """What all batches add up to: counts, and some 17 bytes a kept row for the split."""

    statements: list[np.ndarray] = field(default_factory=list)
    column: list[np.ndarray] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    masked: int = 0
    rendered: int = 0
    neutralised: int = 0

    def add(self, result: _Rendered) -> None:
        self.statements.append(result.statements)
        self.column.append(result.column)
        self.held_out.append(result.held_out)
        self.reasons.update(result.rejected.column("reason").to_pylist())
        self.repaired += result.repaired
        self.masked += result.masked
        self.rendered += result.rendered
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
    with GroupWriter(output, PROMPTS_SCHEMA, rows=_BATCH_ROWS) as writer, pa.ipc.open_file(str(rendered)) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            end = position + batch.num_rows
            split = pa.array(np.where(is_eval[position:end], "eval", "train"), pa.string())
            names = pa.array([f"{group:016x}" for group in groups[position:end].tolist()], pa.string())
            writer.write(pa.record_batch([*batch.columns, split, names], schema=PROMPTS_SCHEMA))
            position = end


def _has_chat_rows(raw: Path) -> bool:
    """Whether some rows get chat markup whatever the template: conversations."""
    types = pq.read_table(raw, columns=["source_type"], read_dictionary=["source_type"]).column("source_type")
    return "messages" in types.unique().to_pylist()


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
