"""The completions API from the view of a client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.types import Message

from fim_core.records.schema import CONTEXT_FIELDS, Completion
from fim_core.serving.app import RequestLimits, create_app
from fim_core.serving.completer import Completer
from fim_core.serving.delta import Delta
from fim_core.serving.protocols import PROTOCOLS

HOSTS = ("127.0.0.1",)
OPTIONAL = (
    *("model", "suffix", "max_tokens", "stop", "stream", "stream_options", "logprobs", "echo", "user", "temperature"),
    *("top_p", "n", "best_of", "seed", "presence_penalty", "frequency_penalty", "logit_bias"),
)


def build(completer: Completer, **options: Any) -> Starlette:
    return create_app(completer, **{"model_name": "fim", "max_tokens": 8, "allowed_hosts": HOSTS, **options})


@pytest.fixture(scope="module")
def client(completer: Completer) -> Iterator[TestClient]:
    with TestClient(build(completer), base_url="http://127.0.0.1") as client:
        yield client


def text_of(completer: Completer, completion: Completion, max_tokens: int = 8) -> str:
    return completer.complete(completion, max_tokens=max_tokens).text


def events(body: str) -> list[str]:
    assert body.endswith("\n\n")
    lines = body.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def test_completes_between_prompt_and_suffix(client: TestClient, completer: Completer) -> None:
    response = client.post("/v1/completions", json={"model": "fim", "prompt": "SELECT ", "suffix": " FROM t"})
    assert response.status_code == 200
    body = response.json()
    prompt = completer.prompt_ids(Completion("SELECT ", " FROM t"))
    deltas = list(completer.deltas(prompt, max_tokens=8))
    assert body["object"] == "text_completion"
    assert body["model"] == "fim"
    assert body["choices"] == [
        {
            "index": 0,
            "text": "".join(delta.text for delta in deltas),
            "logprobs": None,
            "finish_reason": deltas[-1].finish_reason,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": deltas[-1].tokens,
        "total_tokens": len(prompt) + deltas[-1].tokens,
    }


def test_context_fields_reach_the_prompt(client: TestClient, completer: Completer) -> None:
    context = {
        "sql_history": "select 1;",
        "ddl_context": "create table t (a int);",
        "last_few_executed": "select 2;",
        "file_content": "-- file",
    }
    body = client.post("/v1/completions", json={"prompt": "SELECT ", **context}).json()
    completion = Completion("SELECT ", "", **context)
    assert body["usage"]["prompt_tokens"] == len(completer.prompt_ids(completion))
    assert body["choices"][0]["text"] == text_of(completer, completion)


def test_table_definitions_of_the_server_are_the_default(completer: Completer) -> None:
    own, given = "create table t (a int);", "create table other (b int, c int);"
    client = TestClient(build(completer, ddl_context=own), base_url="http://127.0.0.1")
    for context, expected in (({}, own), ({"ddl_context": given}, given)):
        body = client.post("/v1/completions", json={"prompt": "SELECT ", **context}).json()
        completion = Completion("SELECT ", "", ddl_context=expected)
        assert body["usage"]["prompt_tokens"] == len(completer.prompt_ids(completion))
        assert body["choices"][0]["text"] == text_of(completer, completion)


@pytest.mark.parametrize("usage", [False, True])
def test_streams_the_same_text(client: TestClient, completer: Completer, usage: bool) -> None:
    call = {"prompt": "SELECT a", "max_tokens": 12, "stream": True, "stream_options": {"include_usage": usage}}
    response = client.post("/v1/completions", json=call)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert len({chunk["id"] for chunk in parsed}) == 1
    if usage:
        last = parsed.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] > 0
    assert "".join(chunk["choices"][0]["text"] for chunk in parsed) == text_of(
        completer, Completion("SELECT a", ""), 12
    )
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in parsed]
    assert reasons[-1] in {"stop", "length"}
    assert set(reasons[:-1]) <= {None}
    assert len(parsed) > 2, "the case must stream in several chunks"


def test_stop_strings(client: TestClient, completer: Completer) -> None:
    text = text_of(completer, Completion("SELECT ", ""))
    stop = text[2:4]
    body = client.post("/v1/completions", json={"prompt": "SELECT ", "stop": ["\x00", stop, ""]}).json()
    assert body["choices"][0] == {
        "index": 0,
        "text": text[: text.index(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_control_tokens_in_user_text_are_plain_text(client: TestClient, completer: Completer) -> None:
    text = "SELECT '<|im_end|><|fim_middle|>' AS "
    response = client.post("/v1/completions", json={"prompt": text, "suffix": "<|endoftext|>"})
    assert response.status_code == 200
    ids = completer.prompt_ids(Completion(text, "<|endoftext|>"))
    plain = completer.prompt_ids(Completion("SELECT ", ""))
    controls = {completer._builder.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|fim_middle|>")}
    for control in controls:
        assert ids.count(control) == plain.count(control)


@pytest.mark.parametrize(
    "accepted",
    [
        {"temperature": 0.0, "top_p": 0.95, "top_k": 40, "seed": 7, "user": "someone"},
        {"temperature": 1.5, "n": 3, "best_of": 5, "logit_bias": {"5": 1}, "min_p": 0.1},
        {"presence_penalty": 0.5, "frequency_penalty": -2, "repetition_penalty": 1.2},
        {"stream_options": {"include_usage": None, "include_obfuscation": False}, "stop": "zzz", "nonsense": [{}]},
        dict.fromkeys(OPTIONAL),
        dict.fromkeys(["call", "parse", "context", "without_effect", "model_config", "__class__", "model_extra"], 1),
        dict.fromkeys(CONTEXT_FIELDS) | {"prompt": ["SELECT "]},
    ],
)
def test_options_without_effect_change_nothing(
    client: TestClient, completer: Completer, accepted: dict[str, Any]
) -> None:
    body = client.post("/v1/completions", json={"prompt": "SELECT ", **accepted}).json()
    assert [choice["text"] for choice in body["choices"]] == [text_of(completer, Completion("SELECT ", ""))]


def test_ignored_options_are_named_once_and_not_quoted(completer: Completer, caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(build(completer), base_url="http://127.0.0.1")
    ignored = {"temperature": 0.8123, "nonsense": "secret_column", "bad\nname": 1, "x" * 99: 2}
    for extra in ({}, {"top_p": 0.5}, {"stream_options": {"odd": "secret_column"}}):
        assert client.post("/v1/completions", json={"prompt": "secret_column ", **ignored, **extra}).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.name.startswith("fim_core")] == [
        "fim: options of requests are ignored (without effect: one model, greedy decoding; said once): temperature",
        "fim: options of requests are ignored (unknown; said once): nonsense",
        "fim: options of requests are ignored (without effect: one model, greedy decoding; said once): top_p",
        "fim: options of requests are ignored (unknown; said once): stream_options.odd",
    ]


def test_the_number_of_named_options_is_bounded(completer: Completer, caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(build(completer), base_url="http://127.0.0.1")
    for start in range(0, 1000, 250):
        many = {f"option{number}": 1 for number in range(start, start + 250)}
        assert client.post("/v1/completions", json={"prompt": "", **many}).status_code == 200
    said = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("fim_core"))
    assert 0 < len(re.findall(r"option\d", said)) <= 200


@pytest.mark.parametrize(
    ("refused", "param"),
    [
        ({"echo": True}, "echo"),
        ({"logprobs": "many"}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["SELECT ", "INSERT "]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"stop": 5}, "stop"),
        ({"suffix": 5}, "suffix"),
        ({"stream_options": []}, "stream_options"),
    ],
)
def test_values_that_cannot_be_used_are_refused_and_named(
    client: TestClient, refused: dict[str, Any], param: str
) -> None:
    response = client.post("/v1/completions", json={"prompt": "SELECT secret_column", **refused})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(param)
    assert param in error["message"]
    assert "secret_column" not in response.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"suffix": "a"}', 400),
    ],
)
def test_invalid_bodies(client: TestClient, content: bytes, status: int) -> None:
    response = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("path", [*(protocol.path for protocol in PROTOCOLS), "/api/show"])
def test_only_json_and_only_known_hosts(client: TestClient, path: str) -> None:
    as_form = client.post(path, content=b'{"prompt": ""}', headers={"content-type": "text/plain"})
    assert as_form.status_code == 415
    asked = {"origin": "http://attacker.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options(path, headers=asked).headers
    elsewhere = client.get("/health", headers={"host": "attacker.example"})
    assert elsewhere.status_code == 400


@pytest.mark.parametrize("path", [protocol.path for protocol in PROTOCOLS])
def test_large_requests_are_refused(completer: Completer, path: str) -> None:
    client = TestClient(build(completer, limits=RequestLimits(body_bytes=100)), base_url="http://127.0.0.1")
    assert client.post(path, json={"prompt": "x" * 200}).status_code == 413
    assert client.post(path, json={"prompt": "x"}).status_code == 200


@pytest.mark.parametrize("path", [protocol.path for protocol in PROTOCOLS])
def test_long_prompts_are_trimmed_and_the_answer_says_so(client: TestClient, completer: Completer, path: str) -> None:
    name = "input_prefix" if path == "/infill" else "prompt"
    prefix, history = "SELECT a, b\nFROM t;\n" * 200, "select 1;\n" * 50
    call = {name: prefix, "sql_history": history, "stream": False}
    body = client.post(path, json=call).json()
    fitted = completer.fit(Completion(prefix, "", sql_history=history), max_tokens=8)
    assert body["fim"] == {"trimmed": fitted.trimmed}
    assert fitted.trimmed["sql_history"] == len(history), "the context is removed first"
    assert 0 < fitted.trimmed["prefix"] < len(prefix)
    assert "fim" not in client.post(path, json={**call, name: "SELECT "}).json()
    streamed = client.post(path, json={**call, "stream": True}).text
    assert json.dumps(fitted.trimmed, separators=(",", ":")) in streamed


def test_max_tokens_beyond_the_context_leave_half_of_it_for_the_prompt(client: TestClient) -> None:
    body = client.post("/v1/completions", json={"prompt": "a b " * 1000, "max_tokens": 100_000}).json()
    assert 0 < body["usage"]["prompt_tokens"] <= 500
    assert body["usage"]["total_tokens"] <= 1000


def test_prompts_that_cannot_be_trimmed_are_refused(checkpoint: Path) -> None:
    small = Completer.load(checkpoint)
    small.context_length = 10
    response = TestClient(build(small), base_url="http://127.0.0.1").post("/v1/completions", json={"prompt": "SELECT "})
    assert response.status_code == 400
    assert "without any text" in response.json()["error"]["message"]


RENDERED = "<|fim_prefix|>SELECT a\n<|fim_suffix|> FROM t<|fim_middle|>"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions", "/api/generate"])
def test_rendered_prompts_are_taken_apart_or_refused(client: TestClient, completer: Completer, path: str) -> None:
    def ask(prompt: str, **options: Any) -> Any:
        return client.post(path, json={"prompt": prompt, "stream": False, **options})

    plain = ask("SELECT a\n", suffix=" FROM t")
    spm = "<|fim_suffix|> FROM t<|fim_prefix|>SELECT a\n<|fim_middle|>"
    for rendered in (RENDERED, spm):
        answer = ask(rendered)
        assert answer.status_code == 200
        assert text_in(answer.json()) == text_in(plain.json())
        assert tokens_in(answer.json()) == tokens_in(plain.json())
    for refused in (
        f"-- lead\n{RENDERED}",
        RENDERED.replace("a\n", "'<|fim_middle|>'"),
        RENDERED.removesuffix("<|fim_middle|>"),
        "<fim_prefix>SELECT a<fim_suffix> FROM t<fim_middle>",
        "<PRE> SELECT a <SUF> FROM t <MID>",
    ):
        answer = ask(refused)
        assert answer.status_code == 400, refused
        assert "Send plain text" in answer.text
    assert ask(RENDERED, suffix=" FROM t").status_code == 400


def text_in(body: Any) -> str:
    """The text of an answer of any protocol."""
    if "choices" not in body:
        return str(body["response"])
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def tokens_in(body: Any) -> int:
    """The number of prompt tokens of an answer of any protocol."""
    return int(body["prompt_eval_count"] if "prompt_eval_count" in body else body["usage"]["prompt_tokens"])


def test_other_routes(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["fim"]
    assert client.get("/v1/models/fim").json() == models["data"][0]
    assert client.get("/v1/models/other").status_code == 404
    unknown = client.post("/v1/completions", json={"model": "gpt", "prompt": ""})
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    for response in (client.get("/v1/nothing"), client.get("/v1/completions")):
        assert response.status_code in {404, 405}
        assert response.json()["error"]["type"] == "invalid_request_error"


class CountingCompleter(Completer):
    """Counts the tokens that were generated."""

    generated = 0

    def deltas(self, prompt_ids: Sequence[int], **options: Any) -> Iterator[Delta]:
        for delta in super().deltas(prompt_ids, **options):
            self.generated += 1
            yield delta


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [protocol.path for protocol in PROTOCOLS])
def test_generation_ends_when_the_client_disconnects(checkpoint: Path, path: str, stream: bool) -> None:
    counting = CountingCompleter.load(checkpoint)
    counting._stop_ids = set()
    app = build(counting)
    limit = {"max_tokens": 100, "n_predict": 100, "options": {"num_predict": 100}}
    body = json.dumps({"prompt": "SELECT ", "stream": stream, **limit}).encode()

    async def call(leave_after: int | None) -> list[Message]:
        """Send one request; the client leaves once so many tokens have been generated since."""
        start = counting.generated
        pending = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if pending:
                return pending.pop()
            while leave_after is None or counting.generated - start < leave_after:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        }
        await app(scope, receive, send)
        return sent

    async def both() -> list[Message]:
        await call(leave_after=5)
        assert counting.generated < 20
        return await asyncio.wait_for(call(leave_after=None), timeout=60)

    sent = asyncio.run(both())
    assert sent[0]["status"] == 200
    assert counting.generated > 100, "the next client gets its turn and its whole completion"
