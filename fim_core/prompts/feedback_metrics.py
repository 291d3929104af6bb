"""Metrics of what users did with completions, by TYPE and by version of the model: acceptance, kept characters, and what is
rejected most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
from rapidfuzz.distance import LCSseq

from fim_core.metrics.text import edit_similarity

LENGTHS = (10, 40, 100)
"""Upper bounds of the length buckets of completions, in characters."""

MOST_GROUPS = 50
"""Limit of the rows of each table; those with the most rows are kept."""


@dataclass(frozen=True)
class ActionCounts:
    """What users did with the completions of one TYPE, or of one model.

    Attributes:
        type: the export's TYPE; None for the rows of all TYPEs.
        model: version of the model; None for the rows of all models.
        shown: completions that were shown: SHOWN is true, or is unknown and there is an ACTION.
        accepted, edited, rejected: of these, by ACTION; the others have none.
        acceptance: accepted / shown; None if nothing was shown.
        retained: characters of OUTPUT that are in KEPT, as a share of all characters of these OUTPUTs (see `retained`), over
            the rows that have a KEPT and were not rejected; None if there are none.
        edit_similarity: mean similarity of OUTPUT and KEPT (see `fim_core.metrics.text.edit_similarity`) of the edited rows that
            have a KEPT; None if there are none.
    """

    type: str | None
    model: str | None
    shown: int
    accepted: int
    edited: int
    rejected: int
    acceptance: float | None
    retained: float | None
    edit_similarity: float | None


@dataclass(frozen=True)
class RejectedGroup:
    """Completions of one TYPE and one length, for the table of what is rejected most.

    Attributes:
        longest: upper bound of their length in characters, one of LENGTHS; None for longer ones.
        rejected, shown: numbers of rows.
    """

    type: str
    longest: int | None
    rejected: int
    shown: int


@dataclass(frozen=True)
class FeedbackMetrics:
    """Metrics of all rows with feedback.

    Attributes:
        total: of all TYPEs.
        by_type: of the TYPEs with the most shown rows.
        by_model: of the model versions with the most shown rows; empty if the export does not name them.
        rejected_most: groups with rejected rows, those with the most first.
    """

    total: ActionCounts
    by_type: list[ActionCounts]
    by_model: list[ActionCounts]
    rejected_most: list[RejectedGroup]


_ROWS = """
    CREATE TEMP TABLE feedback AS
    SELECT
        *,
        CASE WHEN kept_text IS NOT NULL THEN characters END AS compared,
        retained(output, kept_text) AS retained,
        edit_similarity(output, CASE WHEN action = 'edited' THEN kept_text END) AS similarity
    FROM (
        SELECT
            type, output, action, length(output) AS characters,
            CASE WHEN model_version <> '' AND model_version NOT IN (SELECT unnest($null_marks)) THEN model_version END AS model,
            CASE
                WHEN kept <> '' AND kept NOT IN (SELECT unnest($null_marks)) AND action IS DISTINCT FROM 'rejected' THEN kept
            END AS kept_text,
            shown = 'true' OR (shown IS DISTINCT FROM 'false' AND action IN ('accepted', 'edited', 'rejected')) AS is_shown
        FROM read_parquet($file)
        WHERE shown <> '' OR action <> '' OR kept <> ''
    )
"""

_ACTIONS = """
    SELECT
        {type} AS type,
        {model} AS model,
        count(*) FILTER (is_shown) AS shown,
        count(*) FILTER (is_shown AND action = 'accepted') AS accepted,
        count(*) FILTER (is_shown AND action = 'edited') AS edited,
        count(*) FILTER (is_shown AND action = 'rejected') AS rejected,
        accepted / nullif(shown, 0) AS acceptance,
        sum(retained) / nullif(sum(compared), 0) AS retained,
        avg(similarity) AS edit_similarity
    FROM feedback
    {rest}
    ORDER BY shown DESC, type, model
    LIMIT $limit
"""

_REJECTED = """
    SELECT
        type,
        list_min(list_filter($lengths, lambda bound: bound >= characters)) AS longest,
        count(*) FILTER (action = 'rejected') AS rejected,
        count(*) AS shown
    FROM feedback
    WHERE is_shown
    GROUP BY ALL
    HAVING rejected > 0
    ORDER BY rejected DESC, type, longest
    LIMIT $limit
"""


def retained(output: str, kept: str) -> int:
    """Number of characters of a completion that are in the kept text, in their order: their longest common subsequence."""
    return LCSseq.similarity(output, kept)


def measure_feedback(raw: Path, *, null_marks: Sequence[str] = ()) -> FeedbackMetrics:
    """Measure the rows of a raw table that has the columns of `FEEDBACK_SCHEMA`.

    Args:
        raw: the raw table.
        null_marks: values that mean an empty one.
    """
    with duckdb.connect(":memory:") as connection:
        connection.create_function("retained", retained, ["VARCHAR", "VARCHAR"], "BIGINT")
        connection.create_function("edit_similarity", edit_similarity, ["VARCHAR", "VARCHAR"], "DOUBLE")
        connection.execute(_ROWS, {"file": str(raw), "null_marks": list(null_marks)})
        (total,) = _counts(connection)
        by_type = _counts(connection, type="type", rest="GROUP BY type")
        by_model = _counts(connection, model="model", rest="WHERE model IS NOT NULL GROUP BY model")
        groups = connection.execute(_REJECTED, {"limit": MOST_GROUPS, "lengths": list(LENGTHS)}).fetchall()
    return FeedbackMetrics(total, by_type, by_model, [RejectedGroup(*row) for row in groups])


def _counts(
    connection: duckdb.DuckDBPyConnection, *, type: str = "NULL", model: str = "NULL", rest: str = ""
) -> list[ActionCounts]:
    query = _ACTIONS.format(type=type, model=model, rest=rest)
    return [ActionCounts(*row) for row in connection.execute(query, {"limit": MOST_GROUPS}).fetchall()]


def texts_rejected_most(raw: Path, number: int) -> list[tuple[str, int]]:
    """The rejected completions that occur most often, with the number of rows. They are customer text."""
    query = """
        SELECT output, count(*) AS rows FROM read_parquet($file)
        WHERE action = 'rejected' AND shown IS DISTINCT FROM 'false'
        GROUP BY output ORDER BY rows DESC, output LIMIT $number
    """
    with duckdb.connect(":memory:") as connection:
        return connection.execute(query, {"file": str(raw), "number": number}).fetchall()
