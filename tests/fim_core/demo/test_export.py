"""The synthetic export: exact, deterministic, damaged as promised, and SQL."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
import sqlglot
import typer
from typer.testing import CliRunner

from fim_core.cli.demo_data import register
from fim_core.demo.export import COLUMNS, DAMAGES, Row, clean_rows, damage_row, generate_rows, write_export
from fim_core.demo.middles import SHARES, choose_middle
from fim_core.demo.schemas import SUBJECTS
from fim_core.demo.statements import DemoStatement, choose_focus, write_statement
from fim_core.errors import FimError
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion, Reason, Rejection


def statements(count: int) -> list[DemoStatement]:
    rng = Random(3)
    return [write_statement(choose_focus(rng.choice(SUBJECTS), rng), rng) for _ in range(count)]


def test_statements_are_snowflake() -> None:
    for statement in statements(300):
        (parsed,) = sqlglot.parse(statement.text, dialect="snowflake")
        assert parsed is not None
        assert not isinstance(parsed, sqlglot.exp.Command), statement.text


def test_spans_have_their_kind() -> None:
    for statement in statements(300):
        for span in statement.spans:
            text = statement.text[span.start : span.end]
            assert text == text.strip() != ""
            if span.kind == "identifier":
                assert text.isidentifier()
            if span.kind == "clause":
                assert text.split()[0] in {
                    "FROM", "JOIN", "WHERE", "GROUP", "ORDER", "LIMIT", "QUALIFY", "LATERAL", "SET", "FILE_FORMAT",
                    "ON_ERROR",
                }  # fmt: skip


def test_middles_are_in_the_statement_and_of_their_type() -> None:
    rng = Random(5)
    seen = Counter()
    for statement in statements(400):
        for _ in range(5):
            middle = choose_middle(statement, rng)
            missing = statement.text[middle.start : middle.end]
            assert 0 <= middle.start <= middle.end <= len(statement.text)
            assert (missing == "") == (middle.type == "fillMe_empty")
            if middle.type == "fillMe_line":
                assert statement.text[middle.end : middle.end + 1] in ("", "\n")
            if middle.type in ("fillMe_line", "fillMe_start", "fillMe_identifier"):
                assert "\n" not in missing
            seen[middle.type] += 1
    for kind, percent in SHARES.items():
        assert seen[kind] / seen.total() == pytest.approx(percent / 100, abs=0.07)


def test_clean_rows_reproduce_their_statement() -> None:
    """Every row parses as an INPUT, and all rows of one statement give back the same text, which is in the history
    of the rows after it."""
    rows = list(itertools.islice(clean_rows(11), 1500))
    forms = Counter()
    for worksheet, group in itertools.groupby(rows, key=lambda row: row.worksheet_id):
        sqls, last_history = [], None
        for row in group:
            completion = parse_input(row.input)
            assert isinstance(completion, Completion), worksheet
            assert not completion.repaired
            sql = completion.prefix + row.output + completion.suffix
            if last_history is not None and completion.sql_history != last_history:
                assert sqls[-1] in completion.sql_history
            sqls.append(sql)
            last_history = completion.sql_history
            forms["older" if "<sql_history>" in row.input else "newer"] += 1
        for sql in sqls:
            assert len(sqlglot.parse(sql, dialect="snowflake")) == 1
    assert forms["older"] / len(rows) == pytest.approx(0.15, abs=0.07)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("invalid_json", Reason.INVALID_JSON),
        ("missing_placeholder", Reason.MISSING_PLACEHOLDER),
        ("multiple_placeholders", Reason.MULTIPLE_PLACEHOLDERS),
        ("empty_input", Reason.EMPTY_INPUT),
    ],
)
def test_damaged_rows_are_rejected_with_their_reason(damage: str, reason: Reason) -> None:
    rows = list(itertools.islice(clean_rows(2), 60))
    for before, row in itertools.pairwise(rows):
        rejection = parse_input(damage_row(row, before, damage).input)
        assert isinstance(rejection, Rejection)
        assert rejection.reason == reason


def test_bad_escapes_can_be_repaired() -> None:
    rows = list(itertools.islice(clean_rows(2), 60))
    for before, row in itertools.pairwise(rows):
        completion, clean = parse_input(damage_row(row, before, "repairable_escapes").input), parse_input(row.input)
        assert isinstance(completion, Completion)
        assert isinstance(clean, Completion)
        assert completion.repaired
        assert (completion.prefix, completion.suffix) == (clean.prefix + "/* D:\\queries */", clean.suffix)


def test_repeated_rows() -> None:
    before, row = itertools.islice(clean_rows(2), 2)
    assert damage_row(row, before, "duplicate") == before
    conflict = damage_row(row, before, "conflicting_output")
    assert (conflict.input, conflict.output != before.output) == (before.input, True)


def test_one_row_in_a_hundred_is_damaged_in_each_way_in_turn() -> None:
    clean, rows = list(itertools.islice(clean_rows(4), 1400)), list(generate_rows(1400, 4))
    damaged = [index for index, (a, b) in enumerate(zip(clean, rows, strict=True)) if a != b]
    assert damaged == list(range(61, 1400, 100))
    assert len(damaged) == 2 * len(DAMAGES)


def test_same_arguments_same_bytes_and_longer_exports_continue_shorter_ones(tmp_path: Path) -> None:
    for name, rows, seed in (("a", 500, 1), ("b", 500, 1), ("longer", 800, 1), ("other", 500, 2)):
        write_export(tmp_path / f"{name}.csv", rows=rows, seed=seed)
    a, b, longer, other = ((tmp_path / f"{name}.csv").read_bytes() for name in ("a", "b", "longer", "other"))
    assert a == b
    assert longer.startswith(a)
    assert other != a


def test_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    write_export(tmp_path / "a.csv", rows=300, seed=1)
    write_export(tmp_path / "a.parquet", rows=300, seed=1)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    table = pq.read_table(tmp_path / "a.parquet")
    assert tuple(header) == COLUMNS == tuple(table.column_names)
    assert [Row(*row) for row in rows] == [Row(*row.values()) for row in table.to_pylist()]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"must end in \.csv or \.parquet"):
        write_export(tmp_path / "a.json", rows=1, seed=1)


def test_contexts_are_short_enough_for_a_quick_demo() -> None:
    sizes = []
    for row in itertools.islice(clean_rows(1), 2000):
        context = json.loads(row.input)[0]["text"]
        sizes.append(len(context) if context.startswith("<") else sum(map(len, json.loads(context).values())))
    assert 300 < sum(sizes) / len(sizes) < 750


def test_command(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["demo-data", "-o", str(tmp_path / "x.csv"), "--rows", "20", "--seed", "3"])
    assert result.exit_code == 0, result.output
    write_export(tmp_path / "y.csv", rows=20, seed=3)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
