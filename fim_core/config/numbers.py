"""Parsing of human-readable numbers: `8192`, `8k`, `64Ki`, `2^18`, `10%`, `1_000`, `1e-5`."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, get_args, get_origin

_PLAIN = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?"
_POWER = re.compile(rf"(?P<sign>-?)(?P<base>{_PLAIN})\^(?P<exponent>-?\d{{1,3}})")
_SCALED = re.compile(rf"(?P<number>{_PLAIN})(?P<suffix>ki|mi|gi|ti|k|m|b|t|%)?")
_FACTORS = {"": Decimal(1), "%": Decimal("0.01")}
_FACTORS |= {suffix: Decimal(1000 ** (at + 1)) for at, suffix in enumerate(("k", "m", "b", "t"))}
_FACTORS |= {suffix: Decimal(1024 ** (at + 1)) for at, suffix in enumerate(("ki", "mi", "gi", "ti"))}

_LARGEST_POWER = 30  # of ten; beyond it an integer would have more digits than any option can use


def parse_number(text: str) -> int | float:
    """Parse a number; whole numbers are returned as int.

    Suffixes are k, m, b, t (powers of 1,000), ki, mi, gi, ti (powers of 1,024) and %, in any case.

    Raises:
        ValueError: the text is not a number, or the number is too large.
    """
    plain = text.strip().lower().replace("_", "")
    if match := _POWER.fullmatch(plain):
        try:
            value = Decimal(match["base"]) ** int(match["exponent"])
        except ArithmeticError as error:
            raise ValueError(f"{text!r} is not a number") from error
        value = -value if match["sign"] else value
    elif match := _SCALED.fullmatch(plain):
        value = Decimal(match["number"]) * _FACTORS[match["suffix"] or ""]
    else:
        raise ValueError(f"{text!r} is not a number. Numbers are written like 8192, 8k, 2^18, 10%, 1_000 or 1e-5")
    if not value.is_finite() or (value and value.adjusted() > _LARGEST_POWER):
        raise ValueError(f"{text!r} is too large")
    return int(value) if value == value.to_integral_value() else float(value)


def parse_numbers_in(value: Any) -> Any:
    """Replace every text that spells a number, at any depth; other texts stay."""
    if isinstance(value, dict):
        return {key: parse_numbers_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [parse_numbers_in(item) for item in value]
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            return value
    return value


@cache
def takes_numbers(annotation: Any) -> bool:
    """Whether an option of this type holds only numbers, never text."""
    if get_origin(annotation) is Annotated:
        return takes_numbers(get_args(annotation)[0])
    arguments = [argument for argument in get_args(annotation) if argument not in (type(None), ...)]
    if arguments:
        return get_origin(annotation) is not dict and all(takes_numbers(argument) for argument in arguments)
    return annotation in (int, float)
