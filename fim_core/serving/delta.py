"""The parts of a completion that is being generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Delta:
    """The change after one more token.

    Attributes:
        text: new text; often empty, while a character or a stop string may be incomplete.
        tokens: number of tokens generated so far, stop token included.
        logprob: log-probability of the token.
        finish_reason: set on the last delta: `stop` for a stop token or string, `length` for the limit.
    """

    text: str
    tokens: int
    logprob: float
    finish_reason: Literal["stop", "length"] | None = None
