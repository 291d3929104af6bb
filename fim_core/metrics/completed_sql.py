"""SQL with a completion in it: tokens, statements and syntax trees.

A completion is a fragment, such as `SEL` before `ECT`, or the second half of a string. It has a meaning only in context, so
tokens and trees are always those of prefix + completion + suffix.
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

# The warnings of sqlglot quote SQL, which must not be logged.
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
        """The whole document."""
        return self.prefix + self.completion + self.suffix

    @property
    def start(self) -> int:
        """Offset of the completion in `text`, in characters."""
        return len(self.prefix)

    @property
    def end(self) -> int:
        """Offset of the suffix in `text`, in characters."""
        return len(self.prefix) + len(self.completion)

    @cached_property
    def tokens(self) -> list[Token] | None:
        """Tokens of the whole document, or None where a quote or comment is left open."""
        return tokenize(self.text, self.dialect)

    @cached_property
    def statements(self) -> list[str]:
        """The statements that the completion touches, from the cursor to the suffix's first character.

        Statements end at a semicolon token. If the cursor is between two statements, it is the first of them. Empty if the
        document does not tokenize or contains no statement.
        """
        spans = _statement_spans(self.tokens or [])
        touched = [span for span in spans if span[0] <= self.end and self.start <= span[1]]
        before = [span for span in spans if span[1] < self.start]
        return [self.text[first : last + 1] for first, last in touched or before[-1:] or spans[:1]]

    @cached_property
    def trees(self) -> list[exp.Expr] | None:
        """Syntax trees of `statements`; None if there are no statements or one does not parse.

        A statement that sqlglot passes through as an opaque command counts as not parsed, since it can be any text.
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

    None (not applicable) where sqlglot does not parse the statement with the gold completion either. A good completion
    must parse, but that is not sufficient: a made-up column parses.
    """
    return None if gold.trees is None else predicted.trees is not None


def tokenize(sql: str, dialect: str) -> list[Token] | None:
    """Split a text into SQL tokens; None where a quote or comment is left open.

    Unlike in sqlglot's own tokenizers, statements such as `EXECUTE …` are split into tokens like all others.
    """
    try:
        return _tokenizer(dialect).tokenize(sql)
    except SqlglotError:
        return None


def split_statements(sql: str, dialect: str) -> list[str]:
    """Split a text into statements; empty if it does not tokenize."""
    return [sql[first : last + 1] for first, last in _statement_spans(tokenize(sql, dialect) or [])]


def parse_statement(sql: str, dialect: str) -> exp.Expr | None:
    """Parse one statement; None if sqlglot cannot."""
    try:
        trees = Dialect.get_or_raise(dialect).parse(sql)
    except MemoryError:
        raise
    # On invalid SQL, which models write, the parser also raises errors of other types.
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
    """Offsets of the first and last character of each statement, semicolon included."""
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
