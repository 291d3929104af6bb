"""llama.cpp's own server in this process, by the package xllamacpp, to compare exported models with."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp


class LlamaServer:
    """A server with one GGUF file. It runs as long as the object exists."""

    def __init__(self, path: Path, *, context: int = 2048, threads: int = 1) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.warmup, parameters.fit_params, parameters.verbosity = False, False, -1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        # Half-precision keys and values would be one more difference.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(parameters)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request of llama.cpp's HTTP API; returns the response."""
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def complete(self, prompt: Sequence[int], *, max_tokens: int) -> list[int]:
        """The greedy continuation of token ids, with the end token if there is one."""
        answer = self.post(
            "/completion",
            {
                "prompt": list(prompt),
                "n_predict": max_tokens,
                "temperature": 0,
                "samplers": ["temperature"],
                "return_tokens": True,
                "cache_prompt": False,
            },
        )
        return answer["tokens"]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, in which names of control tokens are control tokens."""
        return self.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
