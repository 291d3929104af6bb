"""Limits of connections, against clients that send or read slowly, or open too many.

uvicorn limits the number of connections, but neither those of one client nor the time a request takes to arrive. The protocol
class here adds these limits.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from fim_core.serving.protocols.base import ApiError


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections.

    Attributes:
        connections: maximum number of open connections. Beyond it, the oldest one without a complete request is closed.
        per_client: maximum number of open connections from one address, by the same rule.
        header_seconds: maximum time from the connection, or the first byte of a further request, to the end of its headers.
        unread_seconds: maximum time that a response may stay unread.
    """

    connections: int = 256
    per_client: int = 128
    header_seconds: float = 10
    unread_seconds: float = 30


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with `ConnectionLimits`. `limited_protocol` creates the class for uvicorn."""

    limits = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, closing an older one if necessary, or refuse it."""
        super().connection_made(transport)
        self._opened = self.loop.time()
        self._header_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._expect_headers()
        others = [each for each in self.connections if each is not self and isinstance(each, LimitedProtocol)]
        from_client = [each for each in others if self._address == each._address]
        if not (_has_room(from_client, self.limits.per_client) and _has_room(others, self.limits.connections)):
            self._refuse()

    def data_received(self, data: bytes) -> None:
        """Start or stop the timer of the headers of a request."""
        if not self.has_request and self._header_timer is None:
            self._expect_headers()
        super().data_received(data)
        if self.has_request:
            self._header_timer = _cancelled(self._header_timer)

    def on_response_complete(self) -> None:
        """Start the timer for a further request whose headers have already arrived in part."""
        super().on_response_complete()
        if not self.has_request and self.conn.trailing_data[0]:
            self._expect_headers()

    def pause_writing(self) -> None:
        """Start the timer of unread data: the client reads more slowly than the response is produced."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.limits.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer of unread data: the client has continued to read."""
        super().resume_writing()
        self._unread_timer = _cancelled(self._unread_timer)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its last response is unread."""
        super().timeout_keep_alive_handler()
        self._unread_timer = self.loop.call_later(self.limits.unread_seconds, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        super().connection_lost(exc)
        self._header_timer = _cancelled(self._header_timer)
        self._unread_timer = _cancelled(self._unread_timer)

    @property
    def has_request(self) -> bool:
        """Whether the headers of a request have arrived and its response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def awaits_client(self) -> bool:
        """Whether the client has yet to send a request, or the rest of one."""
        return not self.has_request or (self.cycle.more_body and not self.cycle.response_started)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    def end(self) -> None:
        """Close the connection immediately."""
        self.connections.discard(self)
        self.transport.abort()

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_seconds, self._end_without_request)

    def _end_without_request(self) -> None:
        self._header_timer = None
        if not self.has_request:
            self.end()

    def _refuse(self) -> None:
        body = json.dumps(ApiError(503, "Too many connections.").body).encode()
        head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.connections.discard(self)
        self.transport.close()


def limited_protocol(limits: ConnectionLimits) -> type[LimitedProtocol]:
    """Create a protocol class with these limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


def _has_room(connections: list[LimitedProtocol], most: int) -> bool:
    """Whether one more connection fits; closes the oldest one that awaits its client if necessary."""
    if len(connections) < most:
        return True
    waiting = [each for each in connections if each.awaits_client]
    if waiting:
        min(waiting, key=lambda each: each._opened).end()
    return bool(waiting)


def _cancelled(timer: asyncio.TimerHandle | None) -> Any:
    if timer is not None:
        timer.cancel()
