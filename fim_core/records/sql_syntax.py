"""Positions of the statements of an SQL text, and of the syntax nodes of a statement."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ErrorLevel, SqlglotError
from sqlglot.tokens import Token, TokenType

from fim_core.records.sql_blocks import statement_end

LONGEST_PARSED = 20_000
"""Longer statements (in characters) are not parsed; tokens and brackets are used in place of nodes. Most are bulk inserts."""

_OPENING = {TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE}
_CLOSING = {TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END}
# sqlglot gives positions only to names and literals; these tables add the keywords before a clause's first name.
_CLAUSES = (
    exp.Select,
    exp.From,
    exp.Join,
    exp.Where,
    exp.Group,
    exp.Having,
    exp.Qualify,
    exp.Order,
    exp.Limit,
    exp.Case,
)
_CLAUSE_KEYWORDS = {
    TokenType.SELECT,
    TokenType.DISTINCT,
    TokenType.FROM,
    TokenType.JOIN,
    TokenType.LEFT,
    TokenType.RIGHT,
    TokenType.FULL,
    TokenType.INNER,
    TokenType.OUTER,
    TokenType.CROSS,
    TokenType.NATURAL,
    TokenType.LATERAL,
    TokenType.WHERE,
    TokenType.GROUP_BY,
    TokenType.HAVING,
    TokenType.QUALIFY,
    TokenType.ORDER_BY,
    TokenType.LIMIT,
    TokenType.CASE,
    TokenType.WHEN,
}

Span = tuple[int, int]
LONGEST_SPAN = 512
"""Characters of the longest middle: nobody waits for a completion of several screens."""


@dataclass(frozen=True)
class Statement:
    """One statement with the comments before it and its semicolon.

    is_definition: it begins with CREATE. spans: computes start and end (exclusive) of the syntax nodes within
    `text` of at most LONGEST_SPAN characters.
    """

    text: str
    is_definition: bool
    spans: Callable[[], list[Span]]


def read_statements(text: str, dialect: str) -> list[Statement] | None:
    """Split a text into statements, or return None if it cannot be tokenized. Comments after the last are dropped."""
    sql = Dialect.get_or_raise(dialect)
    try:
        tokens = sql.tokenize(text)
    except SqlglotError:
        return None

    statements: list[Statement] = []
    start = first = 0
    while first < len(tokens):
        last = statement_end(tokens, first)
        end = tokens[min(last, len(tokens) - 1)].end + 1
        if last > first:
            statements.append(_statement(text, start, end, list(tokens[first:last]), sql))
        start, first = end, last + 1
    return statements


def _statement(text: str, start: int, end: int, tokens: list[Token], sql: Dialect) -> Statement:
    start += len(text[start:end]) - len(text[start:end].lstrip())

    def spans() -> list[Span]:
        found = {(first - start, last - start) for first, last in _spans(text, tokens, sql)}
        return sorted(span for span in found if span[1] - span[0] <= LONGEST_SPAN)

    return Statement(text[start:end], tokens[0].token_type == TokenType.CREATE, spans)


def _spans(text: str, tokens: list[Token], sql: Dialect) -> Iterator[Span]:
    """Nodes of the syntax tree; without a tree, single tokens and whole brackets."""
    ranges: list[Span] = []
    if tokens[-1].end - tokens[0].start < LONGEST_PARSED:
        ranges = list(_node_ranges(text, tokens, sql))
    brackets = _Brackets(tokens)
    for first, last in ranges or [(at, at) for at in range(len(tokens))]:
        if tokens[last].end - tokens[first].start < LONGEST_SPAN and (whole := brackets.balanced(first, last)):
            yield tokens[whole[0]].start, tokens[whole[1]].end + 1


def _node_ranges(text: str, tokens: list[Token], sql: Dialect) -> Iterator[Span]:
    """First and last token of each node whose position the tree has."""
    starts = [token.start for token in tokens]
    for tree in _parse(text, tokens, sql):
        spans: dict[int, Span] = {}
        # Children before their parents: a node reaches from its first leaf to its last.
        for node in reversed(list(tree.bfs())):
            parts = [spans[id(child)] for child in node.iter_expressions() if id(child) in spans]
            if "start" in node.meta:
                parts.append((node.meta["start"], node.meta["end"]))
            if not parts:
                continue
            spans[id(node)] = start, end = min(a for a, _ in parts), max(b for _, b in parts)
            first, last = bisect_left(starts, start), bisect_right(starts, end) - 1
            if isinstance(node, _CLAUSES):
                while first > 0 and tokens[first - 1].token_type in _CLAUSE_KEYWORDS:
                    first -= 1
            if first <= last:
                yield first, last


def _parse(text: str, tokens: list[Token], sql: Dialect) -> list[exp.Expr]:
    # sqlglot logs what it cannot parse, and logs must not quote user text.
    log = logging.getLogger("sqlglot")
    enabled, log.disabled = log.disabled, True
    try:
        trees = sql.parser(error_level=ErrorLevel.RAISE).parse(tokens, text)
    except Exception:  # any failure on arbitrary SQL only means fewer nodes
        return []
    finally:
        log.disabled = enabled
    return [tree for tree in trees if tree is not None]


class _Brackets:
    """Nesting depth of brackets between the tokens of a statement."""

    def __init__(self, tokens: list[Token]) -> None:
        self._depths = [0, *accumulate(map(_depth, tokens))]
        """Open brackets before each token, and after the last."""
        self._places: dict[int, list[int]] = {}
        for place, depth in enumerate(self._depths):
            self._places.setdefault(depth, []).append(place)

    def balanced(self, first: int, last: int) -> Span | None:
        """The range of tokens, extended until its brackets are balanced; None if that is impossible."""
        places = self._places[min(self._depths[first : last + 2])]
        before, after = bisect_right(places, first) - 1, bisect_left(places, last + 1)
        return None if before < 0 or after == len(places) else (places[before], places[after] - 1)


def _depth(token: Token) -> int:
    return (token.token_type in _OPENING) - (token.token_type in _CLOSING)
