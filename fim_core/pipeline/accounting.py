"""Row counts of data preparation, combined over its stages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RowAccount:
    """Rows of the exports: rows_in = kept + left_out + the sum of `rejected`; kept = train + eval.

    Attributes:
        rejected: rows by reason, over fim_prompts and tokenized_dataset.
        left_out: usable rows that are neither trained on nor held out (see `fim_core.prompts.split`).
    """

    rows_in: int
    train: int
    eval: int
    left_out: int
    rejected: Mapping[str, int]

    @classmethod
    def of(cls, prompts: Mapping[str, Any], tokens: Mapping[str, Any]) -> RowAccount:
        """Combine the counts of fim_prompts and of the tokenized_dataset that was made from it."""
        rejected = Counter(prompts["rejected"]) + Counter(
            {name: tokens[name] for name in ("too_long", "control_token")}
        )
        return cls(prompts["rows_in"], tokens["train"], tokens["eval"], tokens["left_out"], rejected)

    @property
    def kept(self) -> int:
        """Rows in train or eval."""
        return self.train + self.eval

    @property
    def reasons(self) -> str:
        """Rejected rows by reason, as text."""
        return ", ".join(f"{reason} {rows:,}" for reason, rows in self.rejected.items())
