"""Whether a training set has already seen the items of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from fim_core.errors import FimError
from fim_core.folders.prompts import PromptsFolder
from fim_core.metrics.completed_sql import split_statements, tokenize
from fim_core.metrics.rows import EvalRow
from fim_core.metrics.sql_tokens import comparable
from fim_core.store import require_whole_copy

NGRAM = 13
LARGEST_SHARE = 0.5

Words = tuple[str, ...]


@dataclass(frozen=True)
class Contamination:
    """How much of one item a training set holds.

    Attributes:
        row_id: the item.
        same_statement: a training row holds the same statement, white space and case folded.
        seen: share of the item's runs of 13 SQL tokens that stand in the training set.
    """

    row_id: str
    same_statement: bool
    seen: float

    @property
    def contaminated(self) -> bool:
        """The statement itself was seen, or at least half of it in long runs."""
        return self.same_statement or self.seen >= LARGEST_SHARE


def find_contamination(items: Sequence[EvalRow], training: Iterable[str], dialect: str) -> list[Contamination]:
    """Compare the items' statements with SQL documents of a training set.

    Equality of statements is that of their SQL tokens. Runs of 13 tokens are what Brown et al., "Language Models are
    Few-Shot Learners" (2020), appendix C, look for. The training set is read once; only the items are kept in memory.
    """
    statements = {item.row_id: _words(item.prefix + item.completion + item.suffix, dialect) for item in items}
    wanted_statements = set(statements.values())
    wanted_runs = {run for words in statements.values() for run in _runs(words)}
    seen_statements: set[Words] = set()
    seen_runs: set[Words] = set()
    for document in training:
        for statement in split_statements(document, dialect):
            words = _words(statement, dialect)
            if words in wanted_statements:
                seen_statements.add(words)
            seen_runs.update(run for run in _runs(words) if run in wanted_runs)
    return [
        Contamination(row_id, words in seen_statements, _share(words, seen_runs))
        for row_id, words in statements.items()
    ]


def training_documents(prompts: Path) -> Iterator[str]:
    """The SQL of every training row of a fim_prompts folder: prefix + completion + suffix.

    Raises:
        FimError: the folder holds no prompts.
    """
    file = PromptsFolder(prompts).rows
    if not file.is_file():
        raise FimError(f"There are no prompts in {prompts}. Give the folder of the fim_prompts asset.")
    require_whole_copy(prompts)
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(columns=["prefix", "suffix", "response", "split"]):
            for row in batch.to_pylist():
                if row["split"] == "train":
                    yield (row["prefix"] or "") + (row["response"] or "") + (row["suffix"] or "")


def _words(sql: str, dialect: str) -> Words:
    tokens = tokenize(sql, dialect)
    words = comparable(sql, tokens)[0] if tokens is not None else sql.upper().split()
    return tuple(words[:-1] if words[-1:] == [";"] else words)


def _runs(words: Words) -> Iterator[Words]:
    return (words[i : i + NGRAM] for i in range(len(words) - NGRAM + 1))


def _share(words: Words, seen: set[Words]) -> float:
    runs = list(_runs(words))
    return sum(run in seen for run in runs) / len(runs) if runs else 0.0
