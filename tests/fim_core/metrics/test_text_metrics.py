"""Text metrics on hand-made cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim_core.metrics.abstention import is_empty
from fim_core.metrics.text import (
    edit_similarity,
    exact_match,
    first_line_match,
    prefix_match_chars,
    repeats_suffix,
)


def test_exact_match_counts_every_character() -> None:
    assert exact_match("a = 1", "a = 1")
    assert not exact_match("a = 1", "a  = 1")
    assert not exact_match("", " ")


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [("", "", 1.0), ("", "abc", 0.0), ("kitten", "sitting", 1 - 3 / 7), ("abcd", "abxd", 0.75), ("NULL", "", 0.0)],
)
def test_edit_similarity_by_hand(gold: str, predicted: str, expected: float) -> None:
    assert edit_similarity(gold, predicted) == pytest.approx(expected)


@given(st.text(alphabet="ab c", max_size=8), st.text(alphabet="ab c", max_size=8))
def test_edit_similarity_equals_the_textbook_algorithm(gold: str, predicted: str) -> None:
    previous = list(range(len(predicted) + 1))
    for i, left in enumerate(gold, 1):
        row = [i]
        for j, right in enumerate(predicted, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (left != right)))
        previous = row
    longest = max(len(gold), len(predicted))
    assert edit_similarity(gold, predicted) == pytest.approx(1 - previous[-1] / longest if longest else 1.0)


def test_first_line_is_the_first_non_blank_line() -> None:
    assert first_line_match("a, b\nFROM t", "a, b  \nFROM other")
    assert first_line_match("\n  WHERE x\nAND y", "WHERE x")
    assert not first_line_match("a, b", "a")
    assert first_line_match("", " \n")
    assert not first_line_match("", "x")


@given(st.text(alphabet="ab", max_size=6), st.text(alphabet="ab", max_size=6))
def test_prefix_match_is_what_can_be_accepted(gold: str, predicted: str) -> None:
    accepted = 0
    while accepted < min(len(gold), len(predicted)) and gold[accepted] == predicted[accepted]:
        accepted += 1
    assert prefix_match_chars(gold, predicted) == accepted


def test_suffix_repetition_by_hand() -> None:
    suffix = "\nFROM orders\nWHERE id = 1;"
    assert repeats_suffix("total", "total\nFROM orders", suffix) is True
    assert repeats_suffix("total", "total", suffix) is False
    assert repeats_suffix("x FROM orders", "x FROM orders", suffix) is False, "the gold completion says so as well"
    assert repeats_suffix("total", "total);", ");") is None, "too short to tell"
    assert repeats_suffix("total", "total", "") is None


def test_a_blank_completion_is_empty() -> None:
    assert is_empty("")
    assert is_empty(" \n\t")
    assert not is_empty("NULL")
