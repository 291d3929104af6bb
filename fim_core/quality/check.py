"""What a data-quality check is, what it looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from duckdb import DuckDBPyConnection

Severity = Literal["error", "warn"]

SHOWN_ROWS = 5
"""Row_ids (or names of what a check counts) in a finding."""


@dataclass(frozen=True)
class Evidence:
    """What checks look at.

    Attributes:
        tables: files and folders by name; those that hold rows are views of `connection` by the same names.
        facts: what else is known: `config` (the options that the asset was made with), `counts` (what was counted while it
            was made), `recipe` (of the prompts, see `fim_core.prompt_format.recipe`), `tables` (as texts), and under the
            name of an upstream asset its `config`, `counts` and `recipe`.
        connection: an in-memory DuckDB.
    """

    tables: Mapping[str, Path]
    facts: Mapping[str, Any]
    connection: DuckDBPyConnection


@dataclass(frozen=True)
class Finding:
    """What a check found, before it is held against its threshold.

    Attributes:
        rows: how many rows (or columns, types, tensors: what the check counts) offend.
        total: out of how many.
        row_ids: a few of them, sorted.
        note: what a reader should know, for example why nothing was compared.
        breakdown: a small table to read beside it, one dict a row.
    """

    rows: int
    total: int
    row_ids: Sequence[str] = ()
    note: str = ""
    breakdown: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Check:
    """One rule about one asset.

    Attributes:
        name: unique among all checks, so that an experiment can override it by name.
        severity: error stops what comes after; warn reports.
        max_rows: offending rows that are tolerated; None: any number.
        max_share: share of offending rows that is tolerated; None: any share.
        find: looks for offenders.
    """

    asset: str
    name: str
    description: str
    severity: Severity
    max_rows: int | None
    max_share: float | None
    find: Callable[[Evidence], Finding] = field(repr=False)


@dataclass(frozen=True)
class PythonCheck:
    """A check in a Python file `<asset>/<name>.py`, which calls it CHECK; the fields are those of Check."""

    description: str
    severity: Severity
    find: Callable[[Evidence], Finding]
    max_rows: int | None = 0
    max_share: float | None = None


@dataclass(frozen=True)
class CheckResult:
    """A check held against its threshold; the other fields are those of Check and Finding."""

    name: str
    description: str
    severity: Severity
    passed: bool
    rows: int
    total: int
    row_ids: list[str]
    max_rows: int | None
    max_share: float | None
    note: str = ""
    breakdown: list[dict[str, Any]] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Offending rows over all, 0 when there are none at all."""
        return self.rows / self.total if self.total else 0.0

    @property
    def threshold(self) -> str:
        """The threshold in words."""
        limits = [] if self.max_rows is None else [f"at most {self.max_rows:,}"]
        limits += [] if self.max_share is None else [f"at most {self.max_share:.2%}"]
        return " and ".join(limits) or "any number"

    @property
    def sentence(self) -> str:
        """The result in one line, without any text of the rows."""
        found = f"{self.name}: {self.rows:,} of {self.total:,} ({self.share:.2%}); tolerated: {self.threshold}"
        return f"{found}. {self.note}" if self.note else found
