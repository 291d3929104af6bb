r"""Parsing of INPUT, an editor's state as JSON text, to a completion. The rule for every case:

INPUT                                             result
------------------------------------------------  -----------------------------------------------------------------
nothing, or only white space                      empty_input
`[]`, or only items without text                  empty_input
a list as Python prints it (`[{'type': …`)        python_repr: pandas writes it if it is not given JSON
not JSON (also NaN, Infinity, a second value)     repaired if unambiguous (see repair.py), else invalid_json
nested too deeply to read                         unsupported_json
a JSON string that contains such an array         double_encoded_json
JSON, but not an array (a string, object, null)   unsupported_json
an item that is null, or whose "text" is null     empty context
any other item that is not an object with a text  unsupported_json
  under "text", or whose "type" is not "text"
other keys of an item                             ignored
a key twice in one object                         unsupported_json
a half of a surrogate pair (`\ud800` alone)       unsupported_json: it cannot be encoded as UTF-8
`\u0000`                                          kept: it is text
no `<fillMe>` in any case                         missing_placeholder
one `<fillMe>`, and any in other cases            the cursor; `<FILLME>` is then plain text
no `<fillMe>`, one in another case                the cursor
several, in one item or in several items,         multiple_placeholders: the right one would be a guess
  the context included

`<fillMe>` is the default of `data.placeholder`.

The item with the cursor is the SQL, whatever else it contains (tags, braces, JSON): prefix and suffix are the text before
and after the cursor, verbatim. Items may come in any order. Every other item is context:

a JSON object                                     newer form: texts under the context fields' names in any case
  field missing or null                           empty
  field a text                                    verbatim
  field a list of texts                           the texts joined by a line break
  field a number, boolean, object or other list   bad_context
  other fields                                    ignored
  a field twice, also in another case             bad_context
  half of a surrogate pair in a field             bad_context
  not JSON                                        repaired if unambiguous, else bad_context
`<sql_history>…</sql_history>`, white space       older form: the text between the tags, verbatim
  around it allowed
  either tag again inside                         bad_context
nothing, or only white space                      no context
anything else                                     bad_context
several items with the same field                 joined by a line break, in order, without empty ones; both
                                                  forms may be mixed
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from typing import Any, NoReturn

from fim_core.records.repair import repair_context, repair_items
from fim_core.records.schema import CONTEXT_FIELDS, PLACEHOLDER, Completion, Reason, Rejection

_PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'(?:type|text)'\s*:")
# Markers of other editors and tools, from a closed list of words, so that messages with them show no user text.
_OTHER_MARKERS = re.compile(
    r"<\|?(?:fim[_-]?)?(?:fill|cursor|caret|hole|mask|infill|complete)(?:[_ -]?(?:me|here|in|this|position|middle|\d))?\|?>"
    r"|\{\{ ?(?:fill|cursor|caret)(?:[_ -]?(?:me|here|in))? ?\}\}|\[(?:MASK|CURSOR|FILL_ME|BLANK)\]",
    re.IGNORECASE,
)
_SHOWN_MARKERS = 3
_OPEN, _CLOSE = "<sql_history>", "</sql_history>"


class _Unusable(Exception):
    """The row cannot be used. Carries the rejection up the call stack."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


def parse_input(text: str, placeholder: str = PLACEHOLDER) -> Completion | Rejection:
    """Read one INPUT by the table of this module. Never raises; a rejection never quotes the text."""
    try:
        return _parse(text, placeholder)
    except _Unusable as unusable:
        return unusable.rejection


def format_input(completion: Completion, placeholder: str = PLACEHOLDER) -> str:
    """INPUT in the newer form, from which `parse_input` reads the same completion unless its texts have the placeholder."""
    context = {field: getattr(completion, field) for field in CONTEXT_FIELDS}
    texts = (json.dumps(context, ensure_ascii=False), completion.prefix + placeholder + completion.suffix)
    return json.dumps([{"type": "text", "text": text} for text in texts], ensure_ascii=False)


def _parse(text: str, placeholder: str) -> Completion:
    if not text or text.isspace():
        raise _Unusable(Reason.EMPTY_INPUT, "INPUT is empty")
    if _PYTHON_LIST.match(text):
        raise _Unusable(Reason.PYTHON_REPR, "INPUT is a list as Python prints it, not JSON: export it with json.dumps")
    value, repaired = _decode_or_repair(text, repair_items, Reason.INVALID_JSON, "INPUT")
    items = _texts_of_items(value)
    if not any(item.strip() for item in items):
        raise _Unusable(Reason.EMPTY_INPUT, "INPUT holds no text")
    if repaired and not all(item.strip() for item in items):
        # An item boundary inside unescaped SQL would give an empty item.
        raise _Unusable(Reason.INVALID_JSON, "INPUT is damaged JSON with an empty item")

    where, start, end, pattern = _find_cursor(items, placeholder)
    sql = items.pop(where)
    _check_text(sql, Reason.UNSUPPORTED_JSON, "the SQL")

    context: dict[str, list[str]] = {field: [] for field in CONTEXT_FIELDS}
    for item in items:
        fields, was_repaired = _context_of(item)
        repaired = repaired or was_repaired
        for field, part in fields.items():
            _check_text(part, Reason.BAD_CONTEXT, field)
            # The placeholder may be written with escapes inside the context's JSON.
            if pattern.search(part):
                raise _Unusable(Reason.MULTIPLE_PLACEHOLDERS, f"{placeholder} is in {field} too")
            if part:
                context[field].append(part)
    return Completion(
        prefix=sql[:start],
        suffix=sql[end:],
        **{field: "\n".join(parts) for field, parts in context.items()},
        repaired=repaired,
    )


def _texts_of_items(value: Any) -> list[str]:
    if isinstance(value, str) and _is_array(value):
        raise _Unusable(Reason.DOUBLE_ENCODED_JSON, "INPUT is JSON inside a JSON string: it was encoded twice")
    if not isinstance(value, list):
        raise _Unusable(Reason.UNSUPPORTED_JSON, "INPUT is JSON, but not an array of text items")
    return [_text_of_item(number, item) for number, item in enumerate(value)]


def _text_of_item(number: int, item: Any) -> str:
    text = item.get("text", item) if isinstance(item, dict) else item
    if text is None:
        return ""
    if not isinstance(item, dict) or not isinstance(text, str) or item.get("type", "text") != "text":
        raise _Unusable(Reason.UNSUPPORTED_JSON, f"item {number} of INPUT is not a text item")
    return text


def _is_array(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=16)
def _patterns(placeholder: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The placeholder as it is written, and in any case."""
    literal = re.escape(placeholder)
    return re.compile(literal), re.compile(literal, re.IGNORECASE | re.ASCII)


def _find_cursor(items: list[str], placeholder: str) -> tuple[int, int, int, re.Pattern[str]]:
    """Item, start and end of the only placeholder, and the pattern that found it."""
    for pattern in _patterns(placeholder):
        hits = ((number, *hit.span(), pattern) for number, item in enumerate(items) for hit in pattern.finditer(item))
        found = list(islice(hits, 2))
        if len(found) > 1:
            raise _Unusable(Reason.MULTIPLE_PLACEHOLDERS, f"INPUT holds more than one {placeholder}")
        if found:
            return found[0]
    others = sorted({found[0].lower(): found[0] for item in items for found in _OTHER_MARKERS.finditer(item)}.values())
    seen = f"; it holds {', '.join(others[:_SHOWN_MARKERS])}" if others else ""
    raise _Unusable(Reason.MISSING_PLACEHOLDER, f"INPUT holds no {placeholder}{seen}")


# Consecutive rows are of one worksheet and share their context.
@lru_cache(maxsize=16)
def _context_of(item: str) -> tuple[dict[str, str], bool]:
    """The context fields of an item without a cursor, and whether its JSON was repaired."""
    stripped = item.strip()
    if not stripped:
        return {}, False
    if stripped.startswith(_OPEN) and stripped.endswith(_CLOSE) and len(stripped) >= len(_OPEN) + len(_CLOSE):
        history = stripped[len(_OPEN) : -len(_CLOSE)]
        if _OPEN in history or _CLOSE in history:
            raise _Unusable(Reason.BAD_CONTEXT, f"more than one {_OPEN} in an item")
        return {"sql_history": history}, False
    if not stripped.startswith("{"):
        raise _Unusable(Reason.BAD_CONTEXT, "an item is neither SQL with the placeholder nor a context")

    value, repaired = _decode_or_repair(stripped, repair_context, Reason.BAD_CONTEXT, "the context")
    fields: dict[str, str] = {}
    for key, part in value.items():
        field = key.lower()
        if field in CONTEXT_FIELDS:
            if field in fields:
                raise _Unusable(Reason.BAD_CONTEXT, f"{field} is given twice")
            fields[field] = _context_text(field, part)
    return fields, repaired


def _context_text(field: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    raise _Unusable(Reason.BAD_CONTEXT, f"{field} is neither a text nor a list of texts")


def _decode_or_repair(text: str, repair: Callable[[str], str | None], reason: Reason, what: str) -> tuple[Any, bool]:
    """The JSON value of `text`, and whether it was repaired."""
    try:
        return _decode(text, reason, what), False
    except json.JSONDecodeError as error:
        with_escapes = repair(text)
        if with_escapes is None:
            raise _Unusable(reason, f"{what} is not JSON: {error.msg} at character {error.pos}") from error
    try:
        return _decode(with_escapes, reason, what), True
    except json.JSONDecodeError as error:
        raise _Unusable(reason, f"{what} is not JSON, even with escapes added") from error


class _BadValue(Exception):
    """JSON that is well-formed, or nearly, but ambiguous."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _BadValue("holds an object with the same key twice")
    return value


class _NotJson(_BadValue):
    """NaN and Infinity, which Python's reader takes for numbers."""


def _constant(_: str) -> NoReturn:
    raise _NotJson("is not JSON: NaN or Infinity")


# No rule needs the value of a number, and huge integers are slow to parse.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_int=float)


def _decode(text: str, reason: Reason, what: str) -> Any:
    readable = Reason.UNSUPPORTED_JSON if reason is Reason.INVALID_JSON else reason
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise _Unusable(readable, f"{what} is nested too deeply") from error
    except _NotJson as error:
        raise _Unusable(reason, f"{what} {error}") from error
    except _BadValue as error:
        raise _Unusable(readable, f"{what} {error}") from error


def _check_text(text: str, reason: Reason, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _Unusable(reason, f"{what} holds half of a surrogate pair, which is not valid text") from error
