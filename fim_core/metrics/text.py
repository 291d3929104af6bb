"""Measures that compare two completions as plain text."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein, Prefix

_SHORTEST_TELLING_LINE = 3


def exact_match(gold: str, predicted: str) -> bool:
    """Whether the two texts are equal, character by character; white space counts."""
    return gold == predicted


def edit_similarity(gold: str, predicted: str) -> float:
    """Normalised Levenshtein similarity in characters, from 0 to 1: 1 - distance / length of the longer text.

    Two empty texts are alike (1.0). Insertion, deletion and substitution cost 1 each, as in V. Levenshtein, "Binary
    codes capable of correcting deletions, insertions, and reversals" (1966). Computed by rapidfuzz.
    """
    return Levenshtein.normalized_similarity(gold, predicted)


def first_line_match(gold: str, predicted: str) -> bool:
    """Whether the first lines with anything on them are equal, up to white space at their ends.

    It is what a user sees of a suggestion that an editor shows on one line. A completion with nothing on any line
    matches only another such one.
    """
    return first_line(gold) == first_line(predicted)


def prefix_match_chars(gold: str, predicted: str) -> int:
    """Characters of the prediction before the first wrong one: what a user could have accepted of it."""
    return Prefix.similarity(gold, predicted)


def is_empty(completion: str) -> bool:
    """Whether a completion abstains: it holds nothing but white space."""
    return not completion.strip()


def repeats_suffix(gold: str, predicted: str, suffix: str) -> bool | None:
    """Whether the prediction writes again what already stands right of the cursor.

    True when the first line of the suffix with anything on it is part of the prediction, and not of the gold
    completion. None, not applicable, when that line has fewer than 3 characters (`;`, `)`): such marks are right in
    many completions.
    """
    line = first_line(suffix)
    if len(line) < _SHORTEST_TELLING_LINE:
        return None
    return line in predicted and line not in gold


def first_line(text: str) -> str:
    """The first line that holds more than white space, without white space at its ends; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
