"""`POST /v1/feedback`: what a user did with a completion. Its own format; no protocol of editors has one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fim_core.serving.protocols.base import Options

FEEDBACK_PATH = "/v1/feedback"


def _plain(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


class FeedbackBody(Options):
    """The body of a request."""

    id: str = Field(description="`fim.id` of the answer.")
    action: Annotated[Literal["accepted", "rejected", "edited"], BeforeValidator(_plain)]
    kept: str = Field("", description="The text that the user kept in place of the completion.")
