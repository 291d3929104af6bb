r"""Repair of damaged JSON by adding missing escapes inside strings, where only one repair is possible.

Exporters that build JSON by hand put text between the quotes unescaped: a backslash that starts no JSON escape
(`'\d+'`), raw control characters (a line break), and quotes without a backslash. The repair handles only the two forms
that exports have, an array of text items and a context object of texts, and reads them by their skeleton:

    [{"type": "text", "text": "…"}, {"type": "text", "text": "…"}]          `"type"` before, after, or left out
    {"sql_history": "…", "ddl_context": "…", …}                             any of the context fields

The text between two pieces of the skeleton is the body of a string, and backslashes are added only there. Removing them
restores the original, so no user text is lost, added or moved to another field.

Taken literally, every damaged row could come from a writer that escapes nothing. The row is accepted only if no other
kind of writer could have meant a different text, in any of its bodies:

- no escape of JSON (`\n`, `\"`, `\\`, `\u00e9`), of Python's `repr` or of JavaScript (`\'`, `\x41`): a writer that
  forgets some characters may have escaped others, and then `\n` was a line break;
- no quotes that come in pairs only (`""a""` or `''a''`, as SQL and CSV double them);
- no quote that could also end the string, because `, "key":`, or `}` and then `,` or `]`, follows it.

Anything that looks like the skeleton is read as such: SQL that contains a piece of it (`"}, {"text": "`) would be read as two items.

Time is linear in the length of the text.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise

from fim_core.records.schema import CONTEXT_FIELDS

_SPACE = r"[ \t\r\n]*"


def _pattern(text: str) -> re.Pattern[str]:
    """Compile a regular expression in which a blank matches JSON's optional white space."""
    return re.compile(text.replace(" ", _SPACE))


_TYPE = '"type" : "text"'
_ITEM_START = rf'\{{ (?:{_TYPE} , )?"text" : "'
_ITEM_END = rf'" (?:, {_TYPE} )?\}}'
_KEY = rf'"(?:{"|".join(CONTEXT_FIELDS)})" : "'

_ITEMS = (_pattern(rf" \[ {_ITEM_START}"), _pattern(f"{_ITEM_END} , {_ITEM_START}"), _pattern(rf"{_ITEM_END} \] \Z"))
_CONTEXT = (_pattern(rf" \{{ {_KEY}"), _pattern(f'" , {_KEY}'), _pattern(r'" \} \Z'))

_ESCAPE_OR_PAIR = re.compile(r"\\.", re.DOTALL)
_ESCAPE = re.compile(r"""\\(?:["'`\\/abfnrtv0]|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|U[0-9a-fA-F]{8})""")
_DAMAGE = re.compile(r'[\\"\x00-\x1f]')
# A key may hold anything but a quote; `::` is SQL's cast, which JSON never has.
_COULD_END_HERE = _pattern(r'" (?:, "[^"]*" :(?!:)|\} [,\]])')


def repair_items(text: str) -> str | None:
    """The array of text items with the missing escapes added, or None where that is not certain."""
    return _repair(text, *_ITEMS)


def repair_context(text: str) -> str | None:
    """The context object with the missing escapes added, or None where that is not certain."""
    return _repair(text, *_CONTEXT)


def _repair(text: str, start: re.Pattern[str], between: re.Pattern[str], end: re.Pattern[str]) -> str | None:
    # Quotes of the skeleton have no backslash before them: blank out the pairs of backslash and character, same length.
    masked = _ESCAPE_OR_PAIR.sub("xx", text)
    first = start.match(masked)
    last = end.search(masked, first.end()) if first else None
    if first is None or last is None:
        return None

    pieces = [first, *between.finditer(masked, first.end(), last.start()), last]
    places = [(opening.end(), closing.start()) for opening, closing in pairwise(pieces)]
    if any(_could_end_earlier(masked, start, end) for start, end in places):
        return None
    texts = [text[start:end] for start, end in places]
    if any(_ESCAPE.search(body) for body in texts) or _has_doubled_quotes(texts):
        return None
    escaped = [_DAMAGE.sub(lambda found: json.dumps(found[0])[1:-1], body) for body in texts]
    return first[0] + "".join(body + closing[0] for body, closing in zip(escaped, pieces[1:], strict=True))


def _could_end_earlier(masked: str, start: int, end: int) -> bool:
    if masked.find('"', start, end) < 0:
        return False
    # Search from each quote to the next at most; the closing quote of this body is the last one.
    other_end = _COULD_END_HERE.search(masked, start)
    return other_end is not None and other_end.start() < end


def _has_doubled_quotes(bodies: list[str]) -> bool:
    """Whether all quotes of one kind come in pairs, as if the writer had doubled them."""
    for quote in "\"'":
        runs = [len(run) for body in bodies for run in re.findall(f"{quote}+", body)]
        if runs and all(length % 2 == 0 for length in runs):
            return True
    return False
