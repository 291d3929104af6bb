"""Requests that exceed limits, and clients that could block others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Message

from fim_core.prompts.trim import FittedPrompt
from fim_core.records.schema import Completion
from fim_core.serving.app import LONG_PROMPT, RequestLimits, create_app
from fim_core.serving.completer import Completer
from fim_core.serving.protocols.base import MAX_STOP_CHARACTERS, MAX_STOPS

ANSWER_SECONDS = 60


def build(completer: Completer, **limits: Any) -> Starlette:
    return create_app(
        completer, model_name="fim", max_tokens=8, allowed_hosts=("127.0.0.1",), limits=RequestLimits(**limits)
    )


@pytest.fixture(scope="module")
def client(completer: Completer) -> Iterator[TestClient]:
    with TestClient(build(completer), base_url="http://127.0.0.1") as client:
        yield client


async def call(
    app: Starlette, body: bytes, *, read: Callable[[Message], Any] | None = None, ends: bool = True
) -> list[Message]:
    """Send one request. `read` is awaited for each part of the answer; without `ends`, the body never comes to its end."""
    pending = [{"type": "http.request", "body": body, "more_body": not ends}]
    sent: list[Message] = []

    async def receive() -> Message:
        if not pending:
            await asyncio.sleep(3600)
        return pending.pop()

    async def send(message: Message) -> None:
        sent.append(message)
        if read is not None:
            await read(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
    }
    await app(scope, receive, send)
    return sent


def request(prompt: str, **options: Any) -> bytes:
    return json.dumps({"prompt": prompt, **options}).encode()


@pytest.mark.parametrize(
    "stop",
    [
        "x" * 300_000,
        ["x" * (MAX_STOP_CHARACTERS + 1)],
        ["ab"] * (MAX_STOPS + 1),
        ["a", "x" * 40_000],
        [f"s{i}" for i in range(100_000)],
    ],
    ids=["one", "longer", "more", "second", "many"],
)
def test_stop_strings_are_bounded(client: TestClient, stop: Any) -> None:
    response = client.post("/v1/completions", json={"prompt": "SELECT ", "stop": stop})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stop"
    assert str(MAX_STOPS) in response.json()["error"]["message"]


def test_the_maximum_number_of_stop_strings(client: TestClient) -> None:
    stop = [chr(1) * (MAX_STOP_CHARACTERS - 1) + chr(65 + i) for i in range(MAX_STOPS)]
    response = client.post("/v1/completions", json={"prompt": "SELECT ", "stop": stop})
    assert response.status_code == 200


class CountingTokenizer(Completer):
    """Counts what is tokenized; prompts of `slow` characters and more wait for `go_on`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tokenized: list[int] = []
        self.slow = LONG_PROMPT
        self.go_on = threading.Event()

    def fit(self, completion: Completion, *, max_tokens: int) -> FittedPrompt:
        self.tokenized.append(len(completion.prefix))
        if len(completion.prefix) >= self.slow:
            assert self.go_on.wait(ANSWER_SECONDS)
        return super().fit(completion, max_tokens=max_tokens)


@pytest.mark.parametrize(
    "field", ["prompt", "suffix", "ddl_context", "sql_history", "last_few_executed", "file_content"]
)
def test_long_prompts_are_refused_before_they_are_tokenized(checkpoint: Path, field: str) -> None:
    counting = CountingTokenizer.load(checkpoint)
    client = TestClient(build(counting), base_url="http://127.0.0.1")
    long = {"prompt": "", field: "a" * (counting.max_characters + 1)}
    response = client.post("/v1/completions", json=long)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert counting.tokenized == []


def test_short_prompts_do_not_wait_for_long_ones(checkpoint: Path) -> None:
    counting = CountingTokenizer.load(checkpoint)
    counting.context_length = 100_000
    app = build(counting)

    async def both() -> list[Message]:
        long = [asyncio.create_task(call(app, request("a " * LONG_PROMPT, max_tokens=1))) for _ in range(5)]
        while not counting.tokenized:
            await asyncio.sleep(0.01)
        short = await asyncio.wait_for(call(app, request("SELECT ")), ANSWER_SECONDS)
        assert len(counting.tokenized) == 2, "one long one at a time"
        for task in long:
            task.cancel()
        counting.go_on.set()
        return short

    assert asyncio.run(both())[0]["status"] == 200


def test_an_unread_stream_does_not_block_others(completer: Completer) -> None:
    app = build(completer)

    async def both() -> tuple[list[Message], list[Message]]:
        blocked, free = asyncio.Event(), asyncio.Event()

        async def read(message: Message) -> None:
            if message["type"] == "http.response.body":
                blocked.set()
                await free.wait()

        slow = asyncio.create_task(call(app, request("SELECT ", stream=True), read=read))
        await asyncio.wait_for(blocked.wait(), ANSWER_SECONDS)
        others = [await asyncio.wait_for(call(app, request("SELECT ")), ANSWER_SECONDS) for _ in range(3)]
        assert {sent[0]["status"] for sent in others} == {200}
        free.set()
        return await asyncio.wait_for(slow, ANSWER_SECONDS), others[0]

    slow, other = asyncio.run(both())
    streamed = b"".join(part.get("body", b"") for part in slow)
    assert streamed.endswith(b"data: [DONE]\n\n")
    chunks = [json.loads(event[len("data: ") :]) for event in streamed.decode().split("\n\n")[:-2]]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == json.loads(other[1]["body"])["choices"][0]["text"]
    assert slow[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_slow_body_is_refused(completer: Completer) -> None:
    sent = asyncio.run(call(build(completer, body_seconds=0.1), b'{"prompt": ', ends=False))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_slow_bodies_do_not_block_others(completer: Completer) -> None:
    app = build(completer, requests=2)

    async def many() -> list[Message]:
        dripping = [asyncio.create_task(call(app, b"{", ends=False)) for _ in range(70)]
        await asyncio.sleep(0.1)
        answered = await asyncio.wait_for(call(app, request("SELECT ")), ANSWER_SECONDS)
        for task in dripping:
            task.cancel()
        return answered

    assert asyncio.run(many())[0]["status"] == 200


def test_requests_beyond_the_limit_are_refused(checkpoint: Path) -> None:
    counting = CountingTokenizer.load(checkpoint)
    counting.slow = 0
    app = build(counting, requests=3)

    async def many() -> list[int]:
        tasks = [asyncio.create_task(call(app, request("SELECT "))) for _ in range(10)]
        while sum(task.done() for task in tasks) < 7:
            await asyncio.sleep(0.01)
        counting.go_on.set()
        return [sent[0]["status"] for sent in await asyncio.gather(*tasks)]

    assert sorted(asyncio.run(many())) == [200] * 3 + [503] * 7


@pytest.mark.slow
def test_small_requests_are_answered_during_an_attack(completer: Completer) -> None:
    """400 requests of all kinds, and the time of 20 small ones in between."""
    app = build(completer)
    attacks = [
        request("SELECT ", stop="x" * 300_000),
        request("a" * 3_900_000),
        request("a " * 7_900, max_tokens=1),
        request("SELECT ", stream=True, max_tokens=50),
    ]

    async def never(message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("more_body"):
            await asyncio.sleep(3600)

    async def attack() -> list[float]:
        tasks = []
        seconds = []
        for _ in range(20):
            tasks += [asyncio.create_task(call(app, body, read=never)) for body in attacks * 5]
            tasks = [task for task in tasks if not task.done()]
            begun = time.monotonic()
            sent = await call(app, request("SELECT "))
            seconds.append(time.monotonic() - begun)
            assert sent[0]["status"] in {200, 503}
        for task in tasks:
            task.cancel()
        return seconds

    assert max(asyncio.run(attack())) < 30
