"""Metrics of completions as plain text."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein, Prefix

from fim_core.metrics.metric import Measure, Metric

_SHORTEST_SUFFIX_LINE = 3


def exact_match(gold: str, predicted: str) -> bool:
    """Whether two texts are equal, character by character, white space included."""
    return gold == predicted


def edit_similarity(gold: str, predicted: str) -> float:
    """Normalised Levenshtein similarity in characters, from 0 to 1: 1 - distance / length of the longer text.

    Two empty texts have similarity 1. Insertion, deletion and substitution cost 1 each, as in V. Levenshtein, "Binary
    codes capable of correcting deletions, insertions, and reversals" (1966). Computed by rapidfuzz.
    """
    return Levenshtein.normalized_similarity(gold, predicted)


def first_line_match(gold: str, predicted: str) -> bool:
    """Whether the first non-blank lines are equal, apart from white space at their ends.

    Editors that show one-line suggestions show this line. A blank completion matches only another blank one.
    """
    return first_line(gold) == first_line(predicted)


def prefix_match_chars(gold: str, predicted: str) -> int:
    """Number of characters before the first wrong one: the part of the prediction that a user could have accepted."""
    return Prefix.similarity(gold, predicted)


def repeats_suffix(gold: str, predicted: str, suffix: str) -> bool | None:
    """Whether the prediction repeats the text right of the cursor.

    True if the first non-blank line of the suffix is part of the prediction but not of the gold completion. None (not
    applicable) if that line has fewer than 3 characters (`;`, `)`), which are correct in many completions.
    """
    line = first_line(suffix)
    if len(line) < _SHORTEST_SUFFIX_LINE:
        return None
    return line in predicted and line not in gold


def first_line(text: str) -> str:
    """The first non-blank line without white space at its ends; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


PREFIX_MATCH_MEASURE = Measure("prefix_match_chars", lambda row: prefix_match_chars(row.gold, row.predicted))

EXACT_MATCH = Metric(
    name="exact_match",
    title="Exact match",
    meaning="the completion equals the accepted one, character by character",
    unit="share",
    over=Measure("exact_match", lambda row: exact_match(row.gold, row.predicted)),
    headline=True,
)
EDIT_SIMILARITY = Metric(
    name="edit_similarity",
    title="Edit similarity",
    meaning="1 - Levenshtein distance / length of the longer text",
    unit="share",
    over=Measure("edit_similarity", lambda row: edit_similarity(row.gold, row.predicted)),
    headline=True,
)
FIRST_LINE_MATCH = Metric(
    name="first_line_match",
    title="First line matches",
    meaning="the first line, which an editor shows as a one-line suggestion, is correct",
    unit="share",
    over=Measure("first_line_match", lambda row: first_line_match(row.gold, row.predicted)),
)
PREFIX_MATCH_CHARS = Metric(
    name="prefix_match_chars",
    title="Correct characters",
    meaning="mean number of characters before the first wrong one",
    unit="characters",
    over=PREFIX_MATCH_MEASURE,
)
PREFIX_MATCH_SHARE = Metric(
    name="prefix_match_share",
    title="Correct characters, share",
    meaning="share of the accepted text before the first wrong character",
    unit="share",
    over=PREFIX_MATCH_MEASURE,
    per=Measure("gold_chars", lambda row: len(row.row.completion)),
)
SUFFIX_REPETITION = Metric(
    name="suffix_repetition",
    title="Repeats the suffix",
    meaning="writes again the text right of the cursor",
    unit="share",
    over=Measure(
        "repeats_suffix",
        lambda row: repeats_suffix(row.gold, row.predicted, row.row.suffix) if row.row.is_placed else None,
    ),
    higher_is_better=False,
)
