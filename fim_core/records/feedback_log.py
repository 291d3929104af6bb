"""Logs of `fim serve`: completions, and later rows that say what users did with them, joined by id.

A row with an id and without INPUT is a report: its ACTION and KEPT replace those of the completion with the same id in any
export of the source. The last report counts. Reports are not rows of the raw table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fim_core.config.data import Source
from fim_core.records.columns import ExportColumns, find_columns
from fim_core.records.readers import Export, Warn


class _Report(NamedTuple):
    """What a user did. `kept` is None if the log has no such column."""

    action: str
    kept: str | None


def join_reports(exports: Sequence[Export], source: Source, warn: Warn) -> tuple[list[Export], int]:
    """The exports of a source without reports, with what the reports say in the rows that they are about.

    The exports are read once to find the reports, and all of them are kept in memory.

    Returns:
        The exports, and the number of their reports. Unchanged exports if the source's feedback has no `id`.

    Raises:
        FimError: a column is missing.
    """
    if source.feedback is None or source.feedback.id is None:
        return list(exports), 0
    columns = [find_columns(export.columns, source, export.name) for export in exports]
    reports: dict[str, _Report] = {}
    completions: set[str] = set()
    number = 0
    for export, found in zip(exports, columns, strict=True):
        for batch in export.batches(_ignore_warning):
            is_report = _is_report(batch, found)
            ids, actions, kept = _feedback(batch, found)
            completions.update(request for request, other in zip(ids, is_report, strict=True) if not other)
            for at in np.flatnonzero(is_report):
                reports[ids[at]] = _Report(actions[at], kept[at])
            number += int(is_report.sum())
    if unknown := len(reports.keys() - completions):
        place = source.name_or_path or source.table_name or source.type
        warn(f"{place}: feedback on {unknown:,} completions that are not in the log is not used.")
    joined = [
        replace(export, batches=_joined(export.batches, found, reports))
        for export, found in zip(exports, columns, strict=True)
    ]
    return joined, number


def _joined(
    batches: Callable[[Warn], Iterator[pa.RecordBatch]], columns: ExportColumns, reports: dict[str, _Report]
) -> Callable[[Warn], Iterator[pa.RecordBatch]]:
    def read(warn: Warn) -> Iterator[pa.RecordBatch]:
        for batch in batches(warn):
            rows = batch.filter(pa.array(~_is_report(batch, columns)))
            ids, actions, kept = _feedback(rows, columns)
            found = [
                reports.get(request, _Report(action, text))
                for request, action, text in zip(ids, actions, kept, strict=True)
            ]
            for name, values in (("action", [one.action for one in found]), ("kept", [one.kept for one in found])):
                if (at := columns.feedback.get(name)) is not None:
                    rows = rows.set_column(at, rows.schema.field(at), pa.array(values, pa.string()))
            yield rows

    return read


def _is_report(batch: pa.RecordBatch, columns: ExportColumns) -> np.ndarray:
    """Whether each row is a report, bool [rows]."""
    is_empty = [[not value for value in batch.column(at).to_pylist()] for at in columns.inputs]
    has_id = [bool(value) for value in batch.column(columns.feedback["request_id"]).to_pylist()]
    return np.logical_and.reduce(np.array([has_id, *is_empty], bool))


def _feedback(batch: pa.RecordBatch, columns: ExportColumns) -> tuple[list[str], list[str], list[str | None]]:
    """Ids, actions and kept texts."""
    ids, actions = (batch.column(columns.feedback[name]).to_pylist() for name in ("request_id", "action"))
    at = columns.feedback.get("kept")
    return ids, actions, [None] * len(ids) if at is None else batch.column(at).to_pylist()


def _ignore_warning(_: str) -> None:
    """Drop a warning: it is repeated when the rows are read into the table."""
