"""What users did with completions, and which text of a row is trained on:

ACTION               SHOWN      text
-------------------  ---------  ------------------------------------------------------------------------------
accepted             not false  OUTPUT
edited               any        KEPT, or no_kept_text if it is empty or there is no such column
rejected             not false  none: rejected_by_user
empty                true       none: no_action. The completion was shown, and nobody says that it was inserted
empty                other      OUTPUT: a row without feedback, or text that the user typed
no such column       any        OUTPUT
anything else        any        none: unknown_feedback, also if SHOWN is neither true, false nor empty

OUTPUT is the text that was inserted, so if nothing was shown, the user typed it. In a log of `fim serve` (rows with a
request_id), it is what the model generated: such a row without an ACTION is no_action whatever SHOWN is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import pyarrow as pa

from fim_core.records.schema import FEEDBACK_SCHEMA, Reason, Rejection

ACCEPTED, REJECTED, EDITED = "accepted", "rejected", "edited"
ACTIONS = (ACCEPTED, REJECTED, EDITED)

NOT_ACCEPTED = (Reason.REJECTED_BY_USER, Reason.NO_ACTION, Reason.NO_KEPT_TEXT)
"""Reasons that are no fault of the data. The checks `rejected_share` and `not_accepted` name them as well."""

_SHOWN = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), "true"),
    **dict.fromkeys(("false", "f", "no", "n", "0"), "false"),
    "": "",
}


def text_to_train_on(
    output: str,
    shown: str | None,
    action: str | None,
    kept: str | None,
    request_id: str | None,
    *,
    null_marks: Collection[str] = (),
) -> str | Rejection:
    """The text of a raw row that the model learns to write, by the table of this module.

    Args:
        output: of the raw row.
        shown, action, kept, request_id: its VERDICT_COLUMNS.
        null_marks: values that mean an empty one.
    """
    if shown in null_marks:
        shown = ""
    if action in null_marks:
        action = ""
    if shown not in (None, "", "true", "false"):
        return Rejection(Reason.UNKNOWN_FEEDBACK, "SHOWN is neither true nor false")
    if action not in (None, "", *ACTIONS):
        return Rejection(Reason.UNKNOWN_FEEDBACK, f"ACTION is none of {', '.join(ACTIONS)}")
    if action in (ACCEPTED, REJECTED) and shown == "false":
        return Rejection(Reason.UNKNOWN_FEEDBACK, f"ACTION is {action}, but SHOWN is false")
    if action == REJECTED:
        return Rejection(Reason.REJECTED_BY_USER, "the user rejected the completion")
    if action == EDITED:
        if not kept or kept in null_marks:
            return Rejection(Reason.NO_KEPT_TEXT, "the user edited the completion, and KEPT is empty")
        return kept
    if action == "" and (shown == "true" or request_id is not None):
        return Rejection(Reason.NO_ACTION, "the completion is the model's, and ACTION is empty")
    return output


def unified(name: str, column: pa.Array) -> pa.Array:
    """A column of an export as the column `name` of `FEEDBACK_SCHEMA`."""
    unify = _UNIFY.get(name)
    return column if unify is None else pa.array(map(unify, column.to_pylist()), FEEDBACK_SCHEMA.field(name).type)


def _shown(value: str) -> str:
    return _SHOWN.get(value.strip().lower(), value)


def _action(value: str) -> str:
    plain = value.strip().lower()
    return plain if plain in ("", *ACTIONS) else value


_UNIFY: dict[str, Callable[[str], str]] = {"shown": _shown, "action": _action}
