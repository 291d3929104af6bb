"""Choice of the middle of a synthetic completion: the cursor's position, and the text that was accepted there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from fim_core.demo.statements import DemoStatement, FragmentKind

MiddleType = Literal["fillMe_identifier", "fillMe_expr", "fillMe_line", "fillMe_clause", "fillMe_empty", "fillMe_start"]

# Shares as in logs of editors: mostly names and expressions, rarely the start of a statement.
SHARES: dict[MiddleType, int] = {
    "fillMe_identifier": 30,
    "fillMe_expr": 22,
    "fillMe_line": 20,
    "fillMe_clause": 13,
    "fillMe_empty": 11,
    "fillMe_start": 4,
}
_TYPES, _WEIGHTS = tuple(SHARES), tuple(SHARES.values())
_FRAGMENTS: dict[MiddleType, FragmentKind] = {
    "fillMe_identifier": "identifier",
    "fillMe_expr": "expr",
    "fillMe_clause": "clause",
}
_WORD_END = re.compile(r"(?<=\w)(?=\W)|(?<=[ ,(])(?=\w)")


@dataclass(frozen=True, slots=True)
class Middle:
    """Characters `start` to `end` of a statement, which a completion inserts."""

    type: MiddleType
    start: int
    end: int


def choose_middle(statement: DemoStatement, rng: Random) -> Middle:
    """Choose what an editor might have completed while this statement was being written."""
    kind = rng.choices(_TYPES, _WEIGHTS)[0]
    if kind == "fillMe_empty":
        return _nothing_missing(statement.text, rng)
    if kind == "fillMe_start":
        return _from_the_start(statement.text, rng)
    if kind == "fillMe_line":
        return _rest_of_line(statement.text, rng)
    spans = [span for span in statement.spans if span.kind == _FRAGMENTS[kind]]
    if not spans:
        return _rest_of_line(statement.text, rng)
    span = rng.choice(spans)
    return Middle(kind, span.start + _typed(span.end - span.start, rng), span.end)


def _typed(length: int, rng: Random) -> int:
    """Characters of a fragment typed before the completion was accepted: none in half of the cases, else up to three."""
    return 0 if rng.random() < 0.5 else min(rng.randint(1, 3), length - 1)


def _nothing_missing(text: str, rng: Random) -> Middle:
    """An empty middle: at the end of the statement, or at the edge of a word inside it."""
    position = len(text) if rng.random() < 0.5 else rng.choice([match.start() for match in _WORD_END.finditer(text)])
    return Middle("fillMe_empty", position, position)


def _from_the_start(text: str, rng: Random) -> Middle:
    """The first word or line, less a few characters that were typed already."""
    end = text.index("\n") if rng.random() < 0.4 else re.match(r"\S+", text).end()  # type: ignore[union-attr]
    typed = 0 if rng.random() < 0.15 else min(rng.randint(1, 4), end - 1)
    return Middle("fillMe_start", typed, end)


def _rest_of_line(text: str, rng: Random) -> Middle:
    """The rest of a line, from the edge of a word on."""
    lines = [match for match in re.finditer(r"[^\n]+", text) if len(match[0]) > 4]
    line = rng.choice(lines)
    edges = [match.start() for match in _WORD_END.finditer(text, line.start(), line.end())] or [line.start() + 1]
    return Middle("fillMe_line", rng.choice(edges), line.end())
