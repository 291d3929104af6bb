"""Checks of completed statements without a gold completion, for a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fim_core.metrics.sql_workers.measures import SqlRow
from fim_core.metrics.sql_workers.pool import Limit, Worker, judge_row


class Statement(NamedTuple):
    """What is known of a completed statement.

    Attributes:
        parses: whether it parses; None if the definitions exceeded a limit, or the worker process was stopped.
        binds: whether all its tables and columns exist; None if the definitions are not known.
    """

    parses: bool | None
    binds: bool | None

    @property
    def is_sound(self) -> bool:
        """Whether nothing is known to be wrong with it."""
        return self.parses is not False and self.binds is not False


class StatementChecker:
    """Parses and binds completed statements in a worker process, under the limits of an evaluation.

    A statement that exceeds a limit counts as not parsed. Of one whose worker process was stopped by something else, nothing
    is known.
    """

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._worker = Worker()
        self.check("", "", ["SELECT 1"], "")  # starts the process before the first request

    def check(self, prefix: str, suffix: str, texts: Sequence[str], ddl: str) -> list[Statement]:
        """Check completions of one cursor position."""
        row = SqlRow(prefix, suffix, "", tuple(dict.fromkeys(texts)), self._dialect, ddl)
        judged = judge_row(row, self._worker, ["statement"])
        return [
            Statement(None, None)
            if judged.limits.get(text) == Limit.STOPPED
            else Statement(*map(_flag, map(judged.measures[text].get, ("statement_parses", "statement_binds"))))
            for text in texts
        ]

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _flag(value: float | None) -> bool | None:
    return None if value is None else value == 1
