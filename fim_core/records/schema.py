"""The schema of the raw table, the kinds of parsed rows, and the reasons for rejecting a row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

PLACEHOLDER = "<fillMe>"
"""Marks the cursor in the SQL of an INPUT, where OUTPUT was inserted."""

CONTEXT_FIELDS = ("sql_history", "ddl_context", "last_few_executed", "file_content")
"""Context that an editor sends along, in the order in which it is documented."""

RAW_SCHEMA = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_type", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("input", pa.string(), nullable=False),
        pa.field("output", pa.string(), nullable=False),
        pa.field("held_out", pa.bool_(), nullable=False),
    ]
)
"""First columns of the `raw_completions` table; every other column of the export follows, as text.

    row_id       first 12 hex digits of the SHA-256 of the export's bytes, "-", row number from 0
    source       file name (below the folder that was given) or data set id
    source_type  name of the row's shape (`fim_core.records.shapes`): fim_completions, prompt_response or messages
    type         kind of completion, from the export's own column; empty where there is none
    input        the editor's state as written; the finished prompt; or the messages as JSON text [{"role", "content"}, …]
    output       the completion as written; response; empty for messages
    held_out     the row comes from `eval_sources`
"""


REJECTION_COLUMNS = ("reason", "detail")
"""Columns that the table of rejected rows adds to those of the raw table; no other column may be named like them."""

VERDICT_COLUMNS = ("shown", "action", "kept", "request_id")
"""Columns that decide which text of a row is trained on (see `fim_core.records.feedback`)."""

FEEDBACK_SCHEMA = pa.schema([(name, pa.string()) for name in (*VERDICT_COLUMNS, "model_version")])
"""Columns after those of `RAW_SCHEMA`, only if a source has feedback; null where its export does not have the column.

    shown          whether the completion was shown: true, false, or empty if unknown
    action         what the user did: accepted, rejected, edited, or empty if unknown
    kept           the text that the user kept in place of the completion; empty if unknown
    request_id     id in a log of `fim serve`, where `output` is what the model generated
    model_version  version of the model that generated `output`; empty if unknown

Case and white space of `shown` and `action` are unified; values of another kind stay as written.
"""

LEFT_OUT = "left_out"
"""The split of rows that are neither trained on nor held out (see `fim_core.prompts.split`)."""


class Reason(StrEnum):
    """Why a row is not used.

    REJECTED_BY_USER, NO_ACTION and NO_KEPT_TEXT are what users did with usable rows (see `fim_core.records.feedback`).
    """

    EMPTY_INPUT = "empty_input"
    INVALID_JSON = "invalid_json"
    UNSUPPORTED_JSON = "unsupported_json"
    DOUBLE_ENCODED_JSON = "double_encoded_json"
    PYTHON_REPR = "python_repr"
    MISSING_PLACEHOLDER = "missing_placeholder"
    MULTIPLE_PLACEHOLDERS = "multiple_placeholders"
    BAD_CONTEXT = "bad_context"
    CONTROL_TOKEN = "control_token"
    EMPTY_OUTPUT = "empty_output"
    EMPTY_PREFIX = "empty_prefix"
    TOO_LONG = "too_long"
    REJECTED_BY_USER = "rejected_by_user"
    NO_ACTION = "no_action"
    NO_KEPT_TEXT = "no_kept_text"
    UNKNOWN_FEEDBACK = "unknown_feedback"


@dataclass(frozen=True, slots=True)
class Completion:
    """An editor's state at the moment of a completion, every text as the user had it.

    `prefix` + OUTPUT + `suffix` is the SQL after the completion. `repaired`: the INPUT was JSON only after escapes
    had been added.
    """

    prefix: str
    suffix: str
    sql_history: str = ""
    ddl_context: str = ""
    last_few_executed: str = ""
    file_content: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class FinishedPrompt:
    """A prompt that the model reads as it is, control tokens included."""

    text: str


Message = dict[str, str]
"""Keys `role` and `content`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of a conversation; the last one is the assistant's."""

    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that cannot be used. `detail` says what is wrong and never quotes user text."""

    reason: Reason
    detail: str
