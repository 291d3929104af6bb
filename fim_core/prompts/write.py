"""Writing the prompts table: every raw row is kept, or rejected with a reason."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from fim_core.batch_cache import BatchCache
from fim_core.batches import GroupWriter, by_export
from fim_core.config import DataConfig, ModelConfig
from fim_core.folders.prompts import PromptsFolder
from fim_core.parallel import ordered_map
from fim_core.prompt_format.recipe import RECIPE, recipe_of, write_recipe
from fim_core.prompts.builder import PromptBuilder
from fim_core.prompts.feedback_metrics import FeedbackMetrics, measure_feedback
from fim_core.prompts.finished import DetectedForm, detect_form
from fim_core.prompts.render import RENDERED_SCHEMA, Rendered, Renderer, make_renderer
from fim_core.prompts.split import Split, explain_empty_eval, group_column, split_rows
from fim_core.records.schema import LEFT_OUT, REJECTION_COLUMNS, Completion, Conversation, FinishedPrompt
from fim_core.records.shapes import names_of

logger = logging.getLogger(__name__)

_BATCH_ROWS = 1024
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")

_FORM_SAMPLE = 2000
"""Finished prompts that are examined to detect their form, where no recipe describes it."""

PROMPTS_SCHEMA = RENDERED_SCHEMA.append(pa.field("split", pa.string(), nullable=False)).append(
    pa.field("group", pa.string(), nullable=False)
)
"""Columns of the prompts table.

    row_id, type, source_type     as in the raw table
    is_completion                 prefix and suffix are the text around a cursor: false in conversations, and in finished
                                  prompts without known FIM tokens
    is_finished                   the prompt was used as it is, and may contain control tokens anywhere
    prompt, response              what the model reads, and what it learns to write, control tokens written out
    prefix, suffix                text around the cursor; empty in conversations, null in finished prompts without known
                                  FIM tokens
    control_spans                 [start, end, …] in characters of the control tokens of `prompt`, in rows whose user
                                  text contains names of control tokens (control_tokens: neutralise); null elsewhere
    trained_spans                 [start, end, …] of earlier assistant turns in `prompt`, which are trained on as well
    split                         train, eval, or left_out: a row of a held-out group whose statement is trained on
    group                         rows of one group (hexadecimal) are never both trained on and held out
"""


@dataclass(frozen=True)
class PromptCounts:
    """Counts: rows_in = rows_kept + the sum of `rejected`; rows_kept = train + eval + left_out.

    Attributes:
        repaired: kept rows whose INPUT was damaged JSON.
        rejected: rows by reason.
        rendered: rows that were parsed and rendered; the others came from the cache.
        asked_share: share of the rows to hold out; None with eval_sources.
        train, eval, left_out: kept rows of each split.
        shared: kept rows whose statement occurs in several groups and is therefore not evaluated (see `split.py`).
        groups: groups of all kept rows; held_out_groups: of the rows that are held out.
        largest_group: kept rows of the largest group.
        nothing_held_out: why no row is held out although some should be; otherwise empty.
        neutralised: kept rows with control tokens in user text, encoded as ordinary text.
        masked: number of masked secrets.
        notice: describes the prompts' markup.
        family: the FIM control tokens' family; `added`: tokens that the tokenizer lacked.
        vocab_size: entries of the tokenizer, `added` included.
        feedback: what users did with the completions of all rows; None without feedback.
    """

    rows_in: int
    rows_kept: int
    repaired: int
    rejected: dict[str, int]
    rendered: int
    asked_share: float | None
    train: int
    eval: int
    left_out: int
    shared: int
    groups: int
    held_out_groups: int
    largest_group: int
    nothing_held_out: str
    neutralised: int
    masked: int
    notice: str
    family: str
    added: list[str]
    vocab_size: int
    feedback: FeedbackMetrics | None = None


def write_fim_prompts(
    raw: Path,
    output: Path,
    *,
    data: DataConfig,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    cache: BatchCache | None = None,
) -> PromptCounts:
    """Render every row of the raw table, in batches, and split the kept ones into train and eval.

    Writes into the folder `output`: `prompts.parquet` (PROMPTS_SCHEMA), `rejected.parquet` (row_id, reason, detail, the
    raw columns), `tokenizer/` with the FIM tokens, and the recipe of the prompts (see `read_recipe`). Tokens that
    `tokenizer` lacks are added to it.

    Args:
        cache: of rendered batches; keyed by options and code. The tokenizer and the recipe are added to its keys.

    Raises:
        FimError: the template or the options are invalid.
    """
    source = pq.ParquetFile(raw)
    recipe, notice, chat_rows = recipe_of(source.schema_arrow, raw.name), "", _has_chat_rows(raw)
    if recipe is None:
        found = _detect_form(source, tokenizer, model, data)
        model, data, recipe, notice = found.model, found.data, found.recipe, found.notice
        chat_rows |= found.is_chat
    builder = PromptBuilder(tokenizer, model, data, recipe, chat_rows=chat_rows)
    notice = " ".join(filter(None, [builder.notice, notice]))
    output.mkdir(parents=True, exist_ok=True)
    files = PromptsFolder(output)
    tokenizer.save_pretrained(files.tokenizer)
    write_recipe(output, builder.recipe)
    if cache is not None:
        cache = cache.keyed_also_by(*sorted(files.tokenizer.iterdir()), output / RECIPE)
    rendered = output / ".rendered.arrow"
    column = group_column(source.schema_arrow, data.group_by)
    totals = _Totals()
    with (
        pa.ipc.new_file(str(rendered), RENDERED_SCHEMA, options=_LZ4) as kept,
        GroupWriter(files.rejected, _rejected_schema(source.schema_arrow)) as rejected,
    ):
        batches = by_export(source.iter_batches(_BATCH_ROWS), _BATCH_ROWS)
        renderer = Renderer(builder, column, cache)
        make, arguments = (
            (lambda: renderer, ())
            if data.num_proc == 1
            else (make_renderer, (tokenizer, model, data, recipe, chat_rows, column, cache))
        )
        for result in ordered_map(make, arguments, batches, num_proc=data.num_proc):
            kept.write_batch(result.kept)
            rejected.write(result.rejected)
            totals.add(result)
    split = totals.split(data, seed)
    _write_with_split(rendered, files.rows, split)
    rendered.unlink()
    rows = np.unique(split.groups, return_counts=True)[1]
    return PromptCounts(
        rows_in=source.metadata.num_rows,
        rows_kept=len(split.groups),
        repaired=totals.repaired,
        rejected=dict(sorted(totals.reasons.items())),
        rendered=totals.rendered,
        asked_share=None if data.eval_sources else data.eval_fraction,
        train=int(np.count_nonzero(~split.is_eval & ~split.is_left_out)),
        eval=int(np.count_nonzero(split.is_eval)),
        left_out=int(np.count_nonzero(split.is_left_out)),
        shared=int(np.count_nonzero(split.is_shared)),
        groups=len(rows),
        held_out_groups=len(np.unique(split.groups[split.is_eval])),
        largest_group=int(rows.max(initial=0)),
        nothing_held_out=explain_empty_eval(split, data),
        neutralised=totals.neutralised,
        masked=totals.masked,
        notice=notice,
        family=builder.tokens.family,
        added=list(builder.tokens.added),
        vocab_size=len(tokenizer),
        feedback=measure_feedback(raw, null_marks=data.null_marks) if data.has_feedback else None,
    )


def _detect_form(
    raw: pq.ParquetFile, tokenizer: PreTrainedTokenizerFast, model: ModelConfig, data: DataConfig
) -> DetectedForm:
    """The form of finished prompts without a recipe; without finished prompts, the options unchanged."""
    prompts: list[str] = []
    has_completions, finished = False, names_of(FinishedPrompt)
    for group in range(raw.num_row_groups):
        types = raw.read_row_group(group, columns=["source_type"]).column("source_type")
        kinds = set(types.unique().to_pylist())
        has_completions |= bool(kinds & names_of(Completion))
        if kinds & finished and len(prompts) < _FORM_SAMPLE:
            inputs = raw.read_row_group(group, columns=["input"]).column("input")
            is_finished = pc.is_in(types, pa.array(sorted(finished)))
            prompts += inputs.filter(is_finished).to_pylist()[: _FORM_SAMPLE - len(prompts)]
    if not prompts:
        return DetectedForm(model, data, None, "", is_chat=False)
    found = detect_form(
        prompts, tokenizer, model, data, has_template=has_completions or "template" in data.model_fields_set
    )
    logger.warning("%s", found.notice)
    return found


@dataclass
class _Totals:
    """Totals over all batches: counts, and some 17 bytes a kept row for the split."""

    statements: list[np.ndarray] = field(default_factory=list)
    column: list[np.ndarray] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    masked: int = 0
    rendered: int = 0
    neutralised: int = 0

    def add(self, result: Rendered) -> None:
        self.statements.append(result.statements)
        self.column.append(result.column)
        self.held_out.append(result.held_out)
        self.reasons.update(result.rejected.column("reason").to_pylist())
        self.repaired += result.repaired
        self.masked += result.masked
        self.rendered += result.rendered
        spans = result.kept.column("control_spans")
        self.neutralised += len(spans) - spans.null_count

    def split(self, data: DataConfig, seed: int) -> Split:
        """Split the kept rows."""
        return split_rows(
            np.concatenate([np.empty(0, np.uint64), *self.statements]),
            np.concatenate([np.empty(0, np.uint64), *self.column]),
            np.concatenate([np.empty(0, np.bool_), *self.held_out]),
            fraction=data.eval_fraction,
            has_eval_sources=bool(data.eval_sources),
            seed=seed,
        )


def _write_with_split(rendered: Path, output: Path, split: Split) -> None:
    """Copy the rendered rows in batches, adding `split` and `group`."""
    position = 0
    with GroupWriter(output, PROMPTS_SCHEMA, rows=_BATCH_ROWS) as writer, pa.ipc.open_file(str(rendered)) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            end = position + batch.num_rows
            names = np.where(split.is_eval[position:end], "eval", "train").astype(object)
            names[split.is_left_out[position:end]] = LEFT_OUT
            groups = [f"{group:016x}" for group in split.groups[position:end].tolist()]
            columns = [pa.array(names, pa.string()), pa.array(groups, pa.string())]
            writer.write(pa.record_batch([*batch.columns, *columns], schema=PROMPTS_SCHEMA))
            position = end


def _has_chat_rows(raw: Path) -> bool:
    """Whether there are conversations, which have chat markup whatever the template."""
    types = pq.read_table(raw, columns=["source_type"], read_dictionary=["source_type"]).column("source_type")
    return not names_of(Conversation).isdisjoint(types.unique().to_pylist())


def _rejected_schema(raw: pa.Schema) -> pa.Schema:
    added = [pa.field(name, pa.string()) for name in REJECTION_COLUMNS]
    return pa.schema([raw.field(0), *added, *[raw.field(number) for number in range(1, len(raw))]])
