"""Checks of completed statements without a gold completion, for a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fim_core.metrics.sql_workers.measures import SqlRow
from fim_core.metrics.sql_workers.pool import Worker, judge_row
from fim_core.metrics.sql_workers.worker import Limits

LIMITS = Limits(cpu_seconds=0.5, seconds=1.0)
"""An editor waits for the answer."""


class Statement(NamedTuple):
    """What is known of a completed statement.

    Attributes:
        parses: whether it parses.
        binds: whether all its tables and columns exist; None if the definitions are not known.
    """

    parses: bool
    binds: bool | None

    @property
    def is_sound(self) -> bool:
        """Whether it parses and names nothing that is known not to exist."""
        return self.parses and self.binds is not False


class StatementChecker:
    """Parses and binds completed statements in a worker process. A statement that exceeds a limit counts as not parsed."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._worker = Worker(LIMITS)
        self.check("", "", ["SELECT 1"], "")  # starts the process before the first request

    def check(self, prefix: str, suffix: str, texts: Sequence[str], ddl: str) -> list[Statement]:
        """Check completions of one cursor position."""
        row = SqlRow(prefix, suffix, "", tuple(dict.fromkeys(texts)), self._dialect, ddl)
        measures = judge_row(row, self._worker, ["statement"]).measures
        found = [measures[text] for text in texts]
        binds = [each["statement_binds"] for each in found]
        return [
            Statement(each["statement_parses"] == 1, None if bound is None else bound == 1)
            for each, bound in zip(found, binds, strict=True)
        ]

    def close(self) -> None:
        """End the process."""
        self._worker.close()
