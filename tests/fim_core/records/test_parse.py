"""Every row of the table in `fim_core.records.parse`, and properties of any INPUT."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim_core.records.parse import parse_input
from fim_core.records.schema import CONTEXT_FIELDS, Completion, Reason, Rejection


def row(*texts: str) -> str:
    return json.dumps([{"type": "text", "text": text} for text in texts])


def with_context(context: object, sql: str = "select <fillMe>") -> str:
    return row(json.dumps(context), sql)


def reason(text: str) -> Reason:
    result = parse_input(text)
    assert isinstance(result, Rejection), result
    return result.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Reason.EMPTY_INPUT),
        (" \n\t", Reason.EMPTY_INPUT),
        ("[]", Reason.EMPTY_INPUT),
        (row("", " \n"), Reason.EMPTY_INPUT),
        ("select <fillMe>", Reason.INVALID_JSON),
        ("null", Reason.UNSUPPORTED_JSON),
        ("NaN", Reason.INVALID_JSON),
        ('"select <fillMe>"', Reason.UNSUPPORTED_JSON),
        ('{"type": "text", "text": "<fillMe>"}', Reason.UNSUPPORTED_JSON),
        ('["select <fillMe>"]', Reason.UNSUPPORTED_JSON),
        ('[["<fillMe>"]]', Reason.UNSUPPORTED_JSON),
        ("[null]", Reason.EMPTY_INPUT),
        (json.dumps(row("a", "<fillMe>")), Reason.DOUBLE_ENCODED_JSON),
        (json.dumps(json.dumps("a")), Reason.UNSUPPORTED_JSON),
        (repr([{"type": "text", "text": "a"}, {"type": "text", "text": "<fillMe> it's"}]), Reason.PYTHON_REPR),
        (repr([{"text": "<fillMe>"}]), Reason.PYTHON_REPR),
        ('[{"type": "text"}]', Reason.UNSUPPORTED_JSON),
        ('[{"type": "text", "text": null}]', Reason.EMPTY_INPUT),
        ('[{"type": "text", "text": 7}]', Reason.UNSUPPORTED_JSON),
        ('[{"type": "image", "text": "<fillMe>"}]', Reason.UNSUPPORTED_JSON),
        ('[{"text": "<fillMe>", "text": "<fillMe>"}]', Reason.UNSUPPORTED_JSON),
        ('[{"text": "<fillMe>", "n": NaN}]', Reason.INVALID_JSON),
        ('[{"text": "<fillMe>", "n": -Infinity}]', Reason.INVALID_JSON),
        ('[{"text": "<fillMe>"}] [1]', Reason.INVALID_JSON),
        ("\ufeff" + row("<fillMe>"), Reason.INVALID_JSON),
        ("[" * 100_000, Reason.UNSUPPORTED_JSON),
        ('[{"text": "<fillMe>", "n": ' + "[" * 100_000 + "]" * 100_000 + "}]", Reason.UNSUPPORTED_JSON),
        ('[{"text": "\\ud800<fillMe>"}]', Reason.UNSUPPORTED_JSON),
        ('[{"text": "\ud800<fillMe>"}]', Reason.UNSUPPORTED_JSON),
        (row("select 1"), Reason.MISSING_PLACEHOLDER),
        (row("select <fill Me>"), Reason.MISSING_PLACEHOLDER),
        (row("<fıllMe>"), Reason.MISSING_PLACEHOLDER),
        (row("<fillMe> <fillMe>"), Reason.MULTIPLE_PLACEHOLDERS),
        (row("<fillMe>", "<fillMe>"), Reason.MULTIPLE_PLACEHOLDERS),
        (row("<FILLME> <fillme>"), Reason.MULTIPLE_PLACEHOLDERS),
        (with_context({"sql_history": "<fillMe>"}), Reason.MULTIPLE_PLACEHOLDERS),
        (with_context({"file_content": "<fillMe>"}).replace("<", "\\\\u003c", 1), Reason.MULTIPLE_PLACEHOLDERS),
        (row("<sql_history><fillMe></sql_history>", "select <fillMe>"), Reason.MULTIPLE_PLACEHOLDERS),
        (with_context({"sql_history": "<FILLME>"}, "select <fillme>"), Reason.MULTIPLE_PLACEHOLDERS),
        (with_context({"sql_history": "<fillMe>"}, "select 1"), Reason.BAD_CONTEXT),
        (with_context({"sql_history": 7}), Reason.BAD_CONTEXT),
        (with_context({"sql_history": True}), Reason.BAD_CONTEXT),
        (with_context({"sql_history": {"a": "b"}}), Reason.BAD_CONTEXT),
        (with_context({"sql_history": ["a", None]}), Reason.BAD_CONTEXT),
        (with_context({"sql_history": [["a"]]}), Reason.BAD_CONTEXT),
        (with_context({"sql_history": "a", "SQL_HISTORY": "b"}), Reason.BAD_CONTEXT),
        (row('{"sql_history": "a", "sql_history": "b"}', "<fillMe>"), Reason.BAD_CONTEXT),
        (row('{"sql_history": "\\ud800"}', "<fillMe>"), Reason.BAD_CONTEXT),
        (row('{"sql_history": NaN}', "<fillMe>"), Reason.BAD_CONTEXT),
        (row('{"sql_history": "a"', "<fillMe>"), Reason.BAD_CONTEXT),
        (row('{"a":' * 100_000, "<fillMe>"), Reason.BAD_CONTEXT),
        (row('["a"]', "<fillMe>"), Reason.BAD_CONTEXT),
        (row("null", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("select 1", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("<sql_history>a", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("<sql_history>", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("a</sql_history>", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("<sql_history>a</sql_history> b", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("<sql_history>a</sql_history><sql_history>b</sql_history>", "<fillMe>"), Reason.BAD_CONTEXT),
        (row("<ddl_context>a</ddl_context>", "<fillMe>"), Reason.BAD_CONTEXT),
    ],
)
def test_rejections(text: str, expected: Reason) -> None:
    assert reason(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (row("<fillMe>"), Completion("", "")),
        (row("select <fillMe> from t"), Completion("select ", " from t")),
        (row("select <FILLME>\r\n"), Completion("select ", "\r\n")),
        (row("'<FILLME>' <fillMe> <fillme>"), Completion("'<FILLME>' ", " <fillme>")),
        (row('{"sql_history": "x"} <fillMe>'), Completion('{"sql_history": "x"} ', "")),
        (row("<sql_history>a</sql_history> <fillMe>"), Completion("<sql_history>a</sql_history> ", "")),
        (row('{"sql_history": "<fillMe>"}'), Completion('{"sql_history": "', '"}')),
        (row("\x00<fillMe>\x00"), Completion("\x00", "\x00")),
        ('[{"text": "<fillMe>\\ud83d\\ude00"}]', Completion("", "\U0001f600")),
        ('[{"text": "a<fillMe>"}]', Completion("a", "")),
        ('[{"text": "a<fillMe>", "id": ' + "9" * 5000 + "}]", Completion("a", "")),
        ('[{"text": "a<fillMe>", "type": "text", "image": null}]', Completion("a", "")),
        (row("<fillMe>", '{"sql_history": "h"}'), Completion("", "", sql_history="h")),
        (row("", "<fillMe>", " "), Completion("", "")),
        ('[{"type": "text", "text": null}, null, {"text": "a<fillMe>"}]', Completion("a", "")),
        (with_context({}), Completion("select ", "")),
        (with_context({"worksheet": "w", "n": 7, "tables": [{}]}), Completion("select ", "")),
        (with_context(dict.fromkeys(CONTEXT_FIELDS)), Completion("select ", "")),
        (with_context({"sql_history": [], "ddl_context": ["a", "", "b"]}), Completion("select ", "", "", "a\n\nb")),
        (with_context({"SQL_History": "a"}), Completion("select ", "", "a")),
        (
            with_context({"sql_history": "a", "ddl_context": "b", "last_few_executed": "c", "file_content": "d"}),
            Completion("select ", "", "a", "b", "c", "d"),
        ),
        (row("<sql_history></sql_history>", "<fillMe>"), Completion("", "")),
        (row(" <sql_history>\n a \n</sql_history>\n", "<fillMe>"), Completion("", "", "\n a \n")),
        (
            row(
                "<sql_history>a</sql_history>",
                '{"sql_history": "b", "ddl_context": ""}',
                '{"ddl_context": "d"}',
                "<fillMe>",
            ),
            Completion("", "", "a\nb", "d"),
        ),
    ],
)
def test_completions(text: str, expected: Completion) -> None:
    assert parse_input(text) == expected


def test_a_rejection_never_quotes_the_text() -> None:
    secret = "hunter2"
    for text in (
        secret,
        row(secret),
        row(secret, "<fillMe>"),
        row(f'{{"{secret}": ', "<fillMe>"),
        f'[{{"{secret}":1}}]',
    ):
        result = parse_input(text)
        assert isinstance(result, Rejection)
        assert secret not in result.detail


texts = st.text(st.characters(exclude_categories=["Cs"]))
plain = texts.filter(lambda text: "<fillme>" not in text.lower())
fragments = st.lists(
    st.sampled_from(
        [
            *(
                "[",
                "]",
                "{",
                "}",
                '"',
                ",",
                ":",
                "\\",
                "\\u00",
                "\n",
                " ",
                "null",
                "NaN",
                "1e999",
                "<fillMe>",
                "<FILLME>",
            ),
            *(
                '[{"type": "text", "text": "',
                '"}, {"text": "',
                '"}]',
                '{\\"sql_history\\": \\"',
                '\\"}',
                "<sql_history>",
            ),
        ]
    )
    | st.text(max_size=3)
).map("".join)


@given(st.text() | fragments | fragments.map(row) | st.tuples(fragments, fragments).map(lambda parts: row(*parts)))
def test_never_raises(text: str) -> None:
    result = parse_input(text)
    if isinstance(result, Completion):
        for part in (result.prefix, result.suffix, *(getattr(result, field) for field in CONTEXT_FIELDS)):
            part.encode()


@given(st.dictionaries(st.sampled_from(CONTEXT_FIELDS), plain), plain, plain, st.booleans(), st.booleans())
def test_well_formed_rows_are_parsed_exactly(
    context: dict[str, str], prefix: str, suffix: str, ascii_only: bool, compact: bool
) -> None:
    separators = (",", ":") if compact else None
    items = [
        {"type": "text", "text": json.dumps(context, ensure_ascii=ascii_only, separators=separators)},
        {"type": "text", "text": f"{prefix}<fillMe>{suffix}"},
    ]
    text = json.dumps(items, ensure_ascii=ascii_only, separators=separators)
    assert parse_input(text) == Completion(prefix, suffix, **context)


@given(st.lists(plain, max_size=3), plain)
def test_the_older_form_is_parsed_exactly(history: list[str], prefix: str) -> None:
    if any("sql_history>" in text for text in history):
        return
    blocks = [f"<sql_history>{text}</sql_history>" for text in history]
    expected = "\n".join(text for text in history if text)
    assert parse_input(row(*blocks, f"{prefix}<fillMe>")) == Completion(prefix, "", expected)


def test_valid_json_is_never_rejected_as_invalid() -> None:
    values = [None, 7, "text", {}, {"text": "<fillMe>"}, [7], [[]], [{}], [{"text": 7}], [{"text": "a", "type": "b"}]]
    for value in values:
        found = parse_input(json.dumps(value))
        assert isinstance(found, Rejection)
        assert found.reason != Reason.INVALID_JSON, value


def test_another_placeholder() -> None:
    assert parse_input(row("select <cursor> -- <fillMe>"), "<CURSOR>") == Completion("select ", " -- <fillMe>")
    assert parse_input(row("a (b* c"), "(B*") == Completion("a ", " c")
    found = parse_input(row("select <fillMe>"), "<cursor>")
    assert isinstance(found, Rejection)
    assert found.detail == "INPUT holds no <cursor>; it holds <fillMe>"


@pytest.mark.parametrize("marker", ["<FILL_ME>", "<|cursor|>", "<fim-fill>", "[MASK]", "{{cursor}}", "<fill-here>"])
def test_a_missing_placeholder_names_markers_of_other_tools(marker: str) -> None:
    found = parse_input(row(f"select {marker} from customer_secret < mask", marker))
    assert found == Rejection(Reason.MISSING_PLACEHOLDER, f"INPUT holds no <fillMe>; it holds {marker}")
