"""The repair only adds escapes, and refuses ambiguous text."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_tokenizers import long_run

from fim_core.records.parse import parse_input
from fim_core.records.repair import repair_context, repair_items
from fim_core.records.schema import Completion, Reason, Rejection


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ('[{"type": "text", "text": "rlike \'\\d+\' <fillMe>"}]', r"rlike '\d+' <fillMe>"),
        (r'[{"text": "\u12 \x é<fillMe>"}]', "\\u12 \\x \u00e9<fillMe>"),
        ('[{"text": "a \\(\\d\\.\\s \n"b" <fillMe>"}]', 'a \\(\\d\\.\\s \n"b" <fillMe>'),
        ("[{\"text\": \"where a = '' or b = 'x'\n<fillMe>\"}]", "where a = '' or b = 'x'\n<fillMe>"),
        ('[{"text": "a\n\t<fillMe>\r\n\x00"}]', "a\n\t<fillMe>\r\n\x00"),
        ('[{"text": "select "a" from "t" <fillMe>"}]', 'select "a" from "t" <fillMe>'),
        ('[{"text": ""a"<fillMe>"b""}]', '"a"<fillMe>"b"'),
        ('[{"text": "select {"a"} ["b"] <fillMe>"}]', 'select {"a"} ["b"] <fillMe>'),
        ('[{"text": "select "a", "b"::int <fillMe>"}]', 'select "a", "b"::int <fillMe>'),
        ('[{"text": "a "b" <fillMe>", "type": "text"}]', 'a "b" <fillMe>'),
        ('[ {"type":"text" , "text" : "a\n<fillMe>" } ]\n', "a\n<fillMe>"),
    ],
)
def test_repaired(text: str, sql: str) -> None:
    prefix, suffix = sql.split("<fillMe>")
    assert parse_input(text) == Completion(prefix, suffix, repaired=True)


@pytest.mark.parametrize(
    "text",
    [
        '[{"text": "select "a", "b": <fillMe>"}]',  # could be another key
        '[{"text": "select "a"}, <fillMe>"}]',  # could be the item's end
        '[{"text": "select "a"] "b"}] <fillMe>"}]',
        r'[{"text": "select \"a\" "b" <fillMe>"}]',  # the same character with and without a backslash
        r'[{"text": "\\ \d <fillMe>"}]',
        # An escape next to a sign that the writer escapes nothing, or not all: it may be two characters of the text.
        *(rf'[{{"text": "{escape} \d <fillMe>"}}]' for escape in (r"\n", r"\t", r"\b", r"\u00e9", r"\/", r"\"", r"\'")),
        *(
            f'[{{"text": "{escape} \n <fillMe>"}}]'
            for escape in (r"\n", r"\t", r"\b", r"\u0000", r"\\", r"\"", r"\x41")
        ),
        r'[{"text": "select "a" \n <fillMe>"}]',
        r'[{"text": "C:\temp\queries <fillMe>"}]',
        r'[{"text": "\n"}, {"text": "\d <fillMe>"}]',  # the same writer
        '[{"text": "select ""a"" <fillMe>"}]',  # may be doubled
        "[{\"text\": \"select ''a''\n <fillMe>\"}]",
        '[{"text": "a\\n\n<fillMe>"}]',
        r'[{"text": "select "a" \\n <fillMe>"}]',
        '[{"text": "select "a" <fillMe>", "n": null}]',  # not the skeleton
        '[{"text": "\\d <fillMe>", "id": "7"}]',
        '[{"text": "\\d <fillMe>"}',
        '[{"text": "\\d <fillMe>\\"}]',
        '[{"text": "a "b" <fillMe>"}, {"text": ""}]',  # an empty item in a damaged row
        '[{""text"": ""<fillMe>""}]',
    ],
)
def test_refused(text: str) -> None:
    result = parse_input(text)
    assert isinstance(result, Rejection)
    assert result.reason == Reason.INVALID_JSON


@pytest.mark.parametrize(
    ("context", "history"),
    [
        ('{"sql_history": "rlike \'\\d\'", "ddl_context": ""}', r"rlike '\d'"),
        ('{"ddl_context": "", "sql_history": "select "a"\nfrom t"}', 'select "a"\nfrom t'),
        ('{"sql_history": "a\tb"}', "a\tb"),
    ],
)
def test_repaired_context(context: str, history: str) -> None:
    text = json.dumps([{"text": context}, {"text": "<fillMe>"}])
    assert parse_input(text) == Completion("", "", history, repaired=True)


@pytest.mark.parametrize(
    "context",
    [
        '{"sql_history": "\\d", "worksheet": "w"}',  # else `worksheet` would end up in the history
        '{"sql_history": "\\d", "ddl_context": null, "file_content": ""}',
        '{"sql_history": "\\d", "sql_history": "b"}',
        '{"sql_history": ["\\d"]}',
        '{"sql_history": "\\d"',
    ],
)
def test_context_refused(context: str) -> None:
    result = parse_input(json.dumps([{"text": context}, {"text": "<fillMe>"}]))
    assert isinstance(result, Rejection)
    assert result.reason == Reason.BAD_CONTEXT


def test_an_object_inserted_without_escaping() -> None:
    text = '[{"text": "{"sql_history": "select 1", "ddl_context": ""}"}, {"text": "<fillMe>"}]'
    # `, "ddl_context":` could be a key of the item: nothing is guessed.
    assert isinstance(parse_input(text), Rejection)
    single = '[{"text": "{"sql_history": "select 1"}"}, {"text": "<fillMe>"}]'
    assert parse_input(single) == Completion("", "", "select 1", repaired=True)


# A slow reference: try every way to call a quote structure or text, and look which are JSON.


def readings(text: str) -> list[tuple[int, str]]:
    """Number of structural quotes and the JSON text of each reading as an array of text items."""
    bare = [m.start() for m in re.finditer(r'\\.|"', text, re.DOTALL) if m[0] == '"']
    found = []
    for choice in product((False, True), repeat=len(bare)):
        structure = {at for at, chosen in zip(bare, choice, strict=True) if chosen}
        mended = _escape_all_but(text, structure)
        try:
            value = json.loads(mended, object_pairs_hook=_items_only)
        except ValueError:
            continue
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            found.append((len(structure), mended))
    return found


def _items_only(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    value = dict(pairs)
    if (
        len(set(keys)) < len(keys)
        or not {"text"} <= set(keys) <= {"text", "type"}
        or value.get("type", "text") != "text"
    ):
        raise ValueError
    return value


def _escape_all_but(text: str, structure: set[int]) -> str:
    out, inside, at = [], False, 0
    while at < len(text):
        char = text[at]
        if at in structure:
            inside = not inside
            out.append(char)
        elif not inside:
            out.append(char)
        elif char == "\\" and re.match(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})', text[at:]):
            out.append(text[at : at + 2])
            at += 1
        elif char in '"\\' or char < " ":
            out.append(json.dumps(char)[1:-1])
        else:
            out.append(char)
        at += 1
    return "".join(out)


pieces = st.sampled_from(
    ['"', "\\", '"}', "}", ",", "]", '", "', ":", "\n", "\\n", '\\"', "\\d", "\\\\", "a", "é", "type", "text"]
)
bodies = st.lists(pieces, max_size=6).map("".join)


@given(st.lists(bodies, min_size=1, max_size=2), st.sampled_from(["", " ", "\n"]))
def test_equals_the_reading_with_the_most_structure(contents: list[str], space: str) -> None:
    text = "[" + ",".join(f'{{"text":{space}"{content}"}}' for content in contents) + "]"
    assume(text.count('"') <= 12)
    fast = repair_items(text)
    if fast is None:
        return
    most = sorted(readings(text), reverse=True)
    assert fast == most[0][1]
    assert len(most) == 1 or most[1][0] < most[0][0]


@given(st.lists(bodies, min_size=1, max_size=3), st.sampled_from([repair_items, repair_context]))
def test_only_backslashes_are_added(contents: list[str], repair: object) -> None:
    if repair is repair_items:
        text = "[" + ",".join(f'{{"text":"{content}"}}' for content in contents) + "]"
    else:
        names = ("sql_history", "ddl_context", "file_content")
        text = "{" + ",".join(f'"{n}":"{c}"' for n, c in zip(names, contents, strict=False)) + "}"
    mended = repair(text)  # type: ignore[operator]
    if mended is None:
        return
    # Each character of the original follows in turn, as it was or as the escape of it: follow every way at once.
    ways = {0}
    for char in text:
        options = {char, json.dumps(char, ensure_ascii=False)[1:-1]}
        ways = {at + len(option) for at in ways for option in options if mended.startswith(option, at)}
    assert len(mended) in ways


careless = st.lists(
    st.tuples(
        st.sampled_from(['"', "\n", "\t", "a", " ", "{", "}", "]", ",", "\\", "'", "é", "\U0001f600"]), st.booleans()
    ),
    max_size=12,
)


@given(careless, careless)
def test_a_writer_that_forgets_some_quotes_and_breaks(
    prefix: list[tuple[str, bool]], suffix: list[tuple[str, bool]]
) -> None:
    """Backslashes escaped, quotes and control characters escaped at random: the result is the exact text, or none."""

    def careful(char: str, escaped: bool) -> str:
        return json.dumps(char, ensure_ascii=False)[1:-1] if escaped or char == "\\" else char

    body = "".join(careful(*each) for each in prefix) + "<fillMe>" + "".join(careful(*each) for each in suffix)
    result = parse_input(f'[{{"type": "text", "text": "{body}"}}]')
    exact = ["".join(char for char, _ in part) for part in (prefix, suffix)]
    if isinstance(result, Completion):
        assert [result.prefix, result.suffix] == exact
    else:
        assert result.reason == Reason.INVALID_JSON


def _nothing(text: str) -> str:
    return text


def _quotes_only(text: str) -> str:
    return text.replace('"', '\\"')


def _all_but(forgotten: str) -> Callable[[str], str]:
    return lambda text: "".join(mark if mark in forgotten else json.dumps(mark)[1:-1] for mark in text)


def _doubled(quote: str) -> Callable[[str], str]:
    return lambda text: text.replace(quote, quote * 2)


WRITERS: dict[str, Callable[[str], str]] = {
    "nothing": _nothing,
    "quotes": _quotes_only,
    "both quotes": lambda text: _quotes_only(text).replace("'", "\\'"),
    "quotes and backslashes": lambda text: text.replace("\\", "\\\\").replace('"', '\\"'),
    "line breaks": lambda text: text.replace("\n", "\\n"),
    "all but quotes": _all_but('"'),
    "all but backslashes": _all_but("\\"),
    "all but control characters": _all_but("\n\t\x07"),
    "all": lambda text: json.dumps(text)[1:-1],
    "all, as UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "repr": lambda text: repr(text)[1:-1],
    "SQL": _doubled("'"),
    "CSV": _doubled('"'),
}
RIGHT = ("all", "all, as UTF-8")

SQL_TEXT = st.lists(
    st.sampled_from(
        [
            *("\\", "\\d+", "\\n", "\\b", "\\t", "\\u0000", "\\x41", "\\'", '\\"', "\\\\", "C:\\temp", "'\\bfoo\\d+'"),
            *('"', "'", "''", '""', '"a"', "'x'", "\n", "\t", "\x07", "é", "\u200b", "a", " ", ",", "{}", "[]"),
        ]
    ),
    max_size=7,
).map("".join)


@pytest.mark.parametrize("writer", WRITERS)
@long_run(short=60)
@given(SQL_TEXT, SQL_TEXT, SQL_TEXT)
def test_what_is_repaired_is_what_was_written(writer: str, history: str, prefix: str, suffix: str) -> None:
    """For every kind of writer, the result is the exact text, or none."""
    assume("sql_history" not in history)
    texts = [f"<sql_history>{history}</sql_history>", f"{prefix}<fillMe>{suffix}"]
    row = "[" + ", ".join(f'{{"type": "text", "text": "{WRITERS[writer](text)}"}}' for text in texts) + "]"
    result = parse_input(row)
    if isinstance(result, Rejection):
        assert writer not in RIGHT
        assert result.reason == Reason.INVALID_JSON
    elif result.repaired or writer in RIGHT:
        assert (result.prefix, result.suffix, result.sql_history) == (prefix, suffix, history)


def test_how_many_rows_are_repaired() -> None:
    """Plausible texts of SQL, by writer: what is certain is kept."""
    texts = [
        *(
            "select 1",
            "select 'a'\nfrom t",
            "rlike '\\d+'",
            'select "a" from "t"',
            "'\\bfoo\\d+'",
            "'C:\\temp'",
            "a\tb",
        ),
        *("split(x, '\\n')", "'it''s'\nx", "x = ''\n", "'{\\\"a\\\"}'", "replace(a, '\\\\', '/')"),
    ]
    kept = Counter()
    for name, write in WRITERS.items():
        for text in texts:
            result = parse_input(f'[{{"text": "{write(text)} <fillMe>"}}]')
            if isinstance(result, Completion) and result.repaired:
                assert result.prefix == text + " ", name
                kept[name] += 1
    assert kept == KEPT


KEPT = {
    "nothing": 5,
    "quotes": 4,
    "both quotes": 1,
    "quotes and backslashes": 3,
    "line breaks": 3,
    "all but quotes": 1,
    "all but backslashes": 1,
    "all but control characters": 3,
    "repr": 1,
    "SQL": 2,
    "CSV": 4,
}
