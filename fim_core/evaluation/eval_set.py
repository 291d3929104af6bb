"""The evaluation set: held-out rows with the tokens to complete them and the texts to judge completions."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.raw import RawFolder
from fim_core.folders.tokenized import TokenizedFolder
from fim_core.metrics.rows import EvalRow
from fim_core.prompt_format.recipe import Recipe, read_recipe
from fim_core.prompts.finished import context_of
from fim_core.records.schema import PLACEHOLDER, Completion, FinishedPrompt
from fim_core.records.shapes import shape_of
from fim_core.store import Store

TokenIds = list[int]

# A CREATE statement that begins a line, up to its semicolon or an empty line.
_DEFINITION = re.compile(r"^[ \t]*CREATE\b.*?(?=;|\n[ \t]*\n|\Z)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


class RawRow(NamedTuple):
    """A row of raw_completions, for models with another prompt format."""

    source_type: str
    input: str
    output: str


@dataclass(frozen=True)
class EvalSet:
    """Held-out rows and their tokens.

    Attributes:
        rows: texts of the rows.
        prompts: token ids before each response, as in training.
        targets: token ids of each gold completion and its end token.
        raw: each row before it was made into a prompt.
        held_out: number of all held-out rows that were tokenized; too long ones were not.
    """

    rows: list[EvalRow]
    prompts: list[TokenIds]
    targets: list[TokenIds]
    raw: list[RawRow]
    held_out: int


def load_eval_set(
    raw: Path, prompts: Path, dataset: Path, *, max_rows: int | None, placeholder: str = PLACEHOLDER
) -> EvalSet:
    """Read the held-out rows, or a sample of them.

    The sample depends only on the row_ids, so that all models are evaluated on the same rows.

    Args:
        raw: the raw_completions file.
        prompts: folder of fim_prompts.
        dataset: folder of tokenized_dataset.
        max_rows: size of the sample; None for all rows.
        placeholder: marks the cursor in an INPUT.

    Raises:
        FimError: no rows are held out.
    """
    tokens = load_from_disk(str(TokenizedFolder(dataset).split("eval")))
    if (held_out := len(tokens)) == 0:
        raise FimError(
            "There are no held-out rows to evaluate on. Set data.eval_fraction above 0, or data.eval_sources."
        )
    places = sample(tokens["row_id"][:], max_rows)
    tokens = tokens.select(places)
    row_ids = tokens["row_id"][:]
    texts = _columns_by_row(PromptsFolder(prompts).rows, row_ids, ["type", "group", "prefix", "suffix", "response"])
    originals = _columns_by_row(raw, row_ids, list(RawRow._fields))
    raw_rows = [RawRow(**originals[row_id]) for row_id in row_ids]
    recipe = read_recipe(prompts)
    rows = []
    for row_id, original in zip(row_ids, raw_rows, strict=True):
        text = texts[row_id]
        rows.append(
            EvalRow(
                row_id=row_id,
                type=text["type"],
                group=text["group"],
                prefix=text["prefix"] or "",
                suffix=text["suffix"] or "",
                completion=text["response"],
                ddl=_ddl(original, recipe, placeholder),
                is_placed=text["prefix"] is not None,
            )
        )
    return EvalSet(rows, *_split_tokens(tokens), raw_rows, held_out=held_out)


def held_out_states(store: Store, experiment: Experiment, most: int) -> list[Completion]:
    """The editor's states of held-out rows, without those of finished prompts.

    Args:
        store: has the current data of the experiment.
        experiment: provides the placeholder.
        most: maximum number of rows.

    Raises:
        FimError: the experiment has no tokenized_dataset yet, or no such rows.
    """
    raw, prompts, dataset = (
        store.current(asset, experiment.name).path for asset in ("raw_completions", "fim_prompts", "tokenized_dataset")
    )
    placeholder = experiment.data.placeholder
    evaluated = load_eval_set(RawFolder(raw).rows, prompts, dataset, max_rows=most, placeholder=placeholder)
    return editor_states(evaluated, placeholder)


def editor_states(evaluated: EvalSet, placeholder: str, most: int | None = None) -> list[Completion]:
    """The editor's states of the rows that have one, or of a sample of them: finished prompts and conversations have none.

    Raises:
        FimError: there are none.
    """
    parsed = [shape_of(row.source_type).parse(row.input, placeholder) for row in evaluated.raw]
    states = {
        row.row_id: state for row, state in zip(evaluated.rows, parsed, strict=True) if isinstance(state, Completion)
    }
    if not states:
        raise FimError("No held-out row has the state of an editor (prefix and suffix); all are finished prompts.")
    found = list(states.values())
    return [found[place] for place in sample(list(states), most)]


def sample(row_ids: Sequence[str], size: int | None) -> list[int]:
    """Sorted positions of a sample: the rows with the smallest hashes of row_ids."""
    places = sorted(range(len(row_ids)), key=lambda i: hashlib.sha256(row_ids[i].encode()).digest())
    return sorted(places[:size])


@dataclass(frozen=True)
class MostFrequent:
    """The most frequent completion of all rows, and of the rows of each TYPE."""

    overall: str
    by_type: Mapping[str, str]

    @classmethod
    def of(cls, counted: Iterable[tuple[str, str, int]]) -> MostFrequent:
        """Find them in (TYPE, completion, count). Ties go to the first in text order; without rows, it is empty."""
        overall: Counter[str] = Counter()
        by_type: dict[str, Counter[str]] = {}
        for kind, completion, count in counted:
            overall[completion] += count
            by_type.setdefault(kind, Counter())[completion] += count
        return cls(_most_frequent(overall), {kind: _most_frequent(counts) for kind, counts in by_type.items()})


def most_frequent_in_training(prompts: Path) -> MostFrequent:
    """Find the most frequent completions of the training rows of a fim_prompts folder."""
    query = """
        SELECT coalesce(type, ''), response, count(*) FROM read_parquet($file) WHERE split = 'train' GROUP BY ALL
    """
    with duckdb.connect(":memory:") as connection:
        return MostFrequent.of(connection.execute(query, {"file": str(PromptsFolder(prompts).rows)}).fetchall())


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda text: (-counts[text], text), default="")


def _columns_by_row(file: Path, row_ids: list[str], columns: list[str]) -> dict[str, dict[str, Any]]:
    table = pq.read_table(file, columns=["row_id", *columns], filters=[("row_id", "in", row_ids)])
    return {row.pop("row_id"): row for row in table.to_pylist()}


def _ddl(row: RawRow, recipe: Recipe, placeholder: str) -> str:
    """The table definitions in a row's context; of a finished prompt, the CREATE statements before its FIM block."""
    match shape_of(row.source_type).parse(row.input, placeholder):
        case Completion(ddl_context=ddl):
            return ddl
        case FinishedPrompt(text=prompt):
            return ";\n".join(found[0] for found in _DEFINITION.finditer(context_of(prompt, recipe)))
        case _:
            return ""


def _split_tokens(tokens: Dataset) -> tuple[list[TokenIds], list[TokenIds]]:
    lengths, ids = tokens["prompt_length"][:], tokens["input_ids"][:]
    return (
        [list(row[:length]) for row, length in zip(ids, lengths, strict=True)],
        [list(row[length:]) for row, length in zip(ids, lengths, strict=True)],
    )
