"""Contamination: benchmark items that occur in a training set."""

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
    """How much of one item occurs in a training set.

    Attributes:
        row_id: row_id of the item.
        same_statement: whether a training row contains the same statement, apart from white space and case.
        seen: share of the item's n-grams of 13 SQL tokens that occur in the training set.
    """

    row_id: str
    same_statement: bool
    seen: float

    @property
    def contaminated(self) -> bool:
        """Whether the statement itself, or at least half of its n-grams, occur in the training set."""
        return self.same_statement or self.seen >= LARGEST_SHARE


def find_contamination(items: Sequence[EvalRow], training: Iterable[str], dialect: str) -> list[Contamination]:
    """Compare the statements of items with the SQL documents of a training set.

    Statements are equal if their SQL tokens are. N-grams of 13 tokens follow Brown et al., "Language Models are Few-Shot
    Learners" (2020), appendix C. The training set is read once; only the items are held in memory.
    """
    statements = {item.row_id: _words(item.prefix + item.completion + item.suffix, dialect) for item in items}
    wanted_statements = set(statements.values())
    wanted_ngrams = {ngram for words in statements.values() for ngram in _ngrams(words)}
    seen_statements: set[Words] = set()
    seen_ngrams: set[Words] = set()
    for document in training:
        for statement in split_statements(document, dialect):
            words = _words(statement, dialect)
            if words in wanted_statements:
                seen_statements.add(words)
            seen_ngrams.update(ngram for ngram in _ngrams(words) if ngram in wanted_ngrams)
    return [
        Contamination(row_id, words in seen_statements, _share(words, seen_ngrams))
        for row_id, words in statements.items()
    ]


def training_documents(prompts: Path) -> Iterator[str]:
    """Yield the SQL of every training row of a fim_prompts folder: prefix + completion + suffix.

    Raises:
        FimError: the folder contains no prompts.
    """
    file = PromptsFolder(prompts).rows
    if not file.is_file():
        raise FimError(f"There are no prompts in {prompts}. Pass the folder of the fim_prompts asset.")
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


def _ngrams(words: Words) -> Iterator[Words]:
    return (words[i : i + NGRAM] for i in range(len(words) - NGRAM + 1))


def _share(words: Words, seen: set[Words]) -> float:
    ngrams = list(_ngrams(words))
    return sum(ngram in seen for ngram in ngrams) / len(ngrams) if ngrams else 0.0
