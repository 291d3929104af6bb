"""Masking of likely secrets: passwords, keys, tokens, e-mail addresses.

Each pattern replaces only the secret itself, so that the SQL around it stays valid. It covers the common cases and is no
guarantee: secrets without a typical form or name are not found.
"""

from __future__ import annotations

import re

MASK = "MASKED_SECRET"
EMAIL_MASK = "masked@example.com"

_NAMES = r"(?:password|passwd|pwd|secret|secret_key|access_key|api_?key|token|sas_token|private_key|credential)"

_SECRETS = (
    # PEM blocks, whole or without their last line.
    (re.compile(rf"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?!{MASK}).*?(?=-----END|\Z)", re.DOTALL), rf"\1{MASK}"),
    # name = 'value', name: "value", name => 'value', where the name ends in a typical word: AWS_SECRET_KEY = '…'.
    (
        re.compile(rf"((?i:{_NAMES})[\"']?\s*(?:=>|=|:)\s*)(?P<q>['\"])(?!{MASK})[^'\"\n]+(?P=q)"),
        rf"\1\g<q>{MASK}\g<q>",
    ),
    # Keys of known services: AWS, GitHub, Slack, OpenAI-like, Google.
    (
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|xox[abprs]-[A-Za-z0-9-]{10,}"
            r"|sk-[A-Za-z0-9_-]{20,}|AIza[0-9A-Za-z_-]{35})\b"
        ),
        MASK,
    ),
    # JSON web tokens. Text before `eyJ` is included, and the lookahead requires the two other parts first: otherwise a
    # long word with many `eyJ` would be scanned to its end from each of them.
    (
        re.compile(
            r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]++\.[A-Za-z0-9_-]{8,}+\.)([A-Za-z0-9_-]*?)"
            r"\beyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]*+"
        ),
        rf"\1{MASK}",
    ),
    # Passwords in URLs: https://user:password@host.
    (re.compile(rf"(://[^\s/:@'\"]+:)(?!{MASK})[^\s/@'\"]+(?=@)"), rf"\1{MASK}"),
    (
        re.compile(
            rf"\b(?!{re.escape(EMAIL_MASK)}\b)[A-Za-z0-9._%+-]{{1,64}}@(?:[A-Za-z0-9-]{{1,63}}\.)+[A-Za-z]{{2,24}}\b"
        ),
        EMAIL_MASK,
    ),
)


def mask_secrets(text: str) -> tuple[str, int]:
    """Replace likely secrets.

    Returns:
        the text, and the number of replacements.
    """
    masked = 0
    for pattern, replacement in _SECRETS:
        text, found = pattern.subn(replacement, text)
        masked += found
    return text, masked
