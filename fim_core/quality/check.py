"""Data-quality checks: what they read, what they find, and how a finding compares with its threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from duckdb import DuckDBPyConnection

Severity = Literal["error", "warn"]

SHOWN_ROWS = 5
"""Number of row_ids (or names of what a check counts) in a finding."""


@dataclass(frozen=True)
class Evidence:
    """The input of a check.

    Attributes:
        tables: files and folders by name; those that hold rows are views of `connection` under the same names.
        facts: everything else that is known: `config` (the options that the asset was made with), `counts` (what was counted
            while it was made), `recipe` (of the prompts, see `fim_core.prompt_format.recipe`), `tables` (paths as text), and
            under the name of an upstream asset its `config`, `counts` and `recipe`.
        connection: an in-memory DuckDB.
    """

    tables: Mapping[str, Path]
    facts: Mapping[str, Any]
    connection: DuckDBPyConnection

    def fact(self, path: str) -> Any:
        """The fact at a dotted path, such as `config.data.max_length`.

        Raises:
            ValueError: there is no such fact.
        """
        found: Any = self.facts
        for key in path.split("."):
            if not isinstance(found, Mapping) or key not in found:
                raise ValueError(f"There is no fact {path} (nothing at {key}) for a parameter of the check.")
            found = found[key]
        return found


@dataclass(frozen=True)
class Finding:
    """The result of a check before it is compared with the threshold.

    Attributes:
        rows: number of offending rows (or columns, types, tensors: what the check counts).
        total: number of rows that were checked.
        row_ids: a few of the offending rows, sorted.
        note: what a reader should know, for example why nothing was compared.
        breakdown: a small table to show with the result, one dict per row.
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
        name: unique among all checks, since experiments override checks by name.
        severity: `error` blocks downstream assets; `warn` only reports.
        max_rows: number of offending rows that is tolerated; None: any number.
        max_share: share of offending rows that is tolerated; None: any share.
        find: finds the offending rows.
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
    """The check of a Python file `<asset>/<name>.py`, as its constant CHECK; fields as in Check."""

    description: str
    severity: Severity
    find: Callable[[Evidence], Finding]
    max_rows: int | None = 0
    max_share: float | None = None


@dataclass(frozen=True)
class CheckResult:
    """A finding compared with the threshold of its check; other fields as in Check and Finding."""

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
        """Share of offending rows; 0 where nothing was checked."""
        return self.rows / self.total if self.total else 0.0

    @property
    def threshold(self) -> str:
        """The threshold as text."""
        limits = [] if self.max_rows is None else [f"at most {self.max_rows:,}"]
        limits += [] if self.max_share is None else [f"at most {self.max_share:.2%}"]
        return " and ".join(limits) or "any number"

    @property
    def sentence(self) -> str:
        """The result in one line, without any text of the rows."""
        found = f"{self.name}: {self.rows:,} of {self.total:,} ({self.share:.2%}); tolerated: {self.threshold}"
        return f"{found}. {self.note}" if self.note else found
