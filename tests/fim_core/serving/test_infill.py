"""llama.cpp's /infill, with the requests of llama.vim (a1c8e6e) and llama.vscode (3938fb3) as they send them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from fim_core.records.schema import Completion
from fim_core.serving.app import create_app
from fim_core.serving.completer import Completer
from fim_core.serving.delta import Delta
from fim_core.serving.protocols.base import Generated

# llama#fim of autoload/llama.vim, at the default options, with one chunk in the ring; the cursor is after "SELECT a, ".
VIM = """{"id_slot": 0, "input_prefix": "-- report\\n", "input_suffix": "\\nFROM t\\n\\n", "input_extra": [{"text":
"create table t (a int, b int);\\n", "time": [1764416000, 123456], "filename": "schema.sql"}], "prompt": "SELECT a, ",
"n_predict": 128, "stop": [], "n_indent": 0, "top_k": 40, "top_p": 0.9, "samplers": ["top_k", "top_p", "infill"], "stream":
false, "cache_prompt": true, "t_max_prompt_ms": 500, "t_max_predict_ms": 250, "response_fields": ["content",
"timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms", "timings/prompt_per_second", "timings/predicted_n",
"timings/predicted_ms", "timings/predicted_per_token_ms", "timings/predicted_per_second", "truncated", "tokens_cached"],
"model": ""}"""

# s:ring_update of autoload/llama.vim: it fills the server's cache.
VIM_WARM_UP = """{"id_slot": 0, "input_prefix": "", "input_suffix": "", "input_extra": [{"text": "create table t (a int);\\n",
"time": [1764416000, 123456], "filename": "schema.sql"}], "prompt": "", "n_predict": 0, "temperature": 0.0, "samplers": [],
"stream": false, "cache_prompt": true, "t_max_prompt_ms": 1, "t_max_predict_ms": 1, "response_fields": [""], "model": ""}"""

# createRequestPayload of src/llama-server.ts, at the default options.
VSCODE = """{"id_slot":0,"input_prefix":"-- report\\n","input_suffix":"\\nFROM t\\n","input_extra":[{"text":
"create table t (a int, b int);","time":1764416000123,"filename":"/home/me/schema.sql"}],"prompt":"SELECT a, ","n_predict":128,
"n_cmpl":3,"top_k":40,"top_p":0.99,"stream":false,"samplers":["top_k","top_p","infill"],"cache_prompt":true,"n_indent":2,
"t_max_prompt_ms":500,"t_max_predict_ms":2500}"""

VSCODE_WARM_UP = """{"id_slot":0,"input_prefix":"","input_suffix":"","input_extra":[],"prompt":"","n_predict":0,"samplers":[],
"cache_prompt":true,"t_max_prompt_ms":500,"t_max_predict_ms":1}"""

EXTRA = "-- schema.sql\ncreate table t (a int, b int);\n"


@pytest.fixture(scope="module")
def client(completer: Completer) -> Iterator[TestClient]:
    app = create_app(completer, model_name="fim", max_tokens=8, allowed_hosts=("127.0.0.1",))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


def post(client: TestClient, request: str, **changes: Any) -> Any:
    response = client.post("/infill", json={**json.loads(request), **changes})
    assert response.status_code == 200
    return response


def text_of(completer: Completer, completion: Completion, max_tokens: int) -> str:
    return completer.complete(completion, max_tokens=max_tokens).text


def test_llama_vim(client: TestClient, completer: Completer) -> None:
    response = post(client, VIM, t_max_predict_ms=60_000)
    # s:fim_on_response of autoload/llama.vim ignores an answer without this.
    assert re.match(r"\s*{", response.text)
    assert re.search(r'"content"\s*:"', response.text)
    body = response.json()
    assert set(body) == set(json.loads(VIM)["response_fields"])
    expected = Completion("-- report\nSELECT a, ", "\nFROM t\n\n", file_content=EXTRA)
    assert body["content"] == text_of(completer, expected, 128)
    assert body["truncated"] is False
    assert body["tokens_cached"] > body["timings/predicted_n"] > 0
    assert body["timings/predicted_ms"] > 0


def test_llama_vim_warms_the_cache_up(client: TestClient, completer: Completer) -> None:
    before = completer.computed
    post(client, VIM_WARM_UP, input_extra=[{"text": "create table warm (a int);\n", "filename": "schema.sql"}])
    warmed = completer.computed - before
    assert warmed > 0
    response = post(client, VIM_WARM_UP)
    assert response.json() == {}
    extra = json.loads(VIM_WARM_UP)["input_extra"]
    body = post(client, VIM, input_extra=extra, n_predict=1).json()
    prompt = completer.prompt_ids(
        Completion("-- report\nSELECT a, ", "\nFROM t\n\n", file_content="-- schema.sql\ncreate table t (a int);\n")
    )
    assert body["timings/prompt_n"] < len(prompt) / 2, "the context has already been read"


def test_llama_vscode(client: TestClient, completer: Completer) -> None:
    body = post(client, VSCODE, t_max_predict_ms=60_000).json()
    extra = "-- /home/me/schema.sql\ncreate table t (a int, b int);"
    expected = Completion("-- report\nSELECT a, ", "\nFROM t\n", file_content=extra)
    assert body["content"] == text_of(completer, expected, 128)
    # What the status bar of the extension reads.
    assert body["generation_settings"]["n_ctx"] == completer.context_length
    assert body["tokens_cached"] == body["tokens_evaluated"] + body["tokens_predicted"]
    for name in ("prompt", "predicted"):
        assert {f"{name}_n", f"{name}_ms", f"{name}_per_second"} <= set(body["timings"])
    warm = post(client, VSCODE_WARM_UP).json()
    assert (warm["content"], warm["tokens_predicted"], warm["stop"]) == ("", 0, True)


def test_streams_the_same_text(client: TestClient) -> None:
    whole = post(client, VIM, t_max_predict_ms=60_000, response_fields=None).json()
    response = post(client, VIM, t_max_predict_ms=60_000, response_fields=None, stream=True)
    parts = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-1]]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1]["tokens_predicted"] == whole["tokens_predicted"]


def test_markers_in_text_are_text(client: TestClient, completer: Completer) -> None:
    prefix = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    body = client.post("/infill", json={"input_prefix": prefix, "n_predict": 4}).json()
    assert body["content"] == text_of(completer, Completion(prefix, ""), 4)


def test_unlimited_means_the_default_of_the_server(client: TestClient, completer: Completer) -> None:
    for extra in ({}, {"n_predict": -1}, {"n_predict": None}):
        body = client.post("/infill", json={"prompt": "SELECT ", **extra}).json()
        assert body["content"] == text_of(completer, Completion("SELECT ", ""), 8)


def test_errors_are_in_the_format_of_llama_cpp(client: TestClient) -> None:
    response = client.post("/infill", json={"input_extra": "x", "prompt": "secret_column"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == 400
    assert error["message"].startswith("input_extra: ")
    assert "secret_column" not in response.text


def test_the_time_limit_ends_a_completion_at_a_line_end() -> None:
    deltas = [Delta(text, number, 0.0) for number, text in enumerate(["a", "\n", "b", "c\nd", "e"], start=1)]
    for limit, length in ((None, 5), (10.0, 5), (1.5, 4), (0.5, 2)):
        generated = Generated(prompt_tokens=3, trimmed={})
        for number, delta in enumerate(deltas):
            generated.add(delta, seconds=7.0 + number, computed=3, limit=limit)
            if generated.finish_reason:
                break
        assert generated.tokens == length, limit
        assert generated.finish_reason == ("length" if length < 5 else None)
        assert generated.prompt_seconds == 7.0
