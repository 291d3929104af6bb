"""Cost model of training on a packed sequence, for balancing packs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cost:
    """Weights of the three sources of cost, in any unit, commonly floating-point operations.

    Attributes:
        token: for each distinct token (the linear layers).
        pair: for each query-key pair (attention).
        target: for each predicted position (the output layer).
    """

    token: float = 1.0
    pair: float = 1 / 8192
    target: float = 1.0

    def of_rows(self, lengths: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Cost of each row alone, float64 [rows]."""
        return self.of_prefix(lengths) + self.target * targets

    def of_prefix(self, lengths: np.ndarray) -> np.ndarray:
        """Cost of the first `lengths` tokens of a row, without predictions; float64."""
        lengths = np.asarray(lengths, np.float64)
        return self.token * lengths + self.pair * lengths * (lengths + 1) / 2
