"""A check that is a SQL file: a head of comments, then a query that returns the offending rows.

    -- description: One sentence, which may go on
    --   in indented lines.
    -- severity: error | warn
    -- max_rows: offenders that are tolerated (default 0, unless max_share is given)
    -- max_share: share of offenders that is tolerated
    -- total: scalar SQL expression, out of how many (default: rows of the asset's own table)
    -- note: scalar SQL expression, a sentence that says what was found and why; NULL is none
    -- needs: table, or table.column, without which there is nothing to check; the check passes with a note
    -- parameter: name = dotted path to a fact, such as config.data.max_length (see `Evidence.facts`); may be repeated
    SELECT row_id FROM …;
    SELECT …            -- optional second query: a small table to read next to the result

The first column is the key that is reported, by custom `row_id`. `$name` stands for a parameter, which is bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fim_core.quality.check import SHOWN_ROWS, Check, Evidence, Finding

SHOWN_BREAKDOWN = 50

_HEAD_KEYS = {"description", "severity", "max_rows", "max_share", "total", "note", "needs", "parameter"}
_HEAD_LINE = re.compile(r"--\s?(?:(?P<key>[a-z_]+):\s+(?P<value>.*)|\s+(?P<more>.*))")


def read_check(path: Path) -> Check:
    """The check of a file `<asset>/<name>.sql`.

    Raises:
        ValueError: the head is not as it should be.
    """
    text = path.read_text(encoding="utf-8")
    head = _read_head(text, path)
    if head.get("severity") not in ("error", "warn") or not head.get("description"):
        raise ValueError(f"{path}: the head needs a description, and a severity: error or warn")
    max_share = float(head["max_share"]) if "max_share" in head else None
    max_rows = int(head["max_rows"]) if "max_rows" in head else None
    asset = path.parent.name
    return Check(
        asset=asset,
        name=path.stem,
        description=head["description"],
        severity=head["severity"],  # type: ignore[arg-type]
        max_rows=0 if max_rows is None and max_share is None else max_rows,
        max_share=max_share,
        find=partial(
            _find,
            sql=text,
            total=head.get("total", f"(SELECT count(*) FROM {asset})"),
            note=head.get("note", "NULL"),
            needs=[need.strip() for need in head.get("needs", "").split(",") if need.strip()],
            places=_places(head.get("parameter", ""), path),
        ),
    )


def _read_head(text: str, path: Path) -> dict[str, str]:
    head: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        match = _HEAD_LINE.fullmatch(line)
        if match is None:
            break
        if match["key"] is None:
            head[key] += " " + match["more"].strip()
            continue
        key = match["key"]
        if key not in _HEAD_KEYS:
            raise ValueError(f"{path}: no such key in the head: {key}")
        value = match["value"].strip()
        head[key] = f"{head[key]}\n{value}" if key == "parameter" and key in head else value
    return head


def _places(lines: str, path: Path) -> dict[str, str]:
    """The fact that each parameter stands for, as a dotted path."""
    places: dict[str, str] = {}
    for line in lines.splitlines():
        name, equals, place = (part.strip() for part in line.partition("="))
        if not equals or not place:
            raise ValueError(f"{path}: a parameter is written `name = path.to.fact`, not: {line}")
        places[name] = place
    return places


def _fact(facts: Mapping[str, Any], place: str) -> Any:
    found: Any = facts
    for key in place.split("."):
        found = found[key]
    return found


def _find(
    evidence: Evidence, *, sql: str, total: str, note: str, needs: list[str], places: Mapping[str, str]
) -> Finding:
    connection = evidence.connection
    missing = [need for need in needs if not _exists(evidence, need)]
    if missing:
        return Finding(0, 0, note=f"Not checked: there is no {' and no '.join(missing)}.")
    (query, parameters), *breakdowns = _statements(sql, evidence, places)
    row = connection.execute(
        f"WITH offending(key) AS (SELECT COLUMNS(*)::VARCHAR FROM (\n{query}\n))\n"
        f"SELECT count(*), min(key, {SHOWN_ROWS}), {total} FROM offending",
        parameters,
    ).fetchone()
    assert row is not None, "an aggregate without GROUP BY gives one row"
    rows, row_ids, out_of = row
    breakdown: list[dict[str, Any]] = []
    if breakdowns:
        cursor = connection.execute(*breakdowns[0])
        names = [column[0] for column in cursor.description]
        breakdown = [dict(zip(names, values, strict=True)) for values in cursor.fetchmany(SHOWN_BREAKDOWN)]
    ((said,),) = connection.execute(*_statements(f"SELECT ({note})", evidence, places)[0]).fetchall()
    return Finding(rows, out_of, row_ids or [], said or "", breakdown)


def _statements(sql: str, evidence: Evidence, places: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Each statement of a text, with the parameters that it names."""
    return [
        (statement.query.strip().removesuffix(";"), _bind(statement.named_parameters, evidence, places))
        for statement in evidence.connection.extract_statements(sql)
    ]


def _exists(evidence: Evidence, need: str) -> bool:
    table, _, column = need.partition(".")
    if table not in evidence.tables:
        return False
    columns = [name.casefold() for name in evidence.connection.table(table).columns]
    return not column or column.casefold() in columns


def _bind(names: set[str], evidence: Evidence, places: Mapping[str, str]) -> dict[str, Any]:
    if unknown := sorted(names - places.keys()):
        raise ValueError(f"the head of the check has no line for the parameter {', '.join(unknown)}")
    try:
        return {name: _fact(evidence.facts, places[name]) for name in names}
    except KeyError as error:
        raise ValueError(f"there is no fact {error} for a parameter of the check") from error
