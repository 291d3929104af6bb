"""Mistral's `POST /v1/fim/completions`: the request of a completion, the answer of a chat.

The format is that of https://docs.mistral.ai/api/#tag/fim, as the package `mistralai` sends and reads it.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, ClassVar

from fim_core.serving.protocols.base import Generated, PromptBody, Protocol, Reply, Served, event


class FimBody(PromptBody):
    """The body of a request."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"temperature", "top_p", "random_seed", "min_tokens"})


class FimReply(Reply):
    """An answer."""

    def __init__(self, body: FimBody, served: Served) -> None:
        super().__init__(body, served)
        self._common = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": served.name}

    def body(self, generated: Generated) -> dict[str, Any]:
        """The whole answer, as JSON."""
        message = {"role": "assistant", "content": generated.text, "tool_calls": None}
        choice = {"index": 0, "message": message, "finish_reason": generated.finish_reason}
        answer = {**self._common, "object": "chat.completion", "choices": [choice], "usage": generated.usage}
        return {**answer, **generated.extension}

    def chunk(self, generated: Generated, start: int) -> str:
        """One part of a stream; the last one has the usage."""
        delta = {"role": "assistant", "content": "".join(delta.text for delta in generated.deltas[start:])}
        reason = generated.finish_reason
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        answer = {**self._common, "object": "chat.completion.chunk", "choices": [choice]}
        return event({**answer, **({"usage": generated.usage, **generated.extension} if reason else {})})

    def end(self, generated: Generated) -> str:
        """The end of the stream."""
        return event("[DONE]")


MISTRAL = Protocol("/v1/fim/completions", FimBody, FimReply, lambda error: error.body)
