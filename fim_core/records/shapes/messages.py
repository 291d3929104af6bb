"""Conversations: messages of `role` and `content`, in one column or put together from several.

`role_mapping` gives for each role where its text is: `column.key.value` for the messages of a list column whose `key`
holds `value` (`user: conversations.from.human`), or `column` for a text that is one message (`assistant: answer`).
Messages come in the order of the mapping; those of a list column stay together and in their own order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from fim_core.config.data import Source
from fim_core.errors import FimError
from fim_core.records.schema import Conversation, Message, Reason, Rejection
from fim_core.records.shapes.base import ParsedRow, ShapeColumns

_TEXT_KEYS = ("content", "text", "message", "value")


@dataclass(frozen=True)
class ChatColumn:
    """A column that messages come from: one message of `role`, or a list whose (key, value) pairs give the role.

    text_keys: where the text of a message in a list is, the first that it has.
    """

    name: str
    role: str | None
    roles: Mapping[tuple[str, str], str]
    text_keys: tuple[str, ...] = _TEXT_KEYS


@dataclass(frozen=True)
class Messages:
    """`messages`; or `user` and `assistant`; or the columns of a `role_mapping`."""

    name: str = "messages"
    types: tuple[str, ...] = ("huggingface_instruct",)
    keys: tuple[str, ...] = ("messages",)
    parses_to: type[ParsedRow] = Conversation

    def columns(self, source: Source, has_column: Callable[[str], bool]) -> ShapeColumns:
        """The columns of `role_mapping` or `columns`, else `messages`, else `user` and `assistant`.

        Raises:
            FimError: a place in `role_mapping` is neither `column` nor `column.key.value`.
        """
        mapping = source.role_mapping or {}
        roles = ("user", "assistant")
        is_named = source.type in self.types and not source.columns
        if not mapping and is_named and not has_column("messages") and all(map(has_column, roles)):
            mapping = {role: role for role in roles}
        if mapping:
            return joined(chat_columns(mapping, source.content_key))
        return ShapeColumns(((source.columns or {}).get("messages", "messages"),), None)

    def parse(self, text: str, placeholder: str) -> Conversation | Rejection:
        """The messages up to the assistant's last one."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return Rejection(Reason.INVALID_JSON, "messages are not JSON")
        if not isinstance(value, list):
            return Rejection(Reason.UNSUPPORTED_JSON, "messages are not a JSON array")
        messages: list[Message] = []
        for number, turn in enumerate(value):
            role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
            if not isinstance(role, str) or not isinstance(content, str):
                return Rejection(Reason.UNSUPPORTED_JSON, f"message {number} has no role or no content as text")
            if not _is_text(role) or not _is_text(content):
                return Rejection(Reason.UNSUPPORTED_JSON, f"message {number} holds half of a surrogate pair")
            messages.append({"role": role, "content": content})
        if not messages:
            return Rejection(Reason.EMPTY_INPUT, "there are no messages")
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        return Conversation(messages) if messages else Rejection(Reason.EMPTY_OUTPUT, "no message is the assistant's")


MESSAGES = Messages()


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


def question_columns(columns: ShapeColumns) -> ShapeColumns:
    """A question and its answer as the columns of a conversation (`render: chat`)."""
    places = (("user", columns.inputs[0]), ("assistant", str(columns.output)))
    return joined([ChatColumn(name, role, {}) for role, name in places])


def joined(columns: Sequence[ChatColumn]) -> ShapeColumns:
    """Columns whose cells become the messages of a row."""
    return ShapeColumns(tuple(column.name for column in columns), None, partial(messages_text, columns))


def messages_text(columns: Sequence[ChatColumn], cells: Sequence[str]) -> str:
    """JSON text [{"role", "content"}, …] of one row; `cells` holds each column's text.

    A message that the mapping does not name keeps its own word for the role. A cell that is not a list of messages is
    returned unchanged, so that `Messages.parse` rejects the row.
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


def _is_text(text: str) -> bool:
    """Whether UTF-8 can encode it: no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= mark <= "\udfff" for mark in text)
