"""The predictors of a report, and what they are called in front of people."""

from __future__ import annotations

MODEL = "model"
BASE = "base"
EMPTY = "empty"
MOST_FREQUENT = "most_frequent"
MOST_FREQUENT_BY_TYPE = "most_frequent_by_type"
CHAMPION = "champion"

CONSTANTS = (EMPTY, MOST_FREQUENT)
"""Predictors without a model that know no more than the model does."""

TITLES = {
    MODEL: "this model",
    BASE: "base model",
    EMPTY: "empty completion",
    MOST_FREQUENT: "most frequent completion",
    MOST_FREQUENT_BY_TYPE: "most frequent of the TYPE",
    CHAMPION: "champion",
}

NOTES = {
    BASE: "the model before training",
    EMPTY: "always completes nothing",
    MOST_FREQUENT: "always the most frequent completion of the training rows",
    MOST_FREQUENT_BY_TYPE: "knows the TYPE column, which the prompt does not hold; shown only, the gate leaves it out",
    CHAMPION: "the model that serves now",
}
"""What a reader should know of each predictor that the model is compared with."""
