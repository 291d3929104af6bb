r"""One bounded repair of damaged JSON: it adds escapes inside strings, or it gives up.

Exporters that build JSON by hand leave three kinds of damage inside strings: a backslash that starts no JSON escape
(`'\d+'`), raw control characters (a line break), and quotes without a backslash. The repair knows only the two shapes
that exports have, an array of text items and a context object of texts, and reads them by their skeleton:

    [{"type": "text", "text": "…"}, {"type": "text", "text": "…"}]          `"type"` before, after, or left out
    {"sql_history": "…", "ddl_context": "…", …}                             any of the context fields

Whatever lies between two pieces of skeleton is the body of a string, and only there backslashes are added. Removing
them gives the original again, so no character of the user's is lost, added or moved to another field. The reading must
also be the only one; the repair gives up where it is not:

- a quote in a body that could also end the string, because `, "key":`, or `}` and then `,` or `]`, follows it;
- one character both escaped and unescaped in the same body (`\"` and `"`, `\\` and `\d`, `\n` and a raw line break):
  a writer that did not escape it may have meant the backslash as well;
- unescaped quotes beside `\\`: an object that was put into the string without any escaping looks the same.

Escapes that JSON defines keep their meaning. Time is linear in the length of the text.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise

from fim_core.records.schema import CONTEXT_FIELDS

_SPACE = r"[ \t\r\n]*"


def _pattern(text: str) -> re.Pattern[str]:
    """A regular expression in which a blank stands for JSON's optional white space."""
    return re.compile(text.replace(" ", _SPACE))


_TYPE = '"type" : "text"'
_ITEM_START = rf'\{{ (?:{_TYPE} , )?"text" : "'
_ITEM_END = rf'" (?:, {_TYPE} )?\}}'
_KEY = rf'"(?:{"|".join(CONTEXT_FIELDS)})" : "'

_ITEMS = (_pattern(rf" \[ {_ITEM_START}"), _pattern(f"{_ITEM_END} , {_ITEM_START}"), _pattern(rf"{_ITEM_END} \] \Z"))
_CONTEXT = (_pattern(rf" \{{ {_KEY}"), _pattern(f'" , {_KEY}'), _pattern(r'" \} \Z'))

_ESCAPE_OR_PAIR = re.compile(r"\\.", re.DOTALL)
_ESCAPE_OR_DAMAGE = re.compile(r'(\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))|[\\"\x00-\x1f]')
# A key may hold anything but a quote; `::` is SQL's cast, which JSON never has.
_COULD_END_HERE = _pattern(r'" (?:, "[^"]*" :(?!:)|\} [,\]])')


def repair_items(text: str) -> str | None:
    """The array of text items with the missing escapes added, or None where that is not certain."""
    return _repair(text, *_ITEMS)


def repair_context(text: str) -> str | None:
    """The context object with the missing escapes added, or None where that is not certain."""
    return _repair(text, *_CONTEXT)


def _repair(text: str, start: re.Pattern[str], between: re.Pattern[str], end: re.Pattern[str]) -> str | None:
    # Structure is made of quotes that no backslash precedes: blank out the pairs, keeping every position.
    masked = _ESCAPE_OR_PAIR.sub("xx", text)
    first = start.match(masked)
    last = end.search(masked, first.end()) if first else None
    if first is None or last is None:
        return None

    pieces = [first, *between.finditer(masked, first.end(), last.start()), last]
    repaired = [first[0]]
    for opening, closing in pairwise(pieces):
        body = _escape_body(text, masked, opening.end(), closing.start())
        if body is None:
            return None
        repaired += (body, closing[0])
    return "".join(repaired)


def _escape_body(text: str, masked: str, start: int, end: int) -> str | None:
    """`text[start:end]` as the body of a JSON string; None where it can be read in more than one way."""
    quotes = masked.find('"', start, end) >= 0
    if quotes:
        # Starts at each quote and ends at the next at the latest, the closing quote of this body being the last.
        other_end = _COULD_END_HERE.search(masked, start)
        if other_end and other_end.start() < end:
            return None

    escaped: set[str] = set()
    unescaped: set[str] = set()

    def escape(found: re.Match[str]) -> str:
        if found[1]:
            escaped.add(found[1])
            return found[1]
        unescaped.add(found[0])
        return json.dumps(found[0])[1:-1]

    body = _ESCAPE_OR_DAMAGE.sub(escape, text[start:end])
    if unescaped & {json.loads(f'"{escape}"') for escape in escaped} or (quotes and r"\\" in escaped):
        return None
    return body
