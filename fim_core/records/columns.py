"""The columns of an export: which shape its rows have, and where each column goes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from fim_core.config.data import FeedbackColumns, Source
from fim_core.errors import FimError
from fim_core.records.schema import FEEDBACK_SCHEMA, RAW_SCHEMA, REJECTION_COLUMNS, FinishedPrompt
from fim_core.records.shapes import SHAPES, RowShape
from fim_core.records.shapes.messages import MESSAGES, question_columns


@dataclass(frozen=True)
class ExportColumns:
    """Positions of an export's columns.

    Attributes:
        source_type: name of the shape of its rows.
        inputs: columns that `input` is made of.
        output, type: None where the export has no such column.
        feedback: name in `FEEDBACK_SCHEMA` to position, for those that the source names.
        extras: name in the raw table to position, for every other column.
        join: makes the text of `input` from the cells of `inputs`; None: the one column is copied.
        notice: what the user should know of the choice.
    """

    source_type: str
    inputs: tuple[int, ...]
    output: int | None
    type: int | None
    feedback: Mapping[str, int]
    extras: Mapping[str, int]
    join: Callable[[Sequence[str]], str] | None = None
    notice: str | None = None


def find_columns(names: Sequence[str], source: Source, export: str, *, has_feedback: bool = False) -> ExportColumns:
    """Find the columns of an export that `source` describes.

    Args:
        names: the export's columns.
        export: its name, for messages.
        has_feedback: the raw table has the columns of `FEEDBACK_SCHEMA`, which no other column may be named like.

    Raises:
        FimError: a column is missing or ambiguous, or the options contradict each other.
    """

    def has_column(name: str) -> bool:
        return find_column(names, name, export) is not None

    def position(name: str) -> int:
        found = find_column(names, name, export)
        if found is None:
            raise FimError(f"{export} has no column {name}. Its columns are: {_listed(names)}.")
        return found

    shape, notice = _named_shape(source, export), None
    if shape is None:
        shape, notice = _recognised_shape(names, source, export, has_column)
    columns = shape.columns(source, has_column)
    if source.render == "chat":
        if shape.parses_to is not FinishedPrompt:
            raise FimError(
                f"{export}: `render: chat` goes with prompt and response columns; its rows are {shape.name}."
            )
        shape, columns = MESSAGES, question_columns(columns)
    inputs = tuple(map(position, columns.inputs))
    output = None if columns.output is None else position(columns.output)
    kind = find_column(names, source.type_col, export)
    feedback = {} if source.feedback is None else _feedback_columns(names, source.feedback, export)
    if feedback and output is None:
        raise FimError(f"{export}: `feedback` goes with rows that have an OUTPUT; its rows are {shape.name}.")
    reserved = [*RAW_SCHEMA.names, *REJECTION_COLUMNS, *(FEEDBACK_SCHEMA.names if has_feedback else ())]
    extras = _extras(names, {*inputs, output, kind, *feedback.values()}, reserved)
    return ExportColumns(shape.name, inputs, output, kind, feedback, extras, columns.join, notice)


_RAW_NAMES = {"id": "request_id", "model": "model_version"}
"""Columns of `FEEDBACK_SCHEMA` by the key of `feedback`, where they differ."""


def _feedback_columns(names: Sequence[str], feedback: FeedbackColumns, export: str) -> dict[str, int]:
    found = {}
    for key, column in feedback.model_dump(exclude_none=True).items():
        at = find_column(names, column, export)
        if at is None:
            raise FimError(
                f"{export} has no column {column}, which `feedback.{key}` names. Its columns are: {_listed(names)}. Name "
                f"another one, or remove `{key}` if the export has none."
            )
        found[_RAW_NAMES.get(key, key)] = at
    return found


def find_column(names: Sequence[str], wanted: str, export: str) -> int | None:
    """Position of a column: the one with exactly this name, else the only one that differs in case alone, or None.

    Raises:
        FimError: there are several.
    """
    for spell in (str, lambda name: name.strip().casefold()):
        found = [at for at, name in enumerate(names) if spell(name) == spell(wanted)]
        if len(found) > 1:
            raise FimError(f"{export} has several columns {wanted}. Its columns are: {_listed(names)}.")
        if found:
            return found[0]
    return None


def _named_shape(source: Source, export: str) -> RowShape | None:
    """The shape that the source's options name, or None."""
    if source.columns is not None:
        if source.type not in ("auto", "huggingface", "snowflake"):
            raise FimError(f"{export}: `columns` goes with `type: huggingface`, not with `type: {source.type}`.")
        with_keys = [shape for shape in SHAPES if shape.keys]
        for shape in with_keys:
            if set(shape.keys) == set(source.columns):
                return shape
        raise FimError(
            f"{export}: `columns` must name {', or '.join(' and '.join(shape.keys) for shape in with_keys)}."
        )
    if source.role_mapping:
        if source.type not in ("auto", "snowflake", *MESSAGES.types):
            raise FimError(f"{export}: `role_mapping` goes with `type: {MESSAGES.types[0]}`, not with {source.type}.")
        return MESSAGES
    return next((shape for shape in SHAPES if source.type in shape.types), None)


def _recognised_shape(
    names: Sequence[str], source: Source, export: str, has_column: Callable[[str], bool]
) -> tuple[RowShape, str | None]:
    """The first shape whose columns the export has, and a notice if it has those of several."""
    needed = {}
    for shape in SHAPES:
        columns = shape.columns(source, has_column)
        needed[shape.name] = [*columns.inputs, *([] if columns.output is None else [columns.output])]
    fitting = [shape for shape in SHAPES if all(map(has_column, needed[shape.name]))]
    if not fitting:
        wanted = ", nor ".join(" and ".join(columns) for columns in needed.values())
        raise FimError(
            f"{export} has neither {wanted}. "
            f"Its columns are: {_listed(names)}. Name them with `input_col` and `output_col`, or `columns`."
        )
    if len(fitting) == 1:
        return fitting[0], None
    return fitting[0], (
        f"{export} has the columns of {' and '.join(shape.name for shape in fitting)}: it is read as {fitting[0].name}. "
        "Set the source's `type` to choose another shape."
    )


def _extras(columns: Sequence[str], taken: set[int | None], reserved: Collection[str]) -> dict[str, int]:
    """The other columns' names in the raw table: as written, but never empty, and distinct also when case is ignored."""
    names: dict[str, int] = {}
    used: set[str] = set()
    for at, column in enumerate(columns):
        if at in taken:
            continue
        name = column.strip() or f"column_{at + 1}"
        if name.casefold() in reserved:
            name = f"export_{name}"
        unique, number = name, 1
        while unique.casefold() in used:
            number += 1
            unique = f"{name}_{number}"
        used.add(unique.casefold())
        names[unique] = at
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "(none)"
