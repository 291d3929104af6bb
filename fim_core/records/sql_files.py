"""Fill-in-the-middle rows from whole SQL files, for teams without a log of completions.

A file is split into statements, and each statement loses a middle: at the boundaries of a syntax node, or at random
characters as in Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle". Every text is a
slice of the file: nothing is formatted or generated anew, and prefix + middle + suffix is the statement.
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
from fim_core.records.sql_syntax import LONGEST_SPAN, Span, Statement, split_statements
from fim_core.records.text_file import cannot_read

COLUMNS = ("TYPE", "INPUT", "OUTPUT")
CONTEXT_CHARACTERS = 8000
"""Of earlier statements and of definitions each, the newest are kept up to so many characters."""

_STATEMENT_LINES = re.compile(r"(?<=;)\s*\n")


@dataclass(frozen=True, slots=True)
class Cut:
    """The characters `start` to `end` of a statement are missing. kind: sql_syntax, sql_random or sql_empty."""

    kind: str
    start: int
    end: int


def read_sql_file(path: Path, name: str, options: SqlFileOptions, seed: int) -> Export:
    """An SQL file as an export; the same file, options and seed give the same rows."""
    # Functions that can be sent to another process.
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

    A statement that spells the placeholder itself is left out, also as context. A file that cannot be tokenized is
    split after semicolons that end a line, and cut at random characters only. `warn` is told of both.

    Raises:
        FimError: there is no such dialect.
    """
    statements = split_statements(text, options.dialect)
    if statements is None:
        warn(f"{name} cannot be tokenized as {options.dialect}: it is cut at random characters.")
        pieces = (piece.strip() for piece in _STATEMENT_LINES.split(text))
        statements = [Statement(piece, False, list) for piece in pieces if piece]
    usable = [each for each in statements if PLACEHOLDER.lower() not in each.text.lower()]
    if len(usable) < len(statements):
        warn(f"{name}: {len(statements) - len(usable)} statements spell {PLACEHOLDER} themselves and are left out.")

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
        for cut in cut_statement(statement, options, rng):
            sql = statement.text[: cut.start] + PLACEHOLDER + statement.text[cut.end :]
            items = [{"type": "text", "text": part} for part in (json.dumps(context, ensure_ascii=False), sql)]
            yield [cut.kind, json.dumps(items, ensure_ascii=False), statement.text[cut.start : cut.end]]
        (definitions if statement.is_definition else history).append(statement.text)


def cut_statement(statement: Statement, options: SqlFileOptions, rng: Random) -> list[Cut]:
    """The different cuts of one statement, `cuts_per_statement` of them on average, fewer where it is short."""
    fraction, whole = math.modf(options.cuts_per_statement)
    spans = cache(statement.spans)
    cuts = [_cut(statement.text, spans, options, rng) for _ in range(int(whole) + (rng.random() < fraction))]
    return list(dict.fromkeys(cuts))


def _cut(text: str, spans: Callable[[], list[Span]], options: SqlFileOptions, rng: Random) -> Cut:
    if rng.random() < options.empty_rate:
        position = rng.randint(0, len(text))
        return Cut("sql_empty", position, position)
    if rng.random() < options.syntax_rate and spans():
        return Cut("sql_syntax", *rng.choice(spans()))
    start = rng.randrange(len(text))
    return Cut("sql_random", start, rng.randint(start + 1, min(len(text), start + LONGEST_SPAN)))


def _newest(texts: list[str]) -> str:
    """The last of the texts, as many as fit, one below the other."""
    first = len(texts)
    left = CONTEXT_CHARACTERS
    while first > 0 and (left := left - len(texts[first - 1]) - 1) >= 0:
        first -= 1
    return "\n".join(texts[first:])
