"""Slow, idle and non-reading connections against a real server with short limits."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from fim_core.serving.connections import ConnectionLimits, limited_protocol

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
SHORT = ConnectionLimits(header_seconds=0.5, unread_seconds=0.5)
LONG = ConnectionLimits(connections=12, per_client=8, header_seconds=60, unread_seconds=60)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers when the whole request is there; `/large` gets more than the buffers hold, `/slow` waits."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await anyio.sleep(1)
    body = b"x" * (64 << 20 if scope["path"] == "/large" else 2)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body[:1], "more_body": True})
    await send({"type": "http.response.body", "body": body[1:]})


@contextmanager
def serving(limits: ConnectionLimits) -> Iterator[tuple[uvicorn.Server, int]]:
    config = uvicorn.Config(
        echo, port=0, http=limited_protocol(limits), ws="none", lifespan="off", log_config=None, loop="asyncio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


@contextmanager
def connections(port: int, number: int) -> Iterator[list[socket.socket]]:
    opened = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(number)]
    try:
        yield opened
    finally:
        for each in opened:
            each.close()


def ends(connection: socket.socket) -> bool:
    """Whether the server closes the connection, with whatever answer."""
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def answers(port: int) -> bool:
    with connections(port, 1) as (connection,):
        connection.sendall(GET)
        return connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2]])
def test_slow_headers_close_the_connection(sent: bytes) -> None:
    with serving(SHORT) as (_, port), connections(port, 2) as (waiting, dripping):
        waiting.sendall(sent)
        begun = time.monotonic()
        with suppress(ConnectionError):
            for byte in GET[:-2] * 1000:
                dripping.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - begun < 40
        assert ends(waiting)
        assert answers(port)


def test_further_requests_of_a_connection_have_the_same_limit() -> None:
    with serving(SHORT) as (_, port), connections(port, 1) as (connection,):
        for requests in (GET, GET + GET):
            connection.sendall(requests)
            received = b""
            while received.count(b"\r\n\r\nxx") < requests.count(GET):
                received += connection.recv(65536)
        connection.sendall(b"GET")
        begun = time.monotonic()
        assert ends(connection)
        assert time.monotonic() - begun < 40


def test_a_slow_response_does_not_close_the_connection() -> None:
    with serving(SHORT) as (_, port), connections(port, 1) as (connection,):
        connection.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_unread_response_closes_the_connection() -> None:
    with serving(SHORT) as (server, port), connections(port, 1) as (connection,):
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        deadline = time.monotonic() + 60
        while server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.server_state.connections
        assert answers(port)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", POST], ids=["idle", "headers", "body"])
def test_connections_without_a_complete_request_are_closed_first(sent: bytes) -> None:
    with serving(LONG) as (server, port), connections(port, 70) as opened:
        for each in opened:
            with suppress(ConnectionError):
                each.sendall(sent)
        assert answers(port)
        assert len(server.server_state.connections) <= LONG.per_client
        assert ends(opened[0]), "the oldest have gone"
        opened[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            opened[-1].recv(1)


def test_active_connections_are_kept_and_further_ones_refused() -> None:
    with serving(LONG) as (_, port), connections(port, LONG.per_client) as working:
        for each in working:
            each.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.3)
        with connections(port, 1) as (further,):
            assert further.recv(65536).startswith(b"HTTP/1.1 503")
            assert ends(further)
        assert all(each.recv(65536).startswith(b"HTTP/1.1 200") for each in working)
        assert answers(port)
