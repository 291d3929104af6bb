"""Latency of completions as an editor sees it: cold, with a warm prefix, and with several people typing at once.

Single completions are measured in serving/latency.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import uvicorn

from fim_core.records.schema import CONTEXT_FIELDS, Completion
from fim_core.serving.app import create_app
from fim_core.serving.completer import Completer
from fim_core.serving.latency import NEW_CHARACTERS, Timing

TYPED = NEW_CHARACTERS
"""Number of keys that each person types."""

KEY_SECONDS = 0.15
"""Time between two keys: 80 words a minute are 6.7 characters a second."""

PERCENTILES = (50, 95, 99)
LENGTHS = (256, 1024, 4096)
"""Upper bounds of the length of prompts in tokens; longer ones form the last class."""


def time_typing(completer: Completer, states: Sequence[Completion], *, people: int, max_tokens: int) -> list[float]:
    """The milliseconds from the last key to the whole answer, while several people type at once.

    Each of them types the last characters of a state, one key after the other, over HTTP; a key cancels the request of the key
    before, as editors do. The answer to the last key is waited for.
    """
    with _served(completer, max_tokens) as address:
        return asyncio.run(_type_at_once(address, states, min(people, len(states)), max_tokens))


def summarize(timings: Mapping[str, Sequence[Timing]], typing: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """Percentiles of all timings.

    Returns:
        `completions`: by `cold` and `warm`, a list of `{tokens, rows, first, end}` for each length of prompts that occurs and
        `all`; `typing`: a list of `{people, rows, answer}`. Each of `first`, `end` and `answer` is a dict of percentiles in
        milliseconds, for example `{"p50": 12.5, …}`.
    """
    classes = [*(f"up to {bound:,}" for bound in LENGTHS), f"over {LENGTHS[-1]:,}"]
    completions: dict[str, list[dict[str, Any]]] = {}
    for kind, made in timings.items():
        parts = {
            name: [t for t in made if classes[np.searchsorted(LENGTHS, t.prompt_tokens)] == name] for name in classes
        }
        completions[kind] = [
            {
                "tokens": name,
                "rows": len(part),
                "first": _percentiles([timing.first for timing in part]),
                "end": _percentiles([timing.end for timing in part]),
            }
            for name, part in {**parts, "all": list(made)}.items()
            if part
        ]
    return {
        "completions": completions,
        "typing": [
            {"people": people, "rows": len(answers), "answer": _percentiles(answers)}
            for people, answers in typing.items()
        ],
    }


@contextmanager
def _served(completer: Completer, max_tokens: int) -> Iterator[str]:
    """A server on a free port of this machine; yields its address."""
    app = create_app(completer, model_name="fim", max_tokens=max_tokens, allowed_hosts=("127.0.0.1",))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


async def _type_at_once(address: str, states: Sequence[Completion], people: int, max_tokens: int) -> list[float]:
    async with httpx.AsyncClient(base_url=address, timeout=None) as client:

        async def ask(state: Completion) -> None:
            context = {name: getattr(state, name) for name in CONTEXT_FIELDS}
            body = {"prompt": state.prefix, "suffix": state.suffix, "max_tokens": max_tokens, **context}
            (await client.post("/v1/completions", json=body)).raise_for_status()

        async def type_all(own: Sequence[Completion]) -> list[float]:
            answers = []
            for state in own:
                for missing in range(TYPED - 1, 0, -1):
                    request = asyncio.create_task(ask(replace(state, prefix=state.prefix[:-missing])))
                    await asyncio.sleep(KEY_SECONDS)
                    request.cancel()
                start = time.perf_counter()
                await ask(state)
                answers.append(1000 * (time.perf_counter() - start))
            return answers

        # Everybody has the same number of states, so that all type until the end.
        each = len(states) // people
        found = await asyncio.gather(*(type_all(states[place::people][:each]) for place in range(people)))
    return [answer for answers in found for answer in answers]


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(values, share)), 1) for share in PERCENTILES}
