"""SQL metrics on cases where rules for text or other languages are wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim_core.metrics.completed_sql import CompletedSql, parses, tokenize
from fim_core.metrics.sql_tokens import Overlap, exact_match_sql, identifier_overlap


def sql(completion: str, prefix: str = "", suffix: str = "", dialect: str = "snowflake") -> CompletedSql:
    return CompletedSql(prefix, completion, suffix, dialect)


def same(
    gold: str, predicted: str, prefix: str = "SELECT ", suffix: str = " FROM t", dialect: str = "snowflake"
) -> bool:
    return exact_match_sql(sql(gold, prefix, suffix, dialect), sql(predicted, prefix, suffix, dialect))


EQUAL = [
    ("count(*) as n", "COUNT( * ) AS n"),
    ("a\n  AND b", "a and b"),
    ("Region", "REGION"),
    ("order_id /* key */", "order_id\n/*  key  */\n"),
    ("NULL", "null"),
    ("x::int", "x :: INT"),
    ("src:Address.City", "SRC:Address.City"),
    ("1e5", "1E5"),
]
DIFFERENT = [
    ("'x'", '"x"'),
    ("'x'", "'X'"),
    ('"x"', '"X"'),
    ("a AND b", "aANDb"),
    ("NULL", ""),
    ("NULL", "'NULL'"),
    ("'http://a/b'", "'http://a'"),
    ("'--x'", "''"),
    ("'a  b'", "'a b'"),
    ("$$a$$", "$$A$$"),
    ("src:Address.City", "src:address.City"),
    ("src:items[0].Name", "src:items[0].NAME"),
    ("1.10", "1.1"),
    ("a -- first", "a -- second"),
    ("a >= b", "a > = b"),
    ("a", "a,"),
    ("a FROM t; SELECT b", "a"),
    ("it''s'", "it's'"),
]


@pytest.mark.parametrize(("gold", "predicted"), EQUAL)
def test_same_sql(gold: str, predicted: str) -> None:
    assert same(gold, predicted)


@pytest.mark.parametrize(("gold", "predicted"), DIFFERENT)
def test_different_sql(gold: str, predicted: str) -> None:
    assert not same(gold, predicted)


def test_fragments_are_compared_in_context() -> None:
    assert same("sel", "SEL", prefix="", suffix="ect 1"), "half a keyword"
    assert same("ID", "id", prefix="select cust_", suffix=" from t"), "half a name"
    assert not same("sel", "SEL", prefix="select '", suffix="ect'"), "inside a string, case counts"
    assert not same("x", " x", prefix="SELECT", suffix=" FROM t"), "white space that parts what else is one word"
    assert same("http://x", "http://x ", prefix="select 'a', 1 -- see ", suffix="\nfrom t"), "a comment's end"
    assert not same("http://x", "http://y", prefix="select 1 -- see ", suffix="\nfrom t"), "text of a comment"


def test_a_completion_that_swallows_the_suffix_is_wrong() -> None:
    assert not same("a", "a --", suffix=" FROM t")
    assert not same("a", "a /*", suffix=" FROM t")
    assert not same("a", "'a", suffix=" FROM t")


def test_documents_that_do_not_tokenize_are_compared_by_words() -> None:
    broken = "it's one quote too many: "
    assert same("a  b", "a\nb", prefix=broken)
    assert not same("a b", "A b", prefix=broken)


def test_commands_are_tokenized_like_all_statements() -> None:
    assert same("task  a_b", "TASK a_b", prefix="EXECUTE ", suffix=";")
    assert not same("'A'", "'a'", prefix="EXECUTE IMMEDIATE ", suffix=";")


def test_quoted_names_by_dialect() -> None:
    assert not same("`A`", "`a`", dialect="bigquery")
    assert not same("[A]", "[a]", dialect="tsql")
    assert same("[A]", "[a]", prefix="SELECT x", dialect="snowflake"), "an index, not a quoted name"


PIECES = st.lists(
    st.sampled_from(
        [
            "select",
            "A",
            "b1",
            '"Q x"',
            "'it''s'",
            "'--'",
            "1.5",
            ",",
            "(",
            ")",
            "=",
            "::",
            "AND",
            "$1",
            "order by",
            "a:Bc",
        ]
    ),
    max_size=10,
)
GAPS = st.lists(st.sampled_from([" ", "\n", "\t ", "  "]), min_size=11, max_size=11)


@settings(max_examples=150, deadline=None)
@given(PIECES, GAPS, GAPS)
def test_exact_match_is_reflexive_and_ignores_white_space(
    pieces: list[str], some: list[str], others: list[str]
) -> None:
    left, right = ("".join(g + p for p, g in zip(pieces, gaps, strict=False)) + gaps[-1] for gaps in (some, others))
    assert same(left, left)
    assert same(left, right)
    assert same(right, left)
    assert same(left.replace("select", "SELECT").replace("order by", "ORDER  by"), right)


@settings(max_examples=100, deadline=None)
@given(PIECES, st.text(alphabet="aX'\"-/*;\n ", max_size=6))
def test_completions_that_join_tokens_differ(pieces: list[str], predicted: str) -> None:
    """Equal by the measure means equal once case and white space outside quotes are gone, and not more."""
    gold = " ".join(pieces)
    if same(gold, predicted) and tokenize(f"SELECT {gold} FROM t", "snowflake") is not None:
        assert "".join(gold.upper().split()) == "".join(predicted.upper().split())


def test_parses_judges_the_statement_of_the_cursor() -> None:
    other = "this is ( no sql at all;\n"
    gold = sql("id", prefix=f"{other}SELECT ", suffix=" FROM t")
    assert parses(gold, gold) is True
    assert parses(gold, sql("", prefix=f"{other}SELECT ", suffix=" FROM (t")) is False
    assert parses(gold, sql("made_up", prefix=f"{other}SELECT ", suffix=" FROM t")) is True
    assert parses(gold, sql("id FROM t; SELECT )", prefix=f"{other}SELECT ", suffix=" FROM t")) is False


def test_parses_does_not_apply_where_the_gold_statement_does_not_parse() -> None:
    beyond = sql("NODE", prefix="SELECT a FROM FROM ", suffix=" ((")
    assert parses(beyond, sql("x")) is None
    assert parses(sql("", prefix="", suffix=""), sql("SELECT 1")) is None


def test_an_opaque_command_does_not_parse() -> None:
    gold = sql("id", prefix="SELECT ", suffix=" FROM t")
    opaque = sql("1; CALL )(", prefix="SELECT ", suffix="")
    assert parses(gold, opaque) is False


def test_statement_of_the_cursor() -> None:
    assert sql("b", prefix="SELECT a;\nSELECT ", suffix=";\nSELECT c").statements == ["SELECT b;"]
    assert sql("b; SELECT 2", prefix="SELECT a; SELECT ", suffix="").statements == ["SELECT b;", "SELECT 2"]
    assert sql("", prefix="SELECT ';'", suffix=" FROM t").statements == ["SELECT ';' FROM t"]
    assert sql("", prefix="SELECT a;\n\n", suffix="").statements == ["SELECT a;"]
    assert sql("", prefix="SELECT 'open", suffix="").statements == []


def test_identifiers_are_counted_with_repetition_and_without_case() -> None:
    gold, predicted = sql("a.id, A.total, f(x)", "SELECT ", " FROM a"), sql("A.ID, a.sum, b", "SELECT ", " FROM a")
    assert identifier_overlap(gold, predicted) == Overlap(matched=3, predicted=5, gold=6)


def test_a_partly_completed_name_counts_as_a_whole() -> None:
    assert identifier_overlap(sql("er_id", "SELECT ord", " FROM t"), sql("ers", "SELECT ord", " FROM t")) == Overlap(
        0, 1, 1
    )
    assert identifier_overlap(sql("er_id", "SELECT ord", " FROM t"), sql("", "SELECT ord", " FROM t")) == Overlap(
        0, 0, 1
    )


def test_quoted_names_keep_their_case_and_literals_are_not_names() -> None:
    assert identifier_overlap(sql("\"Id\", 'id'", "SELECT "), sql("\"ID\", 'id'", "SELECT ")) == Overlap(0, 1, 1)
    assert identifier_overlap(sql("x", "SELECT 'open "), sql("x", "SELECT 'open ")) is None
