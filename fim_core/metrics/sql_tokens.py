"""Measures that compare two completions as SQL tokens."""

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
    """Whether both completions make the same SQL tokens of the document around them.

    Tokens are compared in context, for a completion may begin or end inside one: before `ECT`, `sel` is as good as
    `SEL`; inside a string it is not. The rules:

    - White space between tokens does not count; what it parts or joins does (`a AND b`, `aANDb`).
    - Keywords and unquoted names are compared without case, as the SQL standard folds them.
    - Literals and quoted names are compared as written: `'x'`, `'X'`, `"x"` and `"X"` are four different things.
    - Names in a path behind a colon (`src:Address.City`) keep their case, as in Snowflake and Databricks.
    - Comments count by their text, white space folded, in their order, but not by their place between tokens.
    - Where the document with the gold completion does not tokenize, because a quote stays open, the two fragments
      are compared as written, except for runs of white space.
    """
    if gold.completion == predicted.completion:
        return True
    if gold.tokens is None:
        return gold.completion.split() == predicted.completion.split()
    if predicted.tokens is None:
        return False
    return comparable(gold.text, gold.tokens) == comparable(predicted.text, predicted.tokens)


def comparable(sql: str, tokens: list[Token]) -> tuple[list[str], list[str]]:
    """Tokens and comments of `sql` in a form in which equal means the same SQL, by the rules of `exact_match_sql`."""
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
    """Names in common between two completions, counted with repetition."""

    matched: int
    predicted: int
    gold: int


def identifier_overlap(gold: CompletedSql, predicted: CompletedSql) -> Overlap | None:
    """How many names of the prediction stand in the gold completion, and the other way round.

    A name is a token that is a quoted identifier or a word that is no keyword of the dialect: tables, columns, aliases,
    most functions. A name that the completion only finishes counts as a whole. Unquoted names are compared without
    case. Summed over rows: precision = matched / predicted, recall = matched / gold, as the identifier match of
    Ding et al., "CrossCodeEval" (2023), does for code. None, not applicable, where the document with the gold
    completion does not tokenize.
    """
    if gold.tokens is None:
        return None
    expected, found = names_in(gold), names_in(predicted)
    return Overlap(matched=(expected & found).total(), predicted=found.total(), gold=expected.total())


def names_in(sql: CompletedSql) -> Counter[str]:
    """The names that a completion writes, wholly or in part; none where its document does not tokenize."""
    if not sql.completion:
        return Counter()
    names = (t for t in sql.tokens or [] if t.token_type in _NAMES and t.start < sql.end and sql.start <= t.end)
    return Counter(t.text if t.token_type == TokenType.IDENTIFIER else t.text.upper() for t in names)
