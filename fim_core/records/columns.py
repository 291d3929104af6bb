"""Which columns of an export are what: the shape of its rows, told by the columns or by the experiment file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fim_core.config.data import Source
from fim_core.errors import FimError
from fim_core.records.chat import ChatColumn, chat_columns
from fim_core.records.schema import RAW_SCHEMA

Shape = Literal["fim_completions", "prompt_response", "messages"]

_SHAPE_OF_TYPE: dict[str, Shape] = {
    "fim_completions": "fim_completions",
    "demo": "fim_completions",
    "sql_files": "fim_completions",
    "huggingface_prompt_response": "prompt_response",
    "huggingface_instruct": "messages",
}


@dataclass(frozen=True)
class Layout:
    """Positions of an export's columns.

    input holds the row's text; for chat rows that are made of columns (`role_mapping`, `render: chat`) there are
    several, one for each of `chat`. output and type are None where there is no such column. extras: name in the raw
    table to position, for every other column. notice: what the user should know of the choice.
    """

    shape: Shape
    inputs: tuple[int, ...]
    output: int | None
    type: int | None
    extras: Mapping[str, int]
    chat: tuple[ChatColumn, ...] = ()
    notice: str | None = None


def layout_of(columns: Sequence[str], source: Source, name: str) -> Layout:
    """Find the columns of an export that `source` describes. `name` is for messages.

    Raises:
        FimError: a column is missing or stands there twice, or the options do not fit together.
    """

    def position(wanted: str) -> int:
        found = find_column(columns, wanted, name)
        if found is None:
            raise FimError(f"{name} has no column {wanted}. Its columns are: {_listed(columns)}.")
        return found

    shape, notice = _shape_of(columns, source, name)
    chat = tuple(chat_columns(source.role_mapping or _user_and_assistant(columns, source, name), source.content_key))
    if source.render == "chat":
        if shape != "prompt_response":
            raise FimError(f"{name}: `render: chat` goes with prompt and response columns; its rows are {shape}.")
        places = (("user", _input_name(shape, source)), ("assistant", str(_output_name(shape, source))))
        chat = tuple(ChatColumn(place, role, {}) for role, place in places)
        shape = "messages"
    inputs = tuple(position(column.name) for column in chat) or (position(_input_name(shape, source)),)
    output_name = _output_name(shape, source)
    output = position(output_name) if output_name else None
    kind = find_column(columns, source.type_col, name)
    return Layout(shape, inputs, output, kind, _extras(columns, {*inputs, output, kind}), chat, notice)


def find_column(columns: Sequence[str], wanted: str, name: str) -> int | None:
    """Position of a column: the one spelled exactly so, else the only one that is so in another case, or None.

    Raises:
        FimError: there are several.
    """
    for spell in (str, lambda column: column.strip().casefold()):
        found = [at for at, column in enumerate(columns) if spell(column) == spell(wanted)]
        if len(found) > 1:
            raise FimError(f"{name} has several columns {wanted}. Its columns are: {_listed(columns)}.")
        if found:
            return found[0]
    return None


def _user_and_assistant(columns: Sequence[str], source: Source, name: str) -> Mapping[str, str]:
    """The roles of chat rows that name none and have no `messages`: the columns `user` and `assistant`."""
    if source.type != "huggingface_instruct" or source.columns or find_column(columns, "messages", name) is not None:
        return {}
    roles = ("user", "assistant")
    return {role: role for role in roles} if all(find_column(columns, role, name) is not None for role in roles) else {}


def _shape_of(columns: Sequence[str], source: Source, name: str) -> tuple[Shape, str | None]:
    if source.columns is not None:
        if source.type not in ("auto", "huggingface"):
            raise FimError(f"{name}: `columns` goes with `type: huggingface`, not with `type: {source.type}`.")
        if set(source.columns) == {"prompt", "response"}:
            return "prompt_response", None
        if set(source.columns) == {"messages"}:
            return "messages", None
        raise FimError(f"{name}: `columns` must name prompt and response, or messages.")
    if source.role_mapping:
        if source.type not in ("auto", "huggingface_instruct"):
            raise FimError(f"{name}: `role_mapping` goes with `type: huggingface_instruct`, not with {source.type}.")
        return "messages", None
    if source.type in _SHAPE_OF_TYPE:
        return _SHAPE_OF_TYPE[source.type], None

    wanted: dict[Shape, tuple[str, ...]] = {
        "fim_completions": (source.input_col, source.output_col),
        "prompt_response": ("prompt", "response"),
        "messages": ("messages",),
    }
    fitting = [
        shape for shape, names in wanted.items() if all(find_column(columns, each, name) is not None for each in names)
    ]
    if not fitting:
        raise FimError(
            f"{name} has neither {source.input_col} and {source.output_col}, nor prompt and response, nor messages. "
            f"Its columns are: {_listed(columns)}. Name them with `input_col` and `output_col`, or `columns`."
        )
    if len(fitting) == 1:
        return fitting[0], None
    return fitting[0], (
        f"{name} has the columns of {' and '.join(fitting)}: it is read as {fitting[0]}. "
        "Set the source's `type` to read it otherwise."
    )


def _input_name(shape: Shape, source: Source) -> str:
    own = {"fim_completions": source.input_col, "prompt_response": "prompt", "messages": "messages"}[shape]
    return (source.columns or {}).get(own, own)


def _output_name(shape: Shape, source: Source) -> str | None:
    own = {"fim_completions": source.output_col, "prompt_response": "response", "messages": None}[shape]
    return (source.columns or {}).get(own, own) if own else None


def _extras(columns: Sequence[str], taken: set[int | None]) -> dict[str, int]:
    """Names under which the other columns are kept: as written, but none empty and none twice in any case."""
    names: dict[str, int] = {}
    used: set[str] = set()
    for at, column in enumerate(columns):
        if at in taken:
            continue
        name = column.strip() or f"column_{at + 1}"
        if name.casefold() in RAW_SCHEMA.names:
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
