"""The repair adds escapes and nothing else, and gives up where a text can be read in two ways."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fim_core.records.parse import parse_input
from fim_core.records.repair import repair_context, repair_items
from fim_core.records.schema import Completion, Reason, Rejection


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        (r'[{"type": "text", "text": "rlike \'\d+\' <fillMe>"}]', r"rlike \'\d+\' <fillMe>"),
        (r'[{"text": "\u12 \x \u00e9<fillMe>"}]', "\\u12 \\x \u00e9<fillMe>"),
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
        '[{"text": "a\\n\n<fillMe>"}]',
        r'[{"text": "select "a" \\n <fillMe>"}]',
        '[{"text": "select "a" <fillMe>", "n": null}]',  # not the skeleton
        '[{"text": "\\d <fillMe>", "id": "7"}]',
        '[{"text": "\\d <fillMe>"}',
        '[{"text": "\\d <fillMe>\\"}]',
        "[{'text': '<fillMe>'}]",
        '[{"text": "a "b" <fillMe>"}, {"text": ""}]',  # an empty item in a damaged row
        '[{""text"": ""<fillMe>""}]',
    ],
)
def test_given_up(text: str) -> None:
    result = parse_input(text)
    assert isinstance(result, Rejection)
    assert result.reason == Reason.INVALID_JSON


@pytest.mark.parametrize(
    ("context", "history"),
    [
        (r'{"sql_history": "rlike \'\d\'", "ddl_context": ""}', r"rlike \'\d\'"),
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
def test_context_given_up(context: str) -> None:
    result = parse_input(json.dumps([{"text": context}, {"text": "<fillMe>"}]))
    assert isinstance(result, Rejection)
    assert result.reason == Reason.BAD_CONTEXT


def test_an_object_put_in_without_escaping() -> None:
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
    """Backslashes escaped, quotes and control characters at whim: the exact text comes back, or none."""

    def careful(char: str, escaped: bool) -> str:
        return json.dumps(char, ensure_ascii=False)[1:-1] if escaped or char == "\\" else char

    body = "".join(careful(*each) for each in prefix) + "<fillMe>" + "".join(careful(*each) for each in suffix)
    result = parse_input(f'[{{"type": "text", "text": "{body}"}}]')
    exact = ["".join(char for char, _ in part) for part in (prefix, suffix)]
    if isinstance(result, Completion):
        assert [result.prefix, result.suffix] == exact
    else:
        assert result.reason == Reason.INVALID_JSON


@given(st.lists(st.sampled_from(["\\d", "\\s+", "\\'", "\\.", "\\(", "a", '"', "\n", " "]), min_size=1))
def test_a_writer_that_forgets_backslashes(parts: list[str]) -> None:
    sql = "".join(parts)
    body = json.dumps(sql)[1:-1].replace("\\\\", "\\")
    result = parse_input(f'[{{"text": "{body}<fillMe>"}}]')
    assert result == Completion(sql, "", repaired="\\" in sql)
