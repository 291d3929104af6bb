"""Features of a completion that predict whether users accept it; all are known before it is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEATURES = ("logprob", "parses", "binds", "does_not_bind")
"""Names of the features, in the order of `completion_features`.

`logprob` is the log-probability of the whole completion, its end included. `binds` and `does_not_bind` are both 0 where the
definitions of the tables are not known. Mean, minimum and first log-probability and the length gained nothing in addition (see
benchmarks/README.md).
"""


def completion_features(logprobs: Sequence[float], *, parses: float | None, binds: float | None) -> np.ndarray:
    """The features of one completion: float64 [FEATURES].

    Args:
        logprobs: log-probability of each generated token, end token included.
        parses: whether the statement with the completion parses; None if not known.
        binds: whether all its names resolve; None if the definitions are not known.
    """
    return np.array([sum(logprobs), float(parses or 0), float(binds == 1), float(binds == 0)], np.float64)
