"""Account of all rows of data preparation, in one place, so that every account adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RowAccount:
    """Rows of the exports: rows_in = kept + left_out + the sum of `rejected`; kept = train + eval.

    Attributes:
        rejected: rows by reason, by the prompts' and by their tokens'.
        left_out: usable rows that are neither trained on nor held out (see `fim_core.prompts.split`).
    """

    rows_in: int
    train: int
    eval: int
    left_out: int
    rejected: Mapping[str, int]

    @classmethod
    def of(cls, prompts: Mapping[str, Any], tokens: Mapping[str, Any]) -> RowAccount:
        """The account of a prompts table and of the data set that was made from it, by their counts."""
        rejected = Counter(prompts["rejected"]) + Counter(
            {name: tokens[name] for name in ("too_long", "control_token")}
        )
        return cls(prompts["rows_in"], tokens["train"], tokens["eval"], tokens["left_out"], rejected)

    @property
    def kept(self) -> int:
        """Rows that are trained on or held out."""
        return self.train + self.eval

    @property
    def reasons(self) -> str:
        """Rejected rows by reason, in words."""
        return ", ".join(f"{reason} {rows:,}" for reason, rows in self.rejected.items())
