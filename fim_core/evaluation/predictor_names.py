"""Names, titles and notes of the predictors of a report."""

from __future__ import annotations

MODEL = "model"
BASE = "base"
EMPTY = "empty"
MOST_FREQUENT = "most_frequent"
MOST_FREQUENT_BY_TYPE = "most_frequent_by_type"
CHAMPION = "champion"

CONSTANTS = (EMPTY, MOST_FREQUENT)
"""Predictors without a model that use only information that the model has, too."""

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
    EMPTY: "always predicts the empty completion",
    MOST_FREQUENT: "always predicts the most frequent completion of the training rows",
    MOST_FREQUENT_BY_TYPE: "uses the TYPE column, which is not part of the prompt; shown for information, not used by the gate",
    CHAMPION: "the model that is served now",
}
"""A note on each predictor that the model is compared with."""
