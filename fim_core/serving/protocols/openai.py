"""OpenAI's `POST /v1/completions`, which minuet-ai.nvim and many other clients speak.

The format is that of https://platform.openai.com/docs/api-reference/completions. With `logprobs`, there is one entry per
token, the stop token included. The string of a token is the text that it completed, which is empty while a character or a
stop string may be incomplete; together they are the text.
"""

from __future__ import annotations

import itertools
import time
import uuid
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from fim_core.serving.delta import Delta
from fim_core.serving.protocols.base import Generated, Options, PromptBody, Protocol, Reply, Served, event


def _single(prompt: Any) -> Any:
    return prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt


class StreamOptions(Options):
    """`stream_options`."""

    include_usage: bool = False


class CompletionBody(PromptBody):
    """The body of a request."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("temperature", "top_p", "top_k", "min_p", "seed", "n", "best_of", "logit_bias", "presence_penalty"),
            *("frequency_penalty", "repetition_penalty"),
        }
    )

    prompt: Annotated[str, BeforeValidator(_single)] = Field(description="Text left of the cursor.")
    stream_options: StreamOptions = StreamOptions()
    logprobs: bool | int | None = Field(None, description="0: of the chosen tokens; more: in top_logprobs as well.")
    echo: bool = False
    user: Any = Field(None, description="Id of the user; ignored and not stored.")

    @field_validator("echo")
    @classmethod
    def _no_echo(cls, value: bool) -> bool:
        if value:
            raise ValueError("not supported")
        return value

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer has log-probabilities."""
        return self.logprobs is not None and self.logprobs is not False


class CompletionReply(Reply):
    """An answer."""

    request: CompletionBody

    def __init__(self, body: CompletionBody, served: Served) -> None:
        super().__init__(body, served)
        self._common = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }

    def body(self, generated: Generated) -> dict[str, Any]:
        """The whole answer, as JSON."""
        return {**self._part(generated, 0), "usage": generated.usage}

    def chunk(self, generated: Generated, start: int) -> str:
        """One part of a stream."""
        return event(self._part(generated, start))

    def end(self, generated: Generated) -> str:
        """The usage, if it is asked for, and the end of the stream."""
        done = event("[DONE]")
        if not self.request.stream_options.include_usage:
            return done
        return event({**self._common, "choices": [], "usage": generated.usage}) + done

    def _part(self, generated: Generated, start: int) -> dict[str, Any]:
        deltas = generated.deltas[start:]
        reason = generated.finish_reason
        choice = {
            "index": 0,
            "text": "".join(delta.text for delta in deltas),
            "logprobs": self._logprobs(generated.deltas, start) if self.request.wants_logprobs else None,
            "finish_reason": reason,
        }
        return {**self._common, "choices": [choice], **(generated.extension if reason else {})}

    def _logprobs(self, deltas: list[Delta], start: int) -> dict[str, Any]:
        offsets = [0, *itertools.accumulate(len(delta.text) for delta in deltas)]
        tokens = deltas[start:]
        return {
            "tokens": [delta.text for delta in tokens],
            "token_logprobs": [delta.logprob for delta in tokens],
            "top_logprobs": [{delta.text: delta.logprob} for delta in tokens] if self.request.logprobs else None,
            "text_offset": offsets[start : len(deltas)],
        }


OPENAI = Protocol("/v1/completions", CompletionBody, CompletionReply, lambda error: error.body)


def model_entry(served: Served) -> dict[str, Any]:
    """The model in `GET /v1/models` and `GET /v1/models/ID`."""
    return {"id": served.name, "object": "model", "created": 0, "owned_by": "fim"}
