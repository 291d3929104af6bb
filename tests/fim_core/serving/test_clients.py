"""Each protocol with the library of its clients, over a real connection."""

from __future__ import annotations

import asyncio
import json

import httpx
import ollama
import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer
from fim_core.serving.delta import Delta

PREFIX, SUFFIX = "SELECT a", "\nFROM t"
RENDERED = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"


@pytest.fixture(scope="module")
def expected(completer: Completer) -> list[Delta]:
    """What the model generates for PREFIX and SUFFIX."""
    deltas = list(completer.deltas(completer.prompt_ids(Completion(PREFIX, SUFFIX)), max_tokens=12))
    assert sum(bool(delta.text) for delta in deltas) > 4, "the case must stream in several chunks"
    assert not all(delta.text for delta in deltas), "the case needs a token whose text comes later"
    return deltas


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


@pytest.fixture(scope="module")
def openai_client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7, "top_p": 0.9, "n": 2, "seed": 1, "presence_penalty": 0.1}]
)
def test_openai(openai_client: openai.OpenAI, expected: list[Delta], options: dict[str, float]) -> None:
    answer = openai_client.completions.create(model="fim", prompt=PREFIX, suffix=SUFFIX, max_tokens=12, **options)
    [choice] = answer.choices
    assert choice.text == text_of(expected)
    assert choice.finish_reason == expected[-1].finish_reason
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(expected)
    assert answer.model_extra == {}, "no extension if there is nothing to say"


def test_openai_reads_the_trimmed_fields(openai_client: openai.OpenAI) -> None:
    answer = openai_client.completions.create(model="fim", prompt="SELECT a;\n" * 400, max_tokens=2)
    assert answer.model_extra is not None
    assert answer.model_extra["fim"]["trimmed"]["prefix"] > 0


@pytest.mark.parametrize("logprobs", [0, 3])
def test_openai_log_probabilities(openai_client: openai.OpenAI, expected: list[Delta], logprobs: int) -> None:
    answer = openai_client.completions.create(
        model="fim", prompt=PREFIX, suffix=SUFFIX, max_tokens=12, logprobs=logprobs
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens == [delta.text for delta in expected]
    # Rounding depends on the part of the prompt that is cached.
    assert found.token_logprobs == pytest.approx([delta.logprob for delta in expected], abs=1e-4)
    assert found.text_offset is not None
    assert found.tokens is not None
    text = answer.choices[0].text
    assert [text[place:].startswith(token) for place, token in zip(found.text_offset, found.tokens, strict=True)]
    assert found.text_offset[0] == 0
    if logprobs:
        assert found.top_logprobs == [{delta.text: pytest.approx(delta.logprob, abs=1e-4)} for delta in expected]
    else:
        assert found.top_logprobs is None


def test_openai_stream(openai_client: openai.OpenAI, expected: list[Delta]) -> None:
    stream = openai_client.completions.create(
        model="fim",
        prompt=PREFIX,
        suffix=SUFFIX,
        max_tokens=12,
        stream=True,
        logprobs=1,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text_of(expected)
    assert chunks[-1].choices[0].finish_reason == expected[-1].finish_reason
    assert last.usage is not None
    assert last.usage.completion_tokens == len(expected)
    parts = [part for chunk in chunks if (part := chunk.choices[0].logprobs)]
    assert [token for part in parts for token in part.tokens or ()] == [delta.text for delta in expected]
    offsets = [offset for part in parts for offset in part.text_offset or ()]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(expected)


def test_openai_async(address: str, expected: list[Delta]) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            answer = await client.completions.create(model="fim", prompt=RENDERED, max_tokens=12)
            return answer.choices[0].text

    assert asyncio.run(ask()) == text_of(expected)


def test_openai_models_and_errors(openai_client: openai.OpenAI) -> None:
    assert [model.id for model in openai_client.models.list()] == ["fim"]
    assert openai_client.models.retrieve("fim").id == "fim"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("another")
    with pytest.raises(openai.BadRequestError, match="Send plain text"):
        openai_client.completions.create(model="fim", prompt=f"lead {RENDERED}")


def test_mistral(address: str, expected: list[Delta]) -> None:
    with Mistral(api_key="none", server_url=address) as client:
        call = {
            "model": "fim",
            "prompt": PREFIX,
            "suffix": SUFFIX,
            "max_tokens": 12,
            "temperature": 0.3,
            "random_seed": 1,
        }
        answer = client.fim.complete(**call)
        [choice] = answer.choices
        assert choice.message is not None
        assert choice.message.content == text_of(expected)
        assert choice.finish_reason == expected[-1].finish_reason
        assert answer.usage.completion_tokens == len(expected)
        with client.fim.stream(**call) as stream:
            chunks = [part.data for part in stream]
        assert "".join(str(chunk.choices[0].delta.content) for chunk in chunks) == text_of(expected)
        assert chunks[-1].choices[0].finish_reason == expected[-1].finish_reason
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len(expected)
        assert len(chunks) > 4
        with pytest.raises(SDKError, match="only one model: fim"):
            client.fim.complete(model="codestral-latest", prompt="")


def test_ollama(address: str, expected: list[Delta]) -> None:
    client = ollama.Client(host=address)
    options = {"num_predict": 12, "temperature": 0.2, "num_ctx": 4096}
    answer = client.generate("fim", PREFIX, suffix=SUFFIX, options=options, keep_alive=60)
    assert answer.response == text_of(expected)
    assert (answer.done, answer.done_reason) == (True, expected[-1].finish_reason)
    assert answer.eval_count == len(expected)
    assert answer.total_duration is not None
    assert answer.total_duration > 0
    *parts, last = client.generate("fim:latest", PREFIX, suffix=SUFFIX, options=options, stream=True)
    assert "".join(part.response or "" for part in (*parts, last)) == text_of(expected)
    assert [part.done for part in parts] == [False] * len(parts)
    assert (last.done, last.eval_count) == (True, len(expected))
    raw = client.generate("fim", RENDERED, raw=True, options={**options, "stop": ["<|endoftext|>"]})
    assert raw.response == text_of(expected), "Continue renders prompts of models that it does not know"


def test_ollama_models_and_errors(address: str) -> None:
    client = ollama.Client(host=address)
    assert [model.model for model in client.list().models] == ["fim"]
    shown = client.show("fim")
    assert shown.capabilities == ["completion", "insert"]
    assert shown.template == "<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>"
    loaded = client.generate("fim")
    assert (loaded.response, loaded.done_reason, loaded.eval_count) == ("", "load", 0)
    with pytest.raises(ollama.ResponseError, match="only one model: fim") as raised:
        client.generate("codellama", "SELECT ")
    assert raised.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="Send plain text"):
        list(client.generate("fim", f"lead {RENDERED}", stream=True))


def test_the_requests_of_continue(address: str, expected: list[Delta]) -> None:
    """core/llm/llms/Ollama.ts of Continue: `api/show` with `name`, then `api/generate`."""
    with httpx.Client(base_url=f"{address}/") as client:
        shown = client.post("api/show", json={"name": "fim"}).json()
        assert ".Suffix" in shown["template"]
        assert shown["parameters"] == "", "Continue fails on a line that it cannot parse"
        stop = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>", "\n\n", "\r\n\r\n", "/src/", "```"]
        model = {"temperature": 0.01, "num_predict": 12, "stop": stop, "num_ctx": 32768}
        call = {
            "model": "fim",
            "prompt": PREFIX,
            "suffix": SUFFIX,
            "options": model,
            "keep_alive": 1800,
            "stream": True,
        }
        with client.stream("POST", "api/generate", json=call) as response:
            parts = [json.loads(line) for line in response.iter_lines() if line.strip()]
    assert not any("error" in part for part in parts)
    assert "".join(part["response"] for part in parts) == text_of(expected)
