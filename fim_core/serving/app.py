"""A small completions server for trying a model in a real editor.

One model, one request at a time. It is meant for the machine that it runs on: it has no users and no keys, answers
only to names it was told, and takes JSON only, so that a page in a browser can neither read from it nor make it work.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import anyio
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
from fim_core.serving.completer import Completer, Delta
from fim_core.serving.protocol import Answer, ApiError, CompletionRequest, Usage, parse_request

MAX_BODY_BYTES = 4 * 1024 * 1024


def create_app(
    completer: Completer,
    *,
    model_name: str,
    max_tokens: int,
    allowed_hosts: Sequence[str],
    ddl_context: str = "",
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Starlette:
    """The ASGI application.

    Args:
        completer: the model.
        model_name: what clients call it.
        max_tokens: limit of new tokens where a request names none.
        allowed_hosts: values of the Host header that are answered; `*` for any.
        ddl_context: table definitions for requests that bring none, as those of editors.
        max_body_bytes: largest body of a request.
    """
    server = _Server(completer, model_name, max_tokens, ddl_context, max_body_bytes)
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
        self, completer: Completer, model_name: str, max_tokens: int, ddl_context: str, max_body_bytes: int
    ) -> None:
        self._completer = completer
        self._model_name = model_name
        self._max_tokens = max_tokens
        self._ddl_context = ddl_context
        self._max_body_bytes = max_body_bytes
        self._turn = anyio.Lock()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        model = {"id": self._model_name, "object": "model", "created": 0, "owned_by": "fim"}
        return JSONResponse({"object": "list", "data": [model]})

    async def completions(self, request: Request) -> Response:
        call = parse_request(await self._body(request))
        if call.model not in (None, self._model_name):
            message = f"This server has one model: {self._model_name}."
            raise ApiError(404, message, param="model", code="model_not_found")
        try:
            completion = replace(call.completion, ddl_context=call.ddl_context or self._ddl_context)
            prompt_ids = await run_sync(self._completer.prompt_ids, completion)
        except FimError as error:
            raise ApiError(400, str(error)) from error
        limit = self._limit(call, prompt_ids)
        answer = Answer(self._model_name)

        def deltas() -> AsyncGenerator[Delta, None]:
            return self._deltas(request, prompt_ids, limit, call.stop_strings)

        if call.stream:
            usage = bool(call.stream_options and call.stream_options.include_usage)
            return _EventStream(_events(deltas, answer, len(prompt_ids), usage))
        text, last = "", Delta("", 0)
        async with aclosing(deltas()) as generated:
            async for last in generated:
                text += last.text
        return JSONResponse(answer.dump(text, last.finish_reason, Usage(len(prompt_ids), last.tokens)))

    async def _body(self, request: Request) -> bytes:
        """Raises ApiError for what is not JSON by its type, or too large."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send the request as Content-Type: application/json.")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise ApiError(413, f"The request is larger than {self._max_body_bytes} bytes.")
        return bytes(body)

    def _limit(self, call: CompletionRequest, prompt_ids: list[int]) -> int:
        """How many tokens may be generated; raises ApiError when they do not fit into the model's context."""
        room = self._completer.room(prompt_ids)
        if room is None:
            return call.max_tokens or self._max_tokens
        if room < (call.max_tokens or 1):
            raise ApiError(
                400,
                f"The model reads {self._completer.context_length} tokens; the prompt has {len(prompt_ids)}, "
                f"and max_tokens is {call.max_tokens or 1}.",
                param="prompt",
                code="context_length_exceeded",
            )
        return call.max_tokens or min(self._max_tokens, room)

    async def _deltas(
        self, request: Request, prompt_ids: list[int], limit: int, stop: list[str]
    ) -> AsyncGenerator[Delta, None]:
        """Generate when it is this request's turn, for as long as its client is there."""
        async with self._turn:
            generated = self._completer.deltas(prompt_ids, max_tokens=limit, stop=stop)
            while True:
                if await request.is_disconnected():
                    raise ClientDisconnect
                delta = await run_sync(next, generated, None)
                if delta is None:
                    return
                yield delta


class _EventStream(Response):
    """Sends server-sent events from within one task, so that the model's turn ends with the connection."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        self._events = events
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        except ClientDisconnect:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _events(
    deltas: Callable[[], AsyncGenerator[Delta, None]], answer: Answer, prompt_tokens: int, include_usage: bool
) -> AsyncGenerator[str, None]:
    last = Delta("", 0)
    async with aclosing(deltas()) as generated:
        async for last in generated:
            if last.text or last.finish_reason:
                yield json.dumps(answer.dump(last.text, last.finish_reason, None))
    if include_usage:
        yield json.dumps(answer.dump_usage(Usage(prompt_tokens, last.tokens)))
    yield "[DONE]"


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(error.status_code, error.detail).body, status_code=error.status_code)


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
