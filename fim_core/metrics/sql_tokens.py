"""Comparison of two completions as SQL tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlglot import Token, TokenType

from fim_core.metrics.completed_sql import CompletedSql

_NAMES = frozenset({TokenType.VAR, TokenType.IDENTIFIER})
_ENDS_A_VALUE = frozenset(
    {TokenType.VAR, TokenType.IDENTIFIER, TokenType.NUMBER, TokenType.R_BRACKET, TokenType.R_PAREN}
)
_BEFORE_STEP = frozenset({TokenType.COLON, TokenType.DOT, TokenType.L_BRACKET})
_IN_PATH = frozenset({TokenType.DOT, TokenType.L_BRACKET, TokenType.R_BRACKET})
_QUOTES = tuple("'\"`$[") + tuple(prefix + "'" for prefix in "xXbBnNrReEuU")


def exact_match_sql(gold: CompletedSql, predicted: CompletedSql) -> bool:
    """Whether both completions turn the document into the same SQL tokens.

    Tokens are compared in context because a completion may begin or end inside one: before `ECT`, `sel` equals `SEL`;
    inside a string it does not. The rules:

    - White space between tokens is ignored, unless it separates or joins tokens (`a AND b`, `aANDb`).
    - Keywords and unquoted names are compared case-insensitively, as the SQL standard folds them.
    - Literals and quoted names are compared as written: `'x'`, `'X'`, `"x"` and `"X"` are four different tokens.
    - Names in a path after a colon (`src:Address.City`) keep their case, as in Snowflake and Databricks.
    - Comments are compared by text and order, with white space folded, but not by their position between tokens.
    - Where the document with the gold completion does not tokenize (a quote is left open), the two completions are
      compared as written, except for runs of white space.
    """
    if gold.completion == predicted.completion:
        return True
    if gold.tokens is None:
        return gold.completion.split() == predicted.completion.split()
    if predicted.tokens is None:
        return False
    return comparable(gold.text, gold.tokens) == comparable(predicted.text, predicted.tokens)


def comparable(sql: str, tokens: list[Token]) -> tuple[list[str], list[str]]:
    """Normalise tokens and comments of `sql`: equal results mean equal SQL by the rules of `exact_match_sql`."""
    spellings = []
    before: Token | None = None
    in_path = False
    for token in tokens:
        opens_path = token.token_type == TokenType.COLON and before is not None and before.token_type in _ENDS_A_VALUE
        is_step = in_path and before is not None and before.token_type in _BEFORE_STEP
        in_path = opens_path or is_step or (in_path and token.token_type in _IN_PATH)
        written = sql[token.start : token.end + 1]
        exact = is_step or written.startswith(_QUOTES)
        spellings.append(written if exact else " ".join(written.upper().split()))
        before = token
    comments = [" ".join(comment.split()) for token in tokens for comment in token.comments]
    return spellings, comments


@dataclass(frozen=True)
class Overlap:
    """Numbers of names in two completions and in both, counted with repetition."""

    matched: int
    predicted: int
    gold: int


def identifier_overlap(gold: CompletedSql, predicted: CompletedSql) -> Overlap | None:
    """Count the names that the prediction and the gold completion have in common.

    A name is a quoted identifier or a word that is not a keyword of the dialect: tables, columns, aliases, most functions.
    A name that the completion only finishes counts as a whole. Unquoted names are compared case-insensitively. Summed over
    rows, precision = matched / predicted and recall = matched / gold, like the identifier match of Ding et al.,
    "CrossCodeEval" (2023). None (not applicable) where the document with the gold completion does not tokenize.
    """
    if gold.tokens is None:
        return None
    expected, found = names_in(gold), names_in(predicted)
    return Overlap(matched=(expected & found).total(), predicted=found.total(), gold=expected.total())


def names_in(sql: CompletedSql) -> Counter[str]:
    """Count the names that a completion writes, in whole or in part; empty if its document does not tokenize."""
    if not sql.completion:
        return Counter()
    names = (t for t in sql.tokens or [] if t.token_type in _NAMES and t.start < sql.end and sql.start <= t.end)
    return Counter(t.text if t.token_type == TokenType.IDENTIFIER else t.text.upper() for t in names)
