"""Requests and responses of the completions API that editors use.

The format is OpenAI's `POST /v1/completions` (https://platform.openai.com/docs/api-reference/completions). Unsupported options
are refused, never ignored. Decoding is greedy, so sampling options are accepted if they do not change the greedy choice (any
`top_p`, `top_k` and `seed`; a temperature up to 0.01, which editors send for "none") and refused otherwise.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fim_core.records.schema import Completion

Stop = str | list[str] | None
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


class ApiError(Exception):
    """An error in the format of the API."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool = False


class CompletionRequest(_Body):
    """The body of `POST /v1/completions`."""

    model: str | None = None
    prompt: str = Field(description="Text left of the cursor.")
    suffix: str | None = Field(None, description="Text right of the cursor.")
    max_tokens: int | None = Field(None, ge=1)
    stop: Stop = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    sql_history: str = Field("", description="Recent statements; context as in training.")
    ddl_context: str = Field("", description="Table definitions; context as in training.")
    last_few_executed: str = Field("", description="Statements that ran last; context as in training.")
    file_content: str = Field("", description="The open file; context as in training.")

    temperature: float | None = Field(None, ge=0, le=0.01)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = None
    seed: int | None = None
    user: str | None = Field(None, description="Id of the user; ignored and not stored.")
    n: int | None = Field(None, ge=1, le=1)
    best_of: int | None = Field(None, ge=1, le=1)
    echo: bool | None = None
    logprobs: None = None
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list, without empty strings, which would end every completion immediately."""
        return [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]

    @property
    def completion(self) -> Completion:
        """The fields of the prompt."""
        return Completion(
            prefix=self.prompt,
            suffix=self.suffix or "",
            sql_history=self.sql_history,
            ddl_context=self.ddl_context,
            last_few_executed=self.last_few_executed,
            file_content=self.file_content,
        )


def parse_request(body: bytes) -> CompletionRequest:
    """Parse the body of a request.

    Raises:
        ApiError: not JSON, or an unknown or unsupported option; the message names it and does not quote its value.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in problem["loc"]) or None
        if problem["type"] == "json_invalid":
            raise ApiError(400, "The body is not valid JSON.") from None
        if problem["type"] == "extra_forbidden":
            message = f"{param}: unknown option."
            raise ApiError(400, message, param=param, code="unknown_parameter") from None
        hint = " This server decodes greedily." if param in _DECODING else ""
        raise ApiError(400, f"{param}: {problem['msg']}.{hint}", param=param, code="unsupported_value") from None
    if request.echo:
        raise ApiError(400, "echo: not supported.", param="echo", code="unsupported_value")
    stops = request.stop_strings
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        message = f"stop: at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters each."
        raise ApiError(400, message, param="stop", code="unsupported_value")
    return request


_DECODING = {"temperature", "top_p", "n", "best_of", "logprobs", "presence_penalty", "frequency_penalty", "logit_bias"}


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens of one request, stop token included."""

    prompt_tokens: int
    completion_tokens: int

    def dump(self) -> dict[str, int]:
        """The usage in the format of the API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True)
class Answer:
    """The common fields of all parts of a response."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def dump(self, text: str, finish_reason: str | None, usage: Usage | None) -> dict[str, Any]:
        """A complete response, or one chunk of a stream."""
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return self._dump([choice], usage)

    def dump_usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream with `include_usage`, without text."""
        return self._dump([], usage)

    def _dump(self, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        answer = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**answer, "choices": choices, **({"usage": usage.dump()} if usage else {})}
