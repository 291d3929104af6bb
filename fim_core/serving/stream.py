"""Responses that are sent in parts, while they are generated."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class PartsResponse(Response):
    """A response in parts.

    A separate task generates the parts and buffers them for the client, so that a slow client does not block the model. The
    buffer is bounded by the number of requested tokens.
    """

    def __init__(self, parts: AsyncGenerator[str, None], media_type: str) -> None:
        self._parts = parts
        super().__init__(media_type=media_type, headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts."""
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        produced, ready = anyio.create_memory_object_stream[str | None](math.inf)
        async with anyio.create_task_group() as tasks, ready:
            tasks.start_soon(self._produce, produced)
            async for part in ready:
                if part is None:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                await send({"type": "http.response.body", "body": part.encode(), "more_body": True})

    async def _produce(self, produced: MemoryObjectSendStream[str | None]) -> None:
        """Send all parts to `produced`, then None. A stream that ends without None means that the client disconnected."""
        try:
            async with produced, aclosing(self._parts) as parts:
                async for part in parts:
                    produced.send_nowait(part)
                produced.send_nowait(None)
        except ClientDisconnect:
            return
