"""Completions generated from SQL files, for teams without a log of completions.

A file is split into statements, and a middle is cut out of each: at the boundaries of a syntax node, or at random
characters as in Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle". Every text is a
slice of the file: nothing is reformatted, and prefix + middle + suffix is the statement.
Earlier statements of the file are the context, as they would be in a worksheet.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random

import pyarrow as pa

from fim_core.config.data import SqlFileOptions
from fim_core.records.readers import Export, batches_of, digest_files
from fim_core.records.schema import PLACEHOLDER
from fim_core.records.sql_syntax import LONGEST_SPAN, Span, Statement, read_statements
from fim_core.records.text_file import cannot_read

COLUMNS = ("TYPE", "INPUT", "OUTPUT")
CONTEXT_CHARACTERS = 8000
"""Limit for each context field. The newest statements are kept."""

_STATEMENT_LINES = re.compile(r"(?<=;)\s*\n")


@dataclass(frozen=True, slots=True)
class _Middle:
    """Characters `start` to `end` of a statement, which the completion inserts. kind: sql_syntax, sql_random or sql_empty."""

    kind: str
    start: int
    end: int


def read_sql_file(path: Path, name: str, options: SqlFileOptions, seed: int) -> Export:
    """An SQL file as an export; the same file, options and seed give the same rows."""
    # Functions that can be pickled.
    return Export(
        name,
        COLUMNS,
        partial(digest_files, [path]),
        partial(_batches, path, name, options, seed),
        generated=True,
        whole=True,
    )


def _batches(
    path: Path, name: str, options: SqlFileOptions, seed: int, warn: Callable[[str], None]
) -> Iterator[pa.RecordBatch]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise cannot_read(path, error) from error
    return batches_of(COLUMNS, sql_rows(text, name, options, seed=f"{seed} {digest_files([path])}", warn=warn))


def sql_rows(
    text: str, name: str, options: SqlFileOptions, *, seed: str, warn: Callable[[str], None]
) -> Iterator[list[str]]:
    """TYPE, INPUT and OUTPUT of each completion made from the text of a file.

    Statements that contain the placeholder are left out, also as context. A file that cannot be tokenized is split after
    semicolons that end a line, and cut at random characters only. Both cause a warning.

    Raises:
        FimError: there is no such dialect.
    """
    statements = read_statements(text, options.dialect)
    if statements is None:
        warn(f"{name} cannot be tokenized as {options.dialect}: it is cut at random characters.")
        pieces = (piece.strip() for piece in _STATEMENT_LINES.split(text))
        statements = [Statement(piece, False, list) for piece in pieces if piece]
    usable = [each for each in statements if PLACEHOLDER.lower() not in each.text.lower()]
    if len(usable) < len(statements):
        warn(f"{name}: {len(statements) - len(usable)} statements contain {PLACEHOLDER} and are left out.")

    history: list[str] = []
    definitions: list[str] = []
    for number, statement in enumerate(usable):
        rng = Random(f"{seed} {number}")
        context = {
            "sql_history": _newest(history),
            "ddl_context": _newest(definitions),
            "last_few_executed": "",
            "file_content": "",
        }
        for middle in _middles(statement, options, rng):
            sql = statement.text[: middle.start] + PLACEHOLDER + statement.text[middle.end :]
            items = [{"type": "text", "text": part} for part in (json.dumps(context, ensure_ascii=False), sql)]
            yield [middle.kind, json.dumps(items, ensure_ascii=False), statement.text[middle.start : middle.end]]
        (definitions if statement.is_definition else history).append(statement.text)


def _middles(statement: Statement, options: SqlFileOptions, rng: Random) -> list[_Middle]:
    """Distinct middles of a statement: `cuts_per_statement` on average, fewer if it is short."""
    fraction, whole = math.modf(options.cuts_per_statement)
    spans = cache(statement.spans)
    middles = [_middle(statement.text, spans, options, rng) for _ in range(int(whole) + (rng.random() < fraction))]
    return list(dict.fromkeys(middles))


def _middle(text: str, spans: Callable[[], list[Span]], options: SqlFileOptions, rng: Random) -> _Middle:
    if rng.random() < options.empty_rate:
        position = rng.randint(0, len(text))
        return _Middle("sql_empty", position, position)
    if rng.random() < options.syntax_rate and spans():
        return _Middle("sql_syntax", *rng.choice(spans()))
    start = rng.randrange(len(text))
    return _Middle("sql_random", start, rng.randint(start + 1, min(len(text), start + LONGEST_SPAN)))


def _newest(texts: list[str]) -> str:
    """As many of the last texts as fit, joined by line breaks."""
    first = len(texts)
    left = CONTEXT_CHARACTERS
    while first > 0 and (left := left - len(texts[first - 1]) - 1) >= 0:
        first -= 1
    return "\n".join(texts[first:])
