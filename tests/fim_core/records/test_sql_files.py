"""Completions from SQL files: prefix, middle and suffix are slices that join to the file's statements."""

from __future__ import annotations

import json
import logging
import time
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlglot.dialects.dialect import Dialect
from sqlglot.tokens import Token

from fim_core.config.data import Source, SqlFileOptions
from fim_core.errors import FimError
from fim_core.records.locate import locate
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion
from fim_core.records.sql_files import CONTEXT_CHARACTERS, read_sql_file, sql_rows
from fim_core.records.sql_syntax import LONGEST_SPAN, _Brackets, read_statements

TEXT = """-- who sells what
CREATE TABLE straße (a INT, b VARCHAR(10));
SELECT SUM(x.a) OVER (PARTITION BY y ORDER BY z), CASE WHEN a THEN 'b;c' END
FROM (SELECT 1 AS q) t LEFT JOIN u ON t.a = u.b WHERE a IN (1, 2) GROUP BY 1 LIMIT 3;
;
SELECT $$ a; '😀' $$\r
"""
STATEMENTS = [
    "-- who sells what\nCREATE TABLE straße (a INT, b VARCHAR(10));",
    "SELECT SUM(x.a) OVER (PARTITION BY y ORDER BY z), CASE WHEN a THEN 'b;c' END\n"
    "FROM (SELECT 1 AS q) t LEFT JOIN u ON t.a = u.b WHERE a IN (1, 2) GROUP BY 1 LIMIT 3;",
    "SELECT $$ a; '😀' $$",
]


def rows(text: str, seed: str = "1", **options: object) -> list[tuple[str, Completion, str]]:
    made = []
    for kind, state, middle in sql_rows(text, "a.sql", SqlFileOptions(**options), seed=seed, warn=lambda _: None):
        completion = parse_input(state)
        assert isinstance(completion, Completion)
        made.append((kind, completion, middle))
    return made


def test_statements_are_slices_of_the_file() -> None:
    statements = read_statements(TEXT, "snowflake")
    assert statements is not None
    assert [each.text for each in statements] == STATEMENTS
    assert [each.is_definition for each in statements] == [True, False, False]


def test_syntax_nodes() -> None:
    statements = read_statements(TEXT, "snowflake")
    assert statements is not None
    nodes = {statements[1].text[start:end] for start, end in statements[1].spans()}
    assert nodes >= {
        "SUM(x.a)",
        "SUM(x.a) OVER (PARTITION BY y ORDER BY z)",
        "CASE WHEN a THEN 'b;c' END",
        "(SELECT 1 AS q) t",
        "SELECT 1 AS q",
        "LEFT JOIN u ON t.a = u.b",
        "t.a = u.b",
        "WHERE a IN (1, 2)",
        "GROUP BY 1",
        "LIMIT 3",
        "'b;c'",
    }
    assert all(node.count("(") == node.count(")") for node in nodes)


def test_a_statement_that_cannot_be_parsed_has_its_tokens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        statements = read_statements("FROBNICATE (a, b) hunter2 SELECT SELECT; GRANT hunter2 TO ROLE x", "snowflake")
        assert statements is not None
        first, second = ({s.text[a:b] for a, b in s.spans()} for s in statements)
    assert first >= {"FROBNICATE", "(a, b)", "hunter2"}
    assert second >= {"GRANT", "x"}
    assert "hunter2" not in caplog.text


def grown(tokens: list[Token], first: int, last: int) -> tuple[int, int] | None:
    """The reference: a range grows token by token until its brackets are balanced."""
    while not is_balanced(tokens[first : last + 1]):
        missing = lowest_depth(tokens[first : last + 1]) < 0
        if missing and first > 0:
            first -= 1
        elif not missing and last < len(tokens) - 1:
            last += 1
        else:
            return None
    return first, last


def depths(tokens: list[Token]) -> list[int]:
    opening, closing = {"(", "[", "case"}, {")", "]", "end"}
    return list(accumulate((token.text in opening) - (token.text in closing) for token in tokens))


def lowest_depth(tokens: list[Token]) -> int:
    return min([0, *depths(tokens)])


def is_balanced(tokens: list[Token]) -> bool:
    return lowest_depth(tokens) == 0 and depths(tokens)[-1] == 0


@given(st.lists(st.sampled_from(["(", ")", "[", "]", "case", "end", "a", ","]), min_size=1, max_size=12), st.data())
def test_ranges_are_extended_until_brackets_are_balanced(words: list[str], data: st.DataObject) -> None:
    tokens = Dialect.get_or_raise("snowflake").tokenize(" ".join(words))
    first = data.draw(st.integers(0, len(tokens) - 1))
    last = data.draw(st.integers(first, len(tokens) - 1))
    assert _Brackets(tokens).balanced(first, last) == grown(tokens, first, last)


def test_deep_nesting_costs_no_more_than_its_length() -> None:
    """10,000 brackets took 44 seconds."""
    began = time.process_time()
    [statement] = read_statements("select " + "(" * 10_000 + "1" + ")" * 10_000 + ";", "snowflake") or []
    assert len(statement.spans()) == 257
    assert time.process_time() - began < 5


def test_earlier_statements_are_the_context() -> None:
    made = rows("CREATE TABLE a (x INT); SELECT 1; CREATE VIEW v AS SELECT 2; SELECT 3", cuts_per_statement=1)
    assert [(row.ddl_context, row.sql_history) for _, row, _ in made] == [
        ("", ""),
        ("CREATE TABLE a (x INT);", ""),
        ("CREATE TABLE a (x INT);", "SELECT 1;"),
        ("CREATE TABLE a (x INT);\nCREATE VIEW v AS SELECT 2;", "SELECT 1;"),
    ]


def test_the_context_is_limited_to_the_newest() -> None:
    *_, (_, last, _) = rows(";".join(f"SELECT {n:09}" for n in range(1000)), cuts_per_statement=1)
    assert len(last.sql_history) <= CONTEXT_CHARACTERS
    assert last.sql_history.endswith("SELECT 000000998;")
    assert last.sql_history.startswith("SELECT ")


def test_rates() -> None:
    text = ";".join(f"SELECT column_{n}, COUNT(*) FROM table_{n} GROUP BY 1" for n in range(400))
    made = rows(text, cuts_per_statement=2.5, empty_rate=0.2, syntax_rate=0.5)
    share = {kind: sum(k == kind for k, *_ in made) / len(made) for kind in ("sql_empty", "sql_syntax", "sql_random")}
    assert share["sql_empty"] == pytest.approx(0.2, abs=0.05)
    assert share["sql_syntax"] == pytest.approx(0.4, abs=0.06)
    assert len(made) == pytest.approx(1000, rel=0.06)
    assert {kind for kind, *_ in rows(text, empty_rate=0, syntax_rate=1)} == {"sql_syntax"}
    assert {kind for kind, *_ in rows(text, empty_rate=0, syntax_rate=0)} == {"sql_random"}
    assert {middle for _, _, middle in rows(text, empty_rate=1)} == {""}


def test_the_seed_decides() -> None:
    assert rows(TEXT) == rows(TEXT)
    assert rows(TEXT, cuts_per_statement=5) != rows(TEXT, seed="2", cuts_per_statement=5)


def test_statements_with_the_placeholder_are_left_out_with_a_warning() -> None:
    told: list[str] = []
    made = list(sql_rows("SELECT '<FILLME>'; SELECT 1", "a.sql", SqlFileOptions(), seed="1", warn=told.append))
    assert all("FILLME" not in state for _, state, _ in made)
    assert "1 statements contain <fillMe>" in told[0]


def test_a_file_that_cannot_be_tokenized_is_cut_at_random_with_a_warning() -> None:
    told: list[str] = []
    text = "SELECT 1;\nSELECT 'never closed"
    made = list(sql_rows(text, "a.sql", SqlFileOptions(cuts_per_statement=4), seed="1", warn=told.append))
    assert read_statements(text, "snowflake") is None
    assert {kind for kind, *_ in made} <= {"sql_random", "sql_empty"}
    assert {_whole(state, middle) for _, state, middle in made} == {"SELECT 1;", "SELECT 'never closed"}
    assert "cannot be tokenized" in told[0]


def test_errors_for_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_bytes(b"SELECT '\xff'")
    with pytest.raises(FimError, match="not UTF-8"):
        list(read_sql_file(tmp_path / "a.sql", "a.sql", SqlFileOptions(), 7).batches(pytest.fail))


def test_files_without_statements() -> None:
    assert rows("") == rows("-- nothing\n") == rows(";;") == []


def _whole(state: str, middle: str) -> str:
    completion = parse_input(state)
    assert isinstance(completion, Completion)
    return completion.prefix + middle + completion.suffix


pieces = st.sampled_from(
    [
        *(
            "select",
            " ",
            "a",
            "(",
            ")",
            ",",
            ";",
            "'x;y'",
            "'",
            "$$",
            '"Q"',
            "--c;\n",
            "/*",
            "*/",
            "\r\n",
            "é",
            "😀",
            "\x00",
        ),
        *(
            "from t",
            "case when",
            "end",
            "create table",
            "{{ ref('m') }}",
            "<fillMe>",
            "where",
            "=",
            "1.5",
            "begin",
            "\\",
        ),
    ]
)


@given(
    st.lists(pieces, max_size=25).map("".join) | st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 9)
)
def test_prefix_middle_and_suffix_are_a_slice_of_the_file(text: str, seed: int) -> None:
    options = SqlFileOptions(cuts_per_statement=3, empty_rate=0.1)
    statements = read_statements(text, options.dialect)
    if statements is not None:
        place = 0
        for statement in statements:
            found = text.index(statement.text, place)
            assert statement.text.strip()
            place = found + len(statement.text)
            for start, end in statement.spans():
                assert 0 <= start < end <= len(statement.text)
    for kind, state, middle in sql_rows(text, "a", options, seed=str(seed), warn=lambda _: None):
        whole = _whole(state, middle)
        assert whole in (text if statements is None else [each.text for each in statements])
        assert (middle == "") == (kind == "sql_empty")
        assert len(middle) <= LONGEST_SPAN
        assert json.loads(state)


BLOCKS = [
    "BEGIN\n  INSERT INTO t VALUES (1);\n  SELECT CASE WHEN a THEN 1 ELSE 2 END FROM t;\nEND;",
    "DECLARE\n  total NUMBER;\n  c CURSOR FOR SELECT 1;\nBEGIN\n  IF (total > 1) THEN RETURN 1; END IF;\n  BEGIN SELECT 1; END;\nEND;",
    "CREATE OR REPLACE PROCEDURE p(a INT) RETURNS INT LANGUAGE SQL AS\nBEGIN\n  FOR r IN c DO SELECT 1; END FOR;\n  RETURN 1;\nEND;",
    "CREATE PROCEDURE q() RETURNS INT LANGUAGE SQL AS\nDECLARE x INT;\nBEGIN\n  WHILE (x < 3) DO x := x + 1; END WHILE;\nEND;",
    "CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW BEGIN UPDATE u SET a = 1; DELETE FROM v; END;",
]
PLAIN = [
    "BEGIN;",
    "INSERT INTO t VALUES (1);",
    "COMMIT;",
    "BEGIN TRANSACTION;",
    "SELECT CASE WHEN a THEN 1 END;",
    "ROLLBACK",
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_one_statement(block: str) -> None:
    text = "\n".join(["SELECT 1;", block, *PLAIN])
    found = read_statements(text, "snowflake")
    assert found is not None
    assert [statement.text for statement in found] == ["SELECT 1;", block, *PLAIN]


@pytest.mark.parametrize(
    "statements",
    [
        ["BEGIN SELECT 1;", "SELECT 2;"],
        ["DECLARE x INT;", "SELECT x;", "BEGIN SELECT 1; END;"],
        ["CREATE TABLE t (a INT);", "END;"],
    ],
)
def test_statements_that_are_not_blocks_end_at_their_semicolon(statements: list[str]) -> None:
    found = read_statements(" ".join(statements), "snowflake")
    assert [statement.text for statement in found or []] == statements


def test_files_that_are_not_utf8_are_skipped_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.sql").write_text("SELECT 'ü';", encoding="utf-8")
    (tmp_path / "deep" / "b.sql").write_bytes("SELECT 'ü';".encode("latin-1"))
    said: list[str] = []
    exports = locate(Source(type="sql_files", name_or_path=str(tmp_path)), None, tmp_path, said.append)
    assert [export.name for export in exports] == ["a.sql"]
    assert said == [f"1 of 2 SQL files of {tmp_path} are not UTF-8 and are skipped: deep/b.sql."]
    (tmp_path / "a.sql").unlink()
    with pytest.raises(FimError, match="None of the SQL files"):
        locate(Source(type="sql_files", name_or_path=str(tmp_path)), None, tmp_path, said.append)
