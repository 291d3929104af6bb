"""End of a statement: its semicolon, or the one after END if it contains a block of statements.

Blocks are `BEGIN … END`, `DECLARE … BEGIN … END`, and the bodies of procedures, functions and triggers without quotes.
`BEGIN;` and `BEGIN TRANSACTION` do not open a block. A block without an END is read as plain statements.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot.tokens import Token, TokenType

_AFTER_TRANSACTION = {"", ";", "TRANSACTION", "WORK", "TRAN", "NAME", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"}
_CONTROL = {"IF", "LOOP", "FOR", "WHILE", "REPEAT"}
"""END before these words closes neither a BEGIN nor a CASE."""


def statement_end(tokens: Sequence[Token], first: int) -> int:
    """Position of the semicolon that ends the statement whose first token is `first`; len(tokens) without one."""
    begin = _first_begin(tokens, first)
    end = None if begin is None else _block_end(tokens, begin)
    return _semicolon(tokens, first if end is None else end)


def _semicolon(tokens: Sequence[Token], first: int) -> int:
    places = range(first, len(tokens))
    return next((at for at in places if tokens[at].token_type == TokenType.SEMICOLON), len(tokens))


def _word(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].text.upper() if at < len(tokens) else ""


def _first_begin(tokens: Sequence[Token], first: int) -> int | None:
    """The BEGIN of the block in a statement, or None."""
    match _word(tokens, first):
        case "BEGIN" if _word(tokens, first + 1) not in _AFTER_TRANSACTION:
            return first
        case "DECLARE":
            return _begin_after_declarations(tokens, first)
        case "CREATE" | "ALTER":
            for at in range(first, _semicolon(tokens, first)):
                if _word(tokens, at) in ("BEGIN", "DECLARE") and _word(tokens, at - 1) != ".":
                    return _first_begin(tokens, at)
    return None


def _begin_after_declarations(tokens: Sequence[Token], declare: int) -> int | None:
    """The BEGIN after declarations, each of which begins with a name and ends in a semicolon."""
    at = _semicolon(tokens, declare) + 1
    while at < len(tokens):
        if _word(tokens, at) == "BEGIN":
            return at if _word(tokens, at + 1) not in _AFTER_TRANSACTION else None
        if tokens[at].token_type != TokenType.VAR and _word(tokens, at) != "DECLARE":
            return None
        at = _semicolon(tokens, at) + 1
    return None


def _block_end(tokens: Sequence[Token], begin: int) -> int | None:
    """Position of the END of the block that opens at `begin`; None if it is missing."""
    depth = 0
    for at in range(begin, len(tokens)):
        word = _word(tokens, at)
        if word == "BEGIN" or (word == "CASE" and _word(tokens, at - 1) != "END"):
            depth += 1
        elif word == "END" and _word(tokens, at + 1) not in _CONTROL:
            depth -= 1
            if not depth:
                return at
    return None
