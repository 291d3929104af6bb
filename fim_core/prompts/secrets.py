"""Masking of what looks like a secret: passwords, keys, tokens, e-mail addresses.

Each pattern replaces only the secret itself, so that the SQL around it stays valid. It is a help against the common
cases, not a guarantee: what has no tell-tale shape or name is not found.
"""

from __future__ import annotations

import re

MASK = "MASKED_SECRET"
EMAIL_MASK = "masked@example.com"

_NAMES = r"(?:password|passwd|pwd|secret|secret_key|access_key|api_?key|token|sas_token|private_key|credential)"

_SECRETS = (
    # PEM blocks, whole or without their last line.
    (re.compile(rf"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?!{MASK}).*?(?=-----END|\Z)", re.DOTALL), rf"\1{MASK}"),
    # name = 'value', name: "value", name => 'value', where the name ends in a tell-tale word: AWS_SECRET_KEY = '…'.
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
    # JSON web tokens. What comes before `eyJ` is taken along, after a look at whether the two other parts follow: else a
    # long word with many `eyJ` would be read to its end from each of them.
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
    """Replace what looks like a secret.

    Returns:
        the text, and how many replacements were made.
    """
    masked = 0
    for pattern, replacement in _SECRETS:
        text, found = pattern.subn(replacement, text)
        masked += found
    return text, masked
