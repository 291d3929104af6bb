"""Masks: the spans of a query that a model has to complete, by kind."""

from __future__ import annotations

from collections.abc import Callable, Collection
from random import Random

from sqlglot import Token, TokenType

from fim_core.metrics.completed_sql import tokenize

Span = tuple[int, int]
"""Offsets `start` and `end` of characters in a query."""

_CLAUSES = ("FROM", "WHERE", "JOIN", "GROUP BY", "HAVING", "ORDER BY", "QUALIFY", "LIMIT")
_OPENERS = {"SELECT", "WHERE", "AND", "OR", "ON", "HAVING", "WHEN", "THEN", ",", "BY"}
_CLOSERS = {"AS", "AND", "OR", "THEN", "ELSE", "ORDER BY", "DESC", ",", ";"}


def identifier_masks(query: str, names: Collection[str]) -> list[Span]:
    """Every table or column in `names`."""
    return [(t.start, t.end + 1) for t in _tokens(query) if t.token_type == TokenType.VAR and t.text in names]


def expression_masks(query: str, names: Collection[str]) -> list[Span]:
    """Select items, conditions and sort keys of at least three tokens, in one line and with balanced brackets."""
    spans = []
    offset = 0
    for line in query.splitlines(keepends=True):
        tokens = [t for t in _tokens(query) if offset <= t.start < offset + len(line)]
        starts = [i for i in range(1, len(tokens)) if tokens[i - 1].text.split()[-1].upper() in _OPENERS]
        for first in starts:
            last = _end_of_expression(tokens, first)
            if last - first >= 2:
                spans.append((tokens[first].start, tokens[last].end + 1))
        offset += len(line)
    return spans


def clause_masks(query: str, names: Collection[str]) -> list[Span]:
    """Every line that begins with the keyword of a clause, without indentation and final semicolon."""
    spans = []
    for start, end in _lines(query):
        text = query[start:end]
        body = text.lstrip()
        if body.startswith(_CLAUSES):
            spans.append((start + len(text) - len(body), start + len(text.rstrip(";"))))
    return spans


def multi_line_masks(query: str, names: Collection[str]) -> list[Span]:
    """Two or three whole lines after the first line, without the final semicolon."""
    lines = _lines(query)
    spans = []
    for count in (2, 3):
        for first in range(1, len(lines) - count + 1):
            start, end = lines[first][0], lines[first + count - 1][1]
            text = query[start:end].rstrip(";")
            if text.count("(") == text.count(")"):
                spans.append((start, start + len(text)))
    return spans


def nothing_masks(query: str, names: Collection[str]) -> list[Span]:
    """Empty spans at the ends of lines and names, where nothing is missing."""
    ends = {end for _, end in _lines(query)} | {end for _, end in identifier_masks(query, names)}
    return [(end, end) for end in sorted(ends)]


MASKS: dict[str, Callable[[str, Collection[str]], list[Span]]] = {
    "identifier": identifier_masks,
    "expression": expression_masks,
    "clause": clause_masks,
    "multi_line": multi_line_masks,
    "nothing": nothing_masks,
}


def choose_mask(kind: str, query: str, names: Collection[str], rng: Random) -> Span | None:
    """Choose a span of a kind at random; None if the query has none."""
    spans = MASKS[kind](query, names)
    return rng.choice(spans) if spans else None


def _tokens(query: str) -> list[Token]:
    tokens = tokenize(query, "snowflake")
    assert tokens is not None, "queries of the benchmark are valid SQL"
    return tokens


def _end_of_expression(tokens: list[Token], first: int) -> int:
    """Index of the last token before a comma, an alias or an unmatched closing bracket."""
    depth = 0
    for i in range(first, len(tokens)):
        if tokens[i].token_type == TokenType.R_PAREN:
            depth -= 1
        if depth < 0 or (depth == 0 and tokens[i].text.upper() in _CLOSERS):
            return i - 1
        if tokens[i].token_type == TokenType.L_PAREN:
            depth += 1
    return len(tokens) - 1 if depth == 0 else first


def _lines(query: str) -> list[Span]:
    spans = []
    start = 0
    for line in query.splitlines(keepends=True):
        spans.append((start, start + len(line.rstrip("\n"))))
        start += len(line)
    return spans
