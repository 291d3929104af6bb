"""A completion in its place: the SQL around it, its tokens, and the statements that it is part of.

A completion is a fragment, such as `SEL` before `ECT`, or the second half of a string. What it means only shows in
context, so tokens and trees are always those of prefix + completion + suffix.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

from sqlglot import Token, TokenType, exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.tokens import Tokenizer

# Its warnings quote the SQL that they are about.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class CompletedSql:
    """Prefix, completion and suffix of one row, in a sqlglot dialect."""

    prefix: str
    completion: str
    suffix: str
    dialect: str

    @property
    def text(self) -> str:
        """The whole document with the completion in it."""
        return self.prefix + self.completion + self.suffix

    @property
    def start(self) -> int:
        """Where the completion begins in `text`, in characters."""
        return len(self.prefix)

    @property
    def end(self) -> int:
        """Where the suffix begins in `text`, in characters."""
        return len(self.prefix) + len(self.completion)

    @cached_property
    def tokens(self) -> list[Token] | None:
        """Tokens of the whole document, or None where a quote or comment stays open."""
        return tokenize(self.text, self.dialect)

    @cached_property
    def statements(self) -> list[str]:
        """The statements that the completion touches, from the cursor to the suffix's first character.

        Statements end at a semicolon token. Where the cursor stands between two of them, it is the one before. Empty
        when the document does not tokenize or holds no statement.
        """
        spans = _statement_spans(self.tokens or [])
        touched = [span for span in spans if span[0] <= self.end and self.start <= span[1]]
        before = [span for span in spans if span[1] < self.start]
        return [self.text[first : last + 1] for first, last in touched or before[-1:] or spans[:1]]

    @cached_property
    def trees(self) -> list[exp.Expr] | None:
        """Syntax trees of `statements`; None when there are none, or one is not understood.

        What sqlglot merely passes through as an opaque command counts as not understood: it accepts anything.
        """
        trees = [parse_statement(statement, self.dialect) for statement in self.statements]
        return [tree for tree in trees if tree] if trees and all(trees) else None

    @cached_property
    def earlier_definitions(self) -> list[str]:
        """The CREATE statements of the document before the completion."""
        spans = _statement_spans(self.tokens or [])
        statements = [self.text[first : last + 1] for first, last in spans if last < self.start]
        return [statement for statement in statements if statement.lstrip()[:6].upper() == "CREATE"]


def parses(gold: CompletedSql, predicted: CompletedSql) -> bool | None:
    """Whether the statements that the prediction touches have a syntax tree.

    None, not applicable, where sqlglot does not understand the statement with the gold completion either: then its
    verdict on the prediction says nothing. Necessary for a good completion, and far from enough: a made-up column
    parses.
    """
    return None if gold.trees is None else predicted.trees is not None


def tokenize(sql: str, dialect: str) -> list[Token] | None:
    """SQL tokens of a text, or None where a quote or comment stays open.

    Statements such as `EXECUTE …` are split into tokens like all others, which sqlglot's own tokenizers do not.
    """
    try:
        return _tokenizer(dialect).tokenize(sql)
    except SqlglotError:
        return None


def split_statements(sql: str, dialect: str) -> list[str]:
    """The statements of a text; none where it does not tokenize."""
    return [sql[first : last + 1] for first, last in _statement_spans(tokenize(sql, dialect) or [])]


def parse_statement(sql: str, dialect: str) -> exp.Expr | None:
    """The syntax tree of one statement, or None where sqlglot does not understand it."""
    try:
        trees = Dialect.get_or_raise(dialect).parse(sql)
    except MemoryError:
        raise
    # On broken SQL, which models write, the parser also fails with errors of other kinds.
    except Exception:
        return None
    if len(trees) != 1 or trees[0] is None or isinstance(trees[0], exp.Command):
        return None
    return trees[0]


@cache
def _tokenizer(dialect: str) -> Tokenizer:
    class WithoutCommands(Dialect.get_or_raise(dialect).tokenizer_class):  # type: ignore[misc]
        COMMANDS: ClassVar[set[TokenType]] = set()

    return WithoutCommands(dialect=dialect)


def _statement_spans(tokens: list[Token]) -> list[tuple[int, int]]:
    """First and last character of each statement, its semicolon included."""
    spans = []
    first: int | None = None
    for token in tokens:
        if first is None and token.token_type != TokenType.SEMICOLON:
            first = token.start
        if first is not None and token.token_type == TokenType.SEMICOLON:
            spans.append((first, token.end))
            first = None
    if first is not None:
        spans.append((first, tokens[-1].end))
    return spans
