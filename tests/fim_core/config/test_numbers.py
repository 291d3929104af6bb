"""Human-readable numbers."""

from __future__ import annotations

import math

import pytest

from fim_core.config.base import Section
from fim_core.config.numbers import parse_number, parse_numbers_in, takes_numbers
from fim_core.config.training import OptimizerConfig


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("8192", 8192), ("8k", 8_000), ("8K", 8_000), ("64Ki", 65_536), ("1.5m", 1_500_000), ("2b", 2 * 10**9),
        ("1t", 10**12), ("1gi", 2**30), ("2^18", 262_144), ("10^3", 1000), ("2^-1", 0.5), ("-2^2", -4), ("1_000", 1000),
        ("1_200_000", 1_200_000), ("1e5", 100_000), ("5e8", 500_000_000), ("1e-5", 1e-5), ("2.5e-4", 2.5e-4),
        ("10%", 0.1), ("12.5%", 0.125), ("100%", 1), (" 7 ", 7), (".5", 0.5), ("0", 0), ("1.1k", 1100),
    ],
)  # fmt: skip
def test_numbers_are_parsed(text: str, number: float) -> None:
    parsed = parse_number(text)
    assert parsed == number
    assert isinstance(parsed, int) == (number == int(number))


@pytest.mark.parametrize(
    "text", ["", "k", "8 k", "8kk", "ten", "1e", "nan", "inf", "0x10", "2^", "1/2", "--1", "1e9999"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number"):
        parse_number(text)


@pytest.mark.parametrize("text", ["1e400", "10^200", "9" * 40, "9^99k", "0^-1", "0^0"])
def test_numbers_that_are_too_large_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"too large|not a number"):
        parse_number(text)


def test_other_texts_of_a_nested_section_stay() -> None:
    section = {"a": "5e8", "b": {"c": ["1k", "auto", True, None, 3]}, "d": "cpu", "e": "bf16"}
    assert parse_numbers_in(section) == {
        "a": 500_000_000,
        "b": {"c": [1000, "auto", True, None, 3]},
        "d": "cpu",
        "e": "bf16",
    }


@pytest.mark.parametrize(
    ("annotation", "numeric"),
    [(int, True), (float | None, True), (tuple[float, float], True), (str, False), (bool, False), (str | int, False),
     (list[int], True), (dict[str, float], False)],
)  # fmt: skip
def test_which_options_are_numbers(annotation: object, numeric: bool) -> None:
    assert takes_numbers(annotation) is numeric


def test_every_numeric_option_reads_them() -> None:
    class Some(Section):
        whole: int = 0
        real: float | None = None
        pair: tuple[float, float] = (0.0, 0.0)
        text: str = ""

    some = Some.model_validate({"whole": "8k", "real": "10%", "pair": ["9e-1", "99%"], "text": "8k"})
    assert (some.whole, some.text) == (8000, "8k")
    assert math.isclose(some.real or 0, 0.1)
    assert some.pair == (0.9, 0.99)
    assert OptimizerConfig.model_validate({"learning_rate": "1e-5"}).lr == 1e-5
    with pytest.raises(ValueError, match="valid integer"):
        Some.model_validate({"whole": "10%"})
