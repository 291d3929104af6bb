"""A small completions server for trying a model in a real editor.

It serves one model, one request at a time, and is meant for local use: it has no users and no API keys. It accepts only given
values of the Host header and only JSON, so that a web page in a browser can neither read from it nor send it work.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass, replace

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fim_core.errors import FimError
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer, Delta
from fim_core.serving.protocol import Answer, ApiError, CompletionRequest, Usage, parse_request


@dataclass(frozen=True)
class RequestLimits:
    """Limits of requests.

    Attributes:
        body_bytes: maximum size of the body.
        body_seconds: maximum time from the end of the headers to the end of the body.
        requests: maximum number of active and waiting requests. More get status 503; editors retry at the next keystroke.
    """

    body_bytes: int = 4 * 1024 * 1024
    body_seconds: float = 20
    requests: int = 64


LONG_PROMPT = 20_000
"""Prompts longer than this many characters are tokenized in a separate thread, so that short ones do not wait."""


def create_app(
    completer: Completer,
    *,
    model_name: str,
    max_tokens: int,
    allowed_hosts: Sequence[str],
    ddl_context: str = "",
    limits: RequestLimits | None = None,
) -> Starlette:
    """Create the ASGI application.

    Args:
        completer: the model.
        model_name: name of the model in the API.
        max_tokens: default limit of new tokens.
        allowed_hosts: accepted values of the Host header; `*` for any.
        ddl_context: table definitions for requests without any, such as those of editors.
        limits: limits of requests.
    """
    server = _Server(completer, model_name, max_tokens, ddl_context, limits or RequestLimits())
    return Starlette(
        routes=[
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/models", server.models, methods=["GET"]),
            Route("/health", server.health, methods=["GET"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _client_left},
    )


class _Server:
    def __init__(
        self, completer: Completer, model_name: str, max_tokens: int, ddl_context: str, limits: RequestLimits
    ) -> None:
        self._completer = completer
        self._model_name = model_name
        self._max_tokens = max_tokens
        self._ddl_context = ddl_context
        self._limits = limits
        self._requests = 0
        self._turn = anyio.Lock()
        # Separate threads, so that short prompts, long prompts and the model do not wait for each other.
        self._short, self._long, self._model = (anyio.CapacityLimiter(1) for _ in range(3))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        model = {"id": self._model_name, "object": "model", "created": 0, "owned_by": "fim"}
        return JSONResponse({"object": "list", "data": [model]})

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        if self._requests >= self._limits.requests:
            raise ApiError(503, "Too many requests are waiting.", code="overloaded")
        with self._counted():
            call = parse_request(body)
            if call.model not in (None, self._model_name):
                message = f"This server has only one model: {self._model_name}."
                raise ApiError(404, message, param="model", code="model_not_found")
            prompt_ids = await self._prompt_ids(call)
        limit = self._limit(call, prompt_ids)
        answer = Answer(self._model_name)

        def deltas() -> AsyncGenerator[Delta, None]:
            return self._deltas(request, prompt_ids, limit, call.stop_strings)

        if call.stream:
            usage = bool(call.stream_options and call.stream_options.include_usage)
            return _EventStream(_events(deltas, answer, len(prompt_ids), usage))
        text, last = "", Delta("", 0, 0.0)
        async with aclosing(deltas()) as generated:
            async for last in generated:
                text += last.text
        return JSONResponse(answer.dump(text, last.finish_reason, Usage(len(prompt_ids), last.tokens)))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request as waiting or active."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _prompt_ids(self, call: CompletionRequest) -> list[int]:
        """Tokenize the prompt in another thread; raises ApiError if it is much too long."""
        completion = replace(call.completion, ddl_context=call.ddl_context or self._ddl_context)
        length, most = _characters(completion), self._completer.max_characters
        if length > most:
            message = f"The prompt has {length:,} characters with its context; the maximum for this model is {most:,}."
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        limiter = self._long if length > LONG_PROMPT else self._short
        try:
            return await run_sync(self._completer.prompt_ids, completion, limiter=limiter)
        except FimError as error:
            raise ApiError(400, str(error)) from error

    async def _body(self, request: Request) -> bytes:
        """Read the body; raises ApiError if its type is not JSON, or it is too large or too slow."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send the request as Content-Type: application/json.")
        body = bytearray()
        try:
            with anyio.fail_after(self._limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._limits.body_bytes:
                        raise ApiError(413, f"The request body is larger than {self._limits.body_bytes} bytes.")
        except TimeoutError:
            raise ApiError(408, f"The request body took longer than {self._limits.body_seconds:g} seconds.") from None
        return bytes(body)

    def _limit(self, call: CompletionRequest, prompt_ids: list[int]) -> int:
        """The limit of new tokens; raises ApiError if they do not fit into the model's context."""
        room = self._completer.room(prompt_ids)
        if room is None:
            return call.max_tokens or self._max_tokens
        if room < (call.max_tokens or 1):
            raise ApiError(
                400,
                f"The context of the model is {self._completer.context_length} tokens; the prompt has {len(prompt_ids)}, "
                f"and max_tokens is {call.max_tokens or 1}.",
                param="prompt",
                code="context_length_exceeded",
            )
        return call.max_tokens or min(self._max_tokens, room)

    async def _deltas(
        self, request: Request, prompt_ids: list[int], limit: int, stop: list[str]
    ) -> AsyncGenerator[Delta, None]:
        """Wait for this request's turn, and generate until the client disconnects."""
        with self._counted():
            async with self._turn:
                generated = self._completer.deltas(prompt_ids, max_tokens=limit, stop=stop)
                while True:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    delta = await run_sync(next, generated, None, limiter=self._model)
                    if delta is None:
                        return
                    yield delta


class _EventStream(Response):
    """A response of server-sent events.

    A separate task generates the events and buffers them for the client, so that a slow client does not block the model. The
    buffer is bounded by the number of requested tokens."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        self._events = events
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        produced, ready = anyio.create_memory_object_stream[str | None](math.inf)
        async with anyio.create_task_group() as tasks, ready:
            tasks.start_soon(self._produce, produced)
            async for event in ready:
                if event is None:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})

    async def _produce(self, produced: MemoryObjectSendStream[str | None]) -> None:
        """Send all events to `produced`, then None. A stream that ends without None means that the client disconnected."""
        try:
            async with produced, aclosing(self._events) as events:
                async for event in events:
                    produced.send_nowait(event)
                produced.send_nowait(None)
        except ClientDisconnect:
            return


async def _events(
    deltas: Callable[[], AsyncGenerator[Delta, None]], answer: Answer, prompt_tokens: int, include_usage: bool
) -> AsyncGenerator[str, None]:
    last = Delta("", 0, 0.0)
    async with aclosing(deltas()) as generated:
        async for last in generated:
            if last.text or last.finish_reason:
                yield json.dumps(answer.dump(last.text, last.finish_reason, None))
    if include_usage:
        yield json.dumps(answer.dump_usage(Usage(prompt_tokens, last.tokens)))
    yield "[DONE]"


def _characters(completion: Completion) -> int:
    return sum(len(text) for text in asdict(completion).values() if isinstance(text, str))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    # The unread rest of a body would be taken for the next request.
    headers = {"connection": "close"} if error.status in {408, 413, 503} else {}
    return JSONResponse(error.body, status_code=error.status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(error.status_code, error.detail).body, status_code=error.status_code)


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # never read, the client has disconnected
