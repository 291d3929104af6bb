"""Chat rows that say who speaks in their own words, as messages of `role` and `content`.

`role_mapping` gives for each role where its text lies: `column.key.value` for the messages of a list column whose `key`
holds `value` (`user: conversations.from.human`), or `column` for a text that is one message (`assistant: answer`).
Messages come in the order of the mapping; those of a list column stay together and in their own order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from fim_core.errors import FimError

_TEXT_KEYS = ("content", "text", "message", "value")


@dataclass(frozen=True)
class ChatColumn:
    """A column that messages come from: one message of `role`, or a list whose (key, value) tell the role.

    text_keys: where the text of a message in a list is, the first that it has.
    """

    name: str
    role: str | None
    roles: Mapping[tuple[str, str], str]
    text_keys: tuple[str, ...] = _TEXT_KEYS


def chat_columns(mapping: Mapping[str, str], content_key: str | None = None) -> list[ChatColumn]:
    """Read a `role_mapping`, and the `content_key` of its messages.

    Raises:
        FimError: a place is neither `column` nor `column.key.value`.
    """
    columns: dict[str, ChatColumn] = {}
    keys = _TEXT_KEYS if content_key is None else (content_key,)
    for role, place in mapping.items():
        match place.split(".", 2):
            case [name]:
                column = ChatColumn(name, role, {})
            case [name, key, value]:
                known = columns[name].roles if name in columns else {}
                column = ChatColumn(name, None, {**known, (key, value): role}, keys)
            case _:
                raise FimError(f"role_mapping: {role}: {place} is neither `column` nor `column.key.value`.")
        if name in columns and columns[name].role != column.role:
            raise FimError(f"role_mapping names column {name} both as one message and as a list of messages.")
        columns[name] = column
    return list(columns.values())


def messages_text(columns: Sequence[ChatColumn], cells: Sequence[str]) -> str:
    """JSON text [{"role", "content"}, …] of one row; `cells` holds each column's text.

    A message that the mapping does not name keeps its own word for the role. A cell that is no list of messages is
    returned as it is: whoever reads the messages rejects the row.
    """
    messages: list[Any] = []
    for column, cell in zip(columns, cells, strict=True):
        if column.role is not None:
            messages.append({"role": column.role, "content": cell})
            continue
        try:
            turns = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            return cell
        messages += [_message(turn, column) for turn in turns]
    return json.dumps(messages, ensure_ascii=False)


def _message(turn: dict[str, Any], column: ChatColumn) -> dict[str, Any]:
    mapped = (role for (key, value), role in column.roles.items() if turn.get(key) == value)
    own = (turn[key] for key, _ in column.roles if key in turn)
    text = (turn[key] for key in column.text_keys if isinstance(turn.get(key), str))
    return {"role": next(chain(mapped, own), None), "content": next(text, None)}
