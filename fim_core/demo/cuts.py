"""Where a cursor may have stood in a statement, and what the editor then completed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from fim_core.demo.statements import PartKind, Statement

CutType = Literal["fillMe_identifier", "fillMe_expr", "fillMe_line", "fillMe_clause", "fillMe_empty", "fillMe_start"]

# Shares as editors log them: mostly names and expressions, seldom the start of a statement.
SHARES: dict[CutType, int] = {
    "fillMe_identifier": 30,
    "fillMe_expr": 22,
    "fillMe_line": 20,
    "fillMe_clause": 13,
    "fillMe_empty": 11,
    "fillMe_start": 4,
}
_TYPES, _WEIGHTS = tuple(SHARES), tuple(SHARES.values())
_PARTS: dict[CutType, PartKind] = {
    "fillMe_identifier": "identifier",
    "fillMe_expr": "expr",
    "fillMe_clause": "clause",
}
_WORD_END = re.compile(r"(?<=\w)(?=\W)|(?<=[ ,(])(?=\w)")


@dataclass(frozen=True, slots=True)
class Cut:
    """A statement with the characters `start` to `end` missing."""

    type: CutType
    start: int
    end: int


def cut_statement(statement: Statement, rng: Random) -> Cut:
    """One way in which an editor could have met this statement while it was written."""
    kind = rng.choices(_TYPES, _WEIGHTS)[0]
    if kind == "fillMe_empty":
        return _nothing_missing(statement.text, rng)
    if kind == "fillMe_start":
        return _from_the_start(statement.text, rng)
    if kind == "fillMe_line":
        return _rest_of_line(statement.text, rng)
    spans = [span for span in statement.spans if span.kind == _PARTS[kind]]
    if not spans:
        return _rest_of_line(statement.text, rng)
    span = rng.choice(spans)
    return Cut(kind, span.start + _typed(span.end - span.start, rng), span.end)


def _typed(length: int, rng: Random) -> int:
    """Characters of a part that were typed before the completion came: none for half of them, else up to three."""
    return 0 if rng.random() < 0.5 else min(rng.randint(1, 3), length - 1)


def _nothing_missing(text: str, rng: Random) -> Cut:
    """At the end of a whole statement, or at a place inside it where nothing is to be added."""
    position = len(text) if rng.random() < 0.5 else rng.choice([match.start() for match in _WORD_END.finditer(text)])
    return Cut("fillMe_empty", position, position)


def _from_the_start(text: str, rng: Random) -> Cut:
    """The first word, or the first line, after at most a few of its characters."""
    end = text.index("\n") if rng.random() < 0.4 else re.match(r"\S+", text).end()  # type: ignore[union-attr]
    typed = 0 if rng.random() < 0.15 else min(rng.randint(1, 4), end - 1)
    return Cut("fillMe_start", typed, end)


def _rest_of_line(text: str, rng: Random) -> Cut:
    """From a word's edge to the end of its line."""
    lines = [match for match in re.finditer(r"[^\n]+", text) if len(match[0]) > 4]
    line = rng.choice(lines)
    edges = [match.start() for match in _WORD_END.finditer(text, line.start(), line.end())] or [line.start() + 1]
    return Cut("fillMe_line", rng.choice(edges), line.end())
