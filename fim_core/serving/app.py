"""A small completions server for trying a model in a real editor.

It serves one model, one request at a time, and is meant for local use: it has no users and no API keys. It accepts only given
values of the Host header and only JSON, so that a web page in a browser can neither read from it nor send it work. All
protocols share one way from request to answer, with the same limits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fim_core.errors import FimError
from fim_core.prompts.trim import FittedPrompt
from fim_core.records.schema import Completion
from fim_core.serving.choice import Choice
from fim_core.serving.completer import Completer
from fim_core.serving.completion_log import CompletionLog
from fim_core.serving.delta import Delta
from fim_core.serving.feedback import FEEDBACK_PATH, FeedbackBody
from fim_core.serving.protocols import PROTOCOLS, Protocol
from fim_core.serving.protocols.base import ApiError, Body, Call, Generated, Notices, Reply, Served
from fim_core.serving.protocols.ollama import API_VERSION, ShowBody, list_models, model_name, show_model
from fim_core.serving.protocols.openai import model_entry
from fim_core.serving.stream import PartsResponse


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


logger = logging.getLogger(__name__)

T = TypeVar("T")
_END: Any = object()

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
    log: CompletionLog | None = None,
) -> Starlette:
    """Create the ASGI application.

    Args:
        completer: the model. It is closed when the server ends.
        model_name: name of the model in the API.
        max_tokens: default limit of new tokens.
        allowed_hosts: accepted values of the Host header; `*` for any.
        ddl_context: table definitions for requests without any, such as those of editors.
        limits: limits of requests.
        log: of completions and of what users did with them; None keeps none.
    """
    served = Served(model_name, completer.context_length, completer.fim_block)
    server = _Server(completer, served, max_tokens, ddl_context, limits or RequestLimits(), log)
    return Starlette(
        routes=[
            *(Route(protocol.path, server.endpoint(protocol), methods=["POST"]) for protocol in PROTOCOLS),
            Route("/v1/models", server.models, methods=["GET"]),
            Route("/v1/models/{name:path}", server.model, methods=["GET"]),
            Route("/api/tags", server.ollama_models, methods=["GET"]),
            Route("/api/show", server.ollama_model, methods=["POST"]),
            Route("/api/version", server.ollama_version, methods=["GET"]),
            *([] if log is None else [Route(FEEDBACK_PATH, partial(server.feedback, log), methods=["POST"])]),
            Route("/health", server.health, methods=["GET"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, ClientDisconnect: _client_left},
        lifespan=server.lifespan,
    )


class _Server:
    def __init__(
        self,
        completer: Completer,
        served: Served,
        max_tokens: int,
        ddl_context: str,
        limits: RequestLimits,
        log: CompletionLog | None,
    ) -> None:
        self._completer = completer
        self._served = served
        self._max_tokens = max_tokens
        self._ddl_context = ddl_context
        self._limits = limits
        self._log = log
        self._notices = Notices()
        self._requests = 0
        self._turn = anyio.Lock()
        # Separate threads, so that short prompts, long prompts, the model and the log do not wait for each other.
        self._short, self._long, self._model, self._writer = (anyio.CapacityLimiter(1) for _ in range(4))

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """End with the server the process that checks statements: one that was stopped does not notice the end."""
        yield
        self._completer.close()

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_entry(self._served)]})

    async def model(self, request: Request) -> Response:
        self._require_model(request.path_params["name"])
        return JSONResponse(model_entry(self._served))

    async def ollama_models(self, request: Request) -> Response:
        return JSONResponse(list_models(self._served))

    async def ollama_version(self, request: Request) -> Response:
        return JSONResponse({"version": API_VERSION})

    async def ollama_model(self, request: Request) -> Response:
        body = ShowBody.parse(await self._content(request))
        self._require_model(model_name(body.model or body.name))
        return JSONResponse(show_model(self._served))

    async def feedback(self, log: CompletionLog, request: Request) -> Response:
        """Add to the log what a user did with a completion."""
        body = FeedbackBody.parse(await self._content(request))
        if not log.knows(body.id):
            raise ApiError(404, "No completion of this server has this id.", param="id", code="unknown_id")
        if not await run_sync(log.report, body.id, body.action, body.kept, limiter=self._writer):
            raise ApiError(503, "The log of this server cannot be written.", code="log_unavailable")
        return JSONResponse({"id": body.id, "action": body.action})

    def endpoint(self, protocol: Protocol) -> Callable[[Request], Any]:
        """The endpoint of a protocol, with errors in its format."""

        async def answer(request: Request) -> Response:
            try:
                return await self._answer(protocol, request)
            except ApiError as error:
                return _error_response(error, protocol.error(error))

        return answer

    async def _answer(self, protocol: Protocol, request: Request) -> Response:
        start = time.monotonic()
        content = await self._content(request)
        if self._requests >= self._limits.requests:
            raise ApiError(503, "Too many requests are waiting.", code="overloaded")
        with self._counted():
            body: Body = protocol.body.parse(content)
            self._notices.note(body)
            call = body.call
            self._require_model(call.model)
            completion = self._completion(call)
            prompt = await self._prompt(call, completion)
        generated = Generated(len(prompt.ids), prompt.trimmed)
        if self._log is not None and not call.is_warm_up:
            generated.id = self._log.new_id()
        finish = partial(self._finish, body, completion, generated, start)
        deltas = self._deltas(request, call, completion, prompt.ids, generated)
        reply = protocol.reply(body, self._served)
        if call.stream:
            return PartsResponse(_parts(reply, generated, deltas, finish), reply.media_type)
        async with aclosing(deltas):
            async for _ in deltas:
                pass
        await finish()
        return JSONResponse(reply.body(generated))

    async def _finish(self, body: Body, completion: Completion, generated: Generated, start: float) -> None:
        """Add a completion to the log, if there is one."""
        if self._log is None or generated.id is None:
            return
        write = partial(
            self._log.completion,
            generated.id,
            completion,
            generated.choice.hidden if generated.choice and not generated.choice.shown else generated.text,
            kind=body.type,
            shown=bool(generated.text),
            confidence=generated.choice.confidence if generated.choice else None,
            seconds=time.monotonic() - start,
        )
        await run_sync(write, limiter=self._writer)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request as waiting or active."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def _require_model(self, name: str | None) -> None:
        if name not in (None, self._served.name):
            message = f"This server has only one model: {self._served.name}."
            raise ApiError(404, message, param="model", code="model_not_found")

    async def _prompt(self, call: Call, completion: Completion) -> FittedPrompt:
        """Tokenize the prompt in another thread, trimmed if necessary; raises ApiError if it is much too long."""
        length, most = _characters(completion), self._completer.max_characters
        if length > most:
            message = f"The prompt has {length:,} characters with its context; the maximum for this model is {most:,}."
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        limiter = self._long if length > LONG_PROMPT else self._short
        fit = partial(self._completer.fit, completion, max_tokens=self._max_new(call))
        try:
            return await run_sync(fit, limiter=limiter)
        except FimError as error:
            raise ApiError(400, str(error), param="prompt") from error

    def _completion(self, call: Call) -> Completion:
        """The fields of the prompt; raises ApiError if it has FIM markers that cannot be taken apart."""
        prefix, suffix = call.prompt, call.suffix
        if call.may_be_rendered:
            try:
                prefix, suffix = self._completer.text_around_cursor(prefix, suffix)
            except FimError as error:
                raise ApiError(400, str(error), param="prompt", code="rendered_prompt") from error
        context: dict[str, Any] = {**call.context, "ddl_context": call.context["ddl_context"] or self._ddl_context}
        return Completion(prefix, suffix, **context)

    def _max_new(self, call: Call) -> int:
        return call.max_tokens or self._max_tokens

    async def _content(self, request: Request) -> bytes:
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

    async def _deltas(
        self, request: Request, call: Call, completion: Completion, prompt_ids: list[int], generated: Generated
    ) -> AsyncGenerator[Delta, None]:
        """Wait for this request's turn, and generate until the client disconnects; adds the deltas to `generated`."""
        with self._counted():
            async with self._turn:
                start, computed = time.monotonic(), self._completer.computed
                if call.is_warm_up:
                    if await request.is_disconnected():
                        raise ClientDisconnect
                    await run_sync(self._completer.read, prompt_ids, limiter=self._model)
                    generated.prompt_read(time.monotonic() - start, self._completer.computed - computed)
                    return
                room = self._completer.room(prompt_ids)
                most = self._max_new(call) if room is None else min(self._max_new(call), room)
                tokens = self._completer.deltas(prompt_ids, max_tokens=most, stop=call.stop)
                async for delta in self._steps(request, tokens):
                    generated.add(delta, time.monotonic() - start, self._completer.computed - computed, call.seconds)
                    if not self._completer.chooses:
                        yield generated.deltas[-1]
                    if generated.finish_reason:
                        break
                if self._completer.chooses:
                    choices = self._completer.choose(
                        prompt_ids,
                        completion,  # not trimmed, since a half statement does not parse
                        generated.deltas,
                        max_tokens=most,
                        stop=call.stop,
                        seconds=math.inf if call.seconds is None else call.seconds - generated.seconds,
                    )
                    await self._choose(request, choices, generated)
                    yield generated.deltas[-1]

    async def _choose(self, request: Request, choices: Iterator[Choice | None], generated: Generated) -> None:
        """Replace the greedy completion by what is to be shown."""
        start = time.monotonic()
        try:
            async for choice in self._steps(request, choices):
                if choice is not None:
                    generated.choose(choice, time.monotonic() - start)
        except FimError as error:
            logger.warning("fim: a completion is shown without being checked: %s", error)

    async def _steps(self, request: Request, steps: Iterator[T]) -> AsyncGenerator[T, None]:
        """Take the next step of the model in its thread, until the client disconnects."""
        while not await request.is_disconnected():
            step = await run_sync(next, steps, _END, limiter=self._model)
            if step is _END:
                return
            yield step
        raise ClientDisconnect


async def _parts(
    reply: Reply, generated: Generated, deltas: AsyncGenerator[Delta, None], finish: Callable[[], Awaitable[None]]
) -> AsyncGenerator[str, None]:
    """The parts of an answer. Deltas without text wait for the next one with text."""
    sent = 0
    async with aclosing(deltas):
        async for delta in deltas:
            if delta.text or delta.finish_reason:
                yield reply.chunk(generated, sent)
                sent = generated.tokens
    await finish()
    yield reply.end(generated)


def _characters(completion: Completion) -> int:
    return sum(len(text) for text in asdict(completion).values() if isinstance(text, str))


def _error_response(error: ApiError, content: Any) -> Response:
    # The unread rest of a body would be taken for the next request.
    headers = {"connection": "close"} if error.status in {408, 413, 503} else {}
    return JSONResponse(content, status_code=error.status, headers=headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error, error.body)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(error.status_code, error.detail).body, status_code=error.status_code)


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # never read, the client has disconnected
