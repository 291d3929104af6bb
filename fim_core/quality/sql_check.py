"""Checks in SQL files: a header of comments, then a query that returns the offending rows.

    -- description: One sentence, which may continue
    --   on indented lines.
    -- severity: error | warn
    -- max_rows: number of offending rows that is tolerated (default 0, unless max_share is given)
    -- max_share: share of offending rows that is tolerated
    -- total: scalar SQL expression, the number of checked rows (default: rows of the asset's own table)
    -- note: scalar SQL expression, a sentence that says what was found and why; NULL for no note
    -- needs: table, or table.column, that the check cannot do without; where it is missing, the check passes with a note
    -- parameter: name = dotted path to a fact, such as config.data.max_length (see `Evidence.facts`); may be repeated
    SELECT row_id FROM …;
    SELECT …            -- optional second query: a small table to read next to the result

The first column is the key that is reported, usually `row_id`. `$name` is a bound parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from fim_core.quality.check import SHOWN_ROWS, Check, Evidence, Finding

SHOWN_BREAKDOWN = 50

_HEADER_KEYS = {"description", "severity", "max_rows", "max_share", "total", "note", "needs", "parameter"}
_HEADER_LINE = re.compile(r"--\s?(?:(?P<key>[a-z_]+):\s+(?P<value>.*)|\s+(?P<more>.*))")


def read_check(path: Path) -> Check:
    """Read the check of a file `<asset>/<name>.sql`.

    Raises:
        ValueError: the header lacks a key, or has an unknown or malformed one.
    """
    text = path.read_text(encoding="utf-8")
    header = _read_header(text, path)
    if header.get("severity") not in ("error", "warn") or not header.get("description"):
        raise ValueError(f"{path}: the header needs a description, and a severity: error or warn")
    max_share = float(header["max_share"]) if "max_share" in header else None
    max_rows = int(header["max_rows"]) if "max_rows" in header else None
    asset = path.parent.name
    return Check(
        asset=asset,
        name=path.stem,
        description=header["description"],
        severity=header["severity"],  # type: ignore[arg-type]
        max_rows=0 if max_rows is None and max_share is None else max_rows,
        max_share=max_share,
        find=partial(
            _find,
            sql=text,
            total=header.get("total", f"(SELECT count(*) FROM {asset})"),
            note=header.get("note", "NULL"),
            needs=[need.strip() for need in header.get("needs", "").split(",") if need.strip()],
            parameters=_parameters(header.get("parameter", ""), path),
        ),
    )


def _read_header(text: str, path: Path) -> dict[str, str]:
    header: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        match = _HEADER_LINE.fullmatch(line)
        if match is None:
            break
        if match["key"] is None:
            header[key] += " " + match["more"].strip()
            continue
        key = match["key"]
        if key not in _HEADER_KEYS:
            raise ValueError(f"{path}: no such key in the header: {key}")
        value = match["value"].strip()
        header[key] = f"{header[key]}\n{value}" if key == "parameter" and key in header else value
    return header


def _parameters(lines: str, path: Path) -> dict[str, str]:
    """The dotted path of the fact that each parameter takes its value from."""
    parameters: dict[str, str] = {}
    for line in lines.splitlines():
        name, equals, fact = (part.strip() for part in line.partition("="))
        if not equals or not fact:
            raise ValueError(f"{path}: write a parameter as `name = path.to.fact`, not: {line}")
        parameters[name] = fact
    return parameters


def _find(
    evidence: Evidence, *, sql: str, total: str, note: str, needs: list[str], parameters: Mapping[str, str]
) -> Finding:
    missing = [need for need in needs if not _exists(evidence, need)]
    if missing:
        return Finding(0, 0, note=f"Not checked: {' and '.join(missing)} not available.")

    def execute(query: str) -> DuckDBPyConnection:
        (statement,) = evidence.connection.extract_statements(query)
        return evidence.connection.execute(statement, _bind(statement.named_parameters, evidence, parameters))

    query, *breakdowns = (
        statement.query.strip().removesuffix(";") for statement in evidence.connection.extract_statements(sql)
    )
    ((rows, row_ids, checked),) = execute(
        f"WITH offending(key) AS (SELECT COLUMNS(*)::VARCHAR FROM (\n{query}\n))\n"
        f"SELECT count(*), min(key, {SHOWN_ROWS}), {total} FROM offending"
    ).fetchall()
    breakdown: list[dict[str, Any]] = []
    if breakdowns:
        cursor = execute(breakdowns[0])
        names = [column[0] for column in cursor.description]
        breakdown = [dict(zip(names, values, strict=True)) for values in cursor.fetchmany(SHOWN_BREAKDOWN)]
    ((found,),) = execute(f"SELECT ({note})").fetchall()
    return Finding(rows, checked, row_ids or [], found or "", breakdown)


def _exists(evidence: Evidence, need: str) -> bool:
    table, _, column = need.partition(".")
    if table not in evidence.tables:
        return False
    columns = [name.casefold() for name in evidence.connection.table(table).columns]
    return not column or column.casefold() in columns


def _bind(names: set[str], evidence: Evidence, parameters: Mapping[str, str]) -> dict[str, Any]:
    if unknown := sorted(names - parameters.keys()):
        raise ValueError(f"The header of the check has no line for the parameter {', '.join(unknown)}.")
    return {name: evidence.fact(parameters[name]) for name in names}
