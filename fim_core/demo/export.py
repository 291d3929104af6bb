"""A synthetic export, as a SQL editor with a completion model would log it.

All content is made up and decided by the seed. About one row in a hundred is damaged, cycling through the kinds of damage
in real exports, so that every path of the data preparation is used.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.atomic import replacing
from fim_core.demo.middles import choose_middle
from fim_core.demo.schemas import SUBJECTS
from fim_core.demo.statements import choose_focus, write_statement
from fim_core.errors import FimError

COLUMNS = ("TYPE", "WORKSHEET_ID", "INPUT", "OUTPUT")
PLACEHOLDER = "<fillMe>"

OLDER_FORM_SHARE = 0.15
OPEN_FILE_SHARE = 0.2
HISTORY_STATEMENTS = 2

DAMAGE_INTERVAL = 100
DAMAGE_OFFSET = 61
DAMAGES = (
    "invalid_json",
    "missing_placeholder",
    "multiple_placeholders",
    "repairable_escapes",
    "empty_input",
    "duplicate",
    "conflicting_output",
)

_BATCH = 10_000


class Row(NamedTuple):
    """One logged completion; the fields are the columns of the export."""

    type: str
    worksheet_id: str
    input: str
    output: str


def write_export(path: Path, *, rows: int, seed: int) -> None:
    """Write a synthetic export of `rows` rows: CSV or Parquet, by the suffix.

    The same arguments give the same bytes; a longer export starts with the rows of a shorter one. Rows are
    streamed, so memory does not grow with their number.

    Raises:
        FimError: the name ends neither in .csv nor in .parquet.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise FimError(f"{path} must end in .csv or .parquet, which decides the format of the export.")
    with replacing(path) as scratch:
        if path.suffix == ".csv":
            _write_csv(scratch, generate_rows(rows, seed))
        else:
            _write_parquet(scratch, generate_rows(rows, seed))


def _write_csv(path: Path, content: Iterator[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(content)


def _write_parquet(path: Path, content: Iterator[Row]) -> None:
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pq.ParquetWriter(path, schema, compression="zstd") as parquet:
        while batch := list(itertools.islice(content, _BATCH)):
            columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
            parquet.write_table(pa.Table.from_arrays(columns, schema=schema))


def generate_rows(rows: int, seed: int) -> Iterator[Row]:
    """The rows of the export in order, damaged ones among them."""
    before: Row | None = None
    for index, row in enumerate(itertools.islice(clean_rows(seed), rows)):
        if before is not None and index % DAMAGE_INTERVAL == DAMAGE_OFFSET:
            row = damage_row(row, before, DAMAGES[index // DAMAGE_INTERVAL % len(DAMAGES)])
        yield row
        before = row


def clean_rows(seed: int) -> Iterator[Row]:
    """Endless undamaged rows, worksheet after worksheet."""
    for number in itertools.count():
        yield from _write_worksheet(f"ws-{number:06d}", Random(f"{seed}/{number}"))


def damage_row(row: Row, before: Row, damage: str) -> Row:
    """The row as a faulty logger would write it; duplicates and conflicts repeat the row before it."""
    match damage:
        case "invalid_json":
            return row._replace(input=row.input[: len(row.input) * 2 // 3])
        case "missing_placeholder":
            return row._replace(input=row.input.replace(PLACEHOLDER, ""))
        case "multiple_placeholders":
            return row._replace(input=row.input.replace(PLACEHOLDER, PLACEHOLDER * 2))
        case "repairable_escapes":
            # A logger that escapes nothing and sends no context.
            sql = json.loads(row.input)[-1]["text"].replace(PLACEHOLDER, f"/* D:\\queries */{PLACEHOLDER}")
            return row._replace(input=f'[{{"type": "text", "text": "{sql}"}}]')
        case "empty_input":
            return row._replace(input="")
        case "duplicate":
            return before
        case "conflicting_output":
            return before._replace(output=before.output + "_v2" if before.output else "LIMIT 1")
    raise ValueError(f"no such damage: {damage}")


def _write_worksheet(worksheet: str, rng: Random) -> Iterator[Row]:
    """Eight to twenty completions of one worksheet: statements on one subject, each of which becomes part of the history."""
    focus = choose_focus(rng.choice(SUBJECTS), rng)
    older_form = rng.random() < OLDER_FORM_SHARE
    ddl = "\n".join(table.ddl(focus.schema) for table in (focus.fact, focus.parent))
    file_content = f"USE SCHEMA {focus.schema};" if rng.random() < OPEN_FILE_SHARE else ""
    history = [write_statement(focus, rng).text for _ in range(rng.randint(0, HISTORY_STATEMENTS))]
    remaining = rng.randint(8, 20)
    while remaining > 0:
        context = _older_context(history) if older_form else _newer_context(history, ddl, file_content)
        statement = write_statement(focus, rng)
        middles = dict.fromkeys(choose_middle(statement, rng) for _ in range(min(remaining, rng.randint(2, 6))))
        for middle in middles:
            sql = statement.text[: middle.start] + PLACEHOLDER + statement.text[middle.end :]
            items = [{"type": "text", "text": context}, {"type": "text", "text": sql}]
            yield Row(middle.type, worksheet, json.dumps(items), statement.text[middle.start : middle.end])
        remaining -= len(middles)
        history = [*history, statement.text][-HISTORY_STATEMENTS:]


def _newer_context(history: list[str], ddl: str, file_content: str) -> str:
    return json.dumps(
        {
            "sql_history": "\n".join(history),
            "ddl_context": ddl,
            "last_few_executed": history[-1] if history else "",
            "file_content": file_content,
        }
    )


def _older_context(history: list[str]) -> str:
    return f"<sql_history>{chr(10).join(history)}</sql_history>"
