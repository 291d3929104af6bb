"""The filter of a model's completions: their confidence, and the threshold from which they are shown."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from fim_core.atomic import read_json_as
from fim_core.confidence.features import FEATURES
from fim_core.errors import FimError

FILE = "completion_filter.json"
"""Name of the file in the folder of a model."""


@dataclass(frozen=True)
class CompletionFilter:
    """A logistic model of the probability that a completion is accepted, and a threshold.

    Attributes:
        weights: by the name of the feature, see `FEATURES`.
        bias: the logit where all features are 0.
        threshold: least confidence of a completion that is shown, from 0 to 1.
        dialect: sqlglot dialect in which completions are parsed.
    """

    weights: dict[str, float]
    bias: float
    threshold: float
    dialect: str

    def confidence(self, features: np.ndarray) -> np.ndarray:
        """The probability that a completion is accepted: float64 [..., FEATURES] to [...]."""
        logits = features @ np.array([self.weights[name] for name in FEATURES]) + self.bias
        return np.exp(-np.logaddexp(0, -logits))

    def shows(self, features: np.ndarray) -> np.ndarray:
        """Whether completions are shown: float64 [..., FEATURES] to bool [...]."""
        return self.confidence(features) >= self.threshold

    @property
    def least_logprob(self) -> float:
        """The log-probability below which no completion is shown, even if it parses and binds; -inf if there is none."""
        slope = self.weights["logprob"]
        if slope <= 0 or not 0 < self.threshold < 1:
            return -math.inf
        of_rest = sum(max(0.0, weight) for name, weight in self.weights.items() if name != "logprob")
        return (math.log(self.threshold / (1 - self.threshold)) - self.bias - of_rest) / slope

    def write(self, folder: Path) -> None:
        """Write the filter into the folder of a model or a report."""
        text = json.dumps(asdict(self), indent=2, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the filter of a folder; None if it has none.

        Raises:
            FimError: its features or numbers are not those of this version, or sqlglot does not know its dialect.
            DamagedFile: the file cannot be read.
        """
        try:
            found = read_json_as(folder / FILE, cls)
        except FileNotFoundError:
            return None
        finite = all(map(math.isfinite, [*found.weights.values(), found.bias])) and 0 <= found.threshold <= 1
        if set(found.weights) != set(FEATURES) or not finite:
            raise FimError(
                f"{folder / FILE} was fitted by another version of fim. Materialize evaluation_report and champion_model "
                "again, or show every completion with --show all."
            )
        from sqlglot.dialects.dialect import Dialect

        try:
            Dialect.get_or_raise(found.dialect)
        except ValueError as error:
            raise FimError(
                f"{folder / FILE}: sqlglot has no dialect {found.dialect!r}. Install the version of sqlglot that the filter was "
                "fitted with, or materialize evaluation_report and champion_model again."
            ) from error
        return found
