"""Texts and pictures as parts of Markdown."""

from __future__ import annotations

import re
from urllib.parse import quote

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
# All that may stand in `![plot](<…>)` as it is. `&` would begin an entity.
_PLAIN = " '=/:;,.()-"


def escaped(text: str) -> str:
    """Text that is shown as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def fenced(text: str, language: str = "text") -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def picture(svg: str) -> str:
    """An SVG picture as part of the text itself."""
    return f"![plot](<data:image/svg+xml,{quote(svg, safe=_PLAIN)}>)"
