"""Completions that users rejected and the model still writes: wrong answers for its completion filter.

A verdict is on the text that was shown. Where the model now writes another text, nobody has judged that one, and its
log-probability says nothing of the rejected text; such a row is left out. To score the rejected text under the model instead
(teacher forcing) would use every row, but the filter would learn from texts that the model does not write: the less they agree,
the less probable they are, whatever users think of the text in their place (see benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from fim_core.config import DataConfig
from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import sample
from fim_core.evaluation.predictor_names import MODEL
from fim_core.evaluation.predictors import Predictor, complete
from fim_core.evaluation.scores import judge_predictions
from fim_core.folders.prompts import PromptsFolder
from fim_core.inference.prompting import load_prompt_builder
from fim_core.inference.row_progress import RowProgress
from fim_core.metrics.rows import CompletedRow, EvalRow, Prediction
from fim_core.prompts import PromptBuilder
from fim_core.prompts.split import group_column, group_name
from fim_core.records.feedback import ACCEPTED
from fim_core.records.schema import Completion, Reason, Rejection
from fim_core.records.shapes import shape_of


def rejected_completions(
    predictor: Predictor, prompts: Path, data: DataConfig, options: EvaluationConfig, progress: RowProgress
) -> list[CompletedRow]:
    """The completions of a model that are those that users rejected, in groups that are not trained on.

    Only rows with the state of an editor take part: no finished prompts and conversations. Of more than `max_rows` of them,
    a sample is completed.

    Args:
        predictor: the model.
        prompts: folder of fim_prompts, made with `data`.
    """
    rows = _rows(PromptsFolder(prompts), data, options.max_rows)
    builder, encoder = load_prompt_builder(predictor.folder, predictor.tokenizer), predictor.encoder
    texts = [_prompt_text(builder, state) for _, state in rows]
    untrained = _not_trained_on(PromptsFolder(prompts), "prompt", set(texts))
    read = [
        (row, tokens)
        for (row, state), text in zip(rows, texts, strict=True)
        if text in untrained and 0 < len(tokens := _tokens(builder, state)) <= data.max_length
    ]
    generations = complete(
        predictor, [tokens for _, tokens in read], options, progress.start("rejected completions", len(read))
    )
    found: list[tuple[EvalRow, Prediction]] = []
    for (row, _), generation in zip(read, generations, strict=True):
        text, rejected = encoder.decode(generation.token_ids), encoder.decode(encoder.join([row.completion]))
        if text.strip() == rejected.strip() != "":
            found.append((row, Prediction(text, generation.stopped, gold=rejected, logprobs=generation.logprobs)))
    predictions = [prediction for _, prediction in found]
    judged = judge_predictions(
        [row for row, _ in found], {MODEL: predictions}, dialect=options.dialect, stages=["statement"]
    )
    return [replace(row, rejected=True) for row in judged.completed[MODEL] if row is not None]


def accepted_rows(raw: Path, row_ids: Collection[str]) -> set[str]:
    """The rows among `row_ids` whose completion users accepted, by a raw table with feedback."""
    table = pq.read_table(raw, columns=["row_id"], filters=[("row_id", "in", row_ids), ("action", "==", ACCEPTED)])
    return set(table["row_id"].to_pylist())


def _rows(folder: PromptsFolder, data: DataConfig, most: int | None) -> list[tuple[EvalRow, Completion]]:
    """Rejected rows in groups that are not trained on, and the states of the editor."""
    column = group_column(pq.read_schema(folder.rejected), data.group_by)
    of_users = [("reason", "==", str(Reason.REJECTED_BY_USER))]
    names = pq.read_table(folder.rejected, columns=list(filter(None, ["row_id", column])), filters=of_users)
    row_ids = names["row_id"].to_pylist()
    if column is not None:
        groups = [group_name("", value) if value else "" for value in names[column].to_pylist()]
        untrained = {"", *_not_trained_on(folder, "group", set(groups))}
        row_ids = [row_id for row_id, group in zip(row_ids, groups, strict=True) if group in untrained]
    row_ids = [row_ids[place] for place in sample(row_ids, most)]
    if not row_ids:  # pyarrow refuses to look for a row in an empty list
        return []
    columns = list(dict.fromkeys(filter(None, ["row_id", "type", "source_type", "input", "output", column])))
    table = pq.read_table(folder.rejected, columns=columns, filters=[("row_id", "in", row_ids)])
    made = [_row(row, column, data) for row in table.to_pylist()]
    rows = [row for row in made if row is not None]
    untrained = _not_trained_on(folder, "group", {row.group for row, _ in rows})
    return [row for row in rows if row[0].group in untrained]


def _row(row: Mapping[str, Any], column: str | None, data: DataConfig) -> tuple[EvalRow, Completion] | None:
    state = shape_of(row["source_type"]).parse(row["input"], data.placeholder)
    if not isinstance(state, Completion):
        return None
    output = row["output"]
    group = group_name(state.prefix + output + state.suffix, row[column] if column else None)
    return EvalRow(row["row_id"], row["type"], group, state.prefix, state.suffix, output, state.ddl_context), state


def _prompt_text(builder: PromptBuilder, state: Completion) -> str:
    """The prompt as the prompts table has it; empty if training rejects it, so that no training row has it."""
    prompt = builder.build(state)
    return "" if isinstance(prompt, Rejection) else prompt.text


def _tokens(builder: PromptBuilder, state: Completion) -> list[int]:
    """The prompt as in serving; empty if a server would refuse it."""
    try:
        return builder.encode(state)
    except FimError:
        return []


def _not_trained_on(folder: PromptsFolder, column: str, values: Collection[str]) -> set[str]:
    """Those of `values` that no training row has in a column of the prompts table."""
    query = f"""
        SELECT unnest($values) EXCEPT SELECT "{column}" FROM read_parquet($file) WHERE split = 'train'
    """
    with duckdb.connect(":memory:") as connection:
        return {
            value
            for (value,) in connection.execute(query, {"values": list(values), "file": str(folder.rows)}).fetchall()
        }
