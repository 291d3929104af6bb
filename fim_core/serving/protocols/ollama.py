"""Ollama's `POST /api/generate` with `suffix`, and what its clients ask before: `/api/tags`, `/api/show`, `/api/version`.

The format is that of docs/api.md of Ollama, as the package `ollama` and Continue send and read it. Answers are streamed as
lines of JSON unless `stream` is false.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import Field

from fim_core.serving.protocols.base import (
    ApiError,
    Body,
    Call,
    Generated,
    Options,
    Protocol,
    Reply,
    Served,
    Stops,
    compact,
)

API_VERSION = "0.6.0"
"""Clients compare it with the version that introduced a feature; `suffix` is older."""


class ModelOptions(Options):
    """`options`: the parameters of a model."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *(
                "temperature",
                "top_k",
                "top_p",
                "min_p",
                "typical_p",
                "tfs_z",
                "seed",
                "repeat_penalty",
                "repeat_last_n",
            ),
            *("presence_penalty", "frequency_penalty", "mirostat", "mirostat_eta", "mirostat_tau", "penalize_newline"),
            *("num_ctx", "num_thread", "num_keep", "num_batch", "num_gpu", "use_mmap", "use_mlock", "numa", "low_vram"),
        }
    )

    num_predict: int = Field(-1, description="Maximum number of new tokens; 0 and less: the default of this server.")
    stop: Stops = Field(default_factory=list)


class GenerateBody(Body):
    """The body of a request."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"keep_alive", "raw", "format", "system", "template", "context", "think", "images", "logprobs", "top_logprobs"}
    )

    prompt: str = Field("", description="Text left of the cursor.")
    suffix: str = Field("", description="Text right of the cursor.")
    stream: bool = True
    options: ModelOptions = ModelOptions()

    @property
    def only_loads(self) -> bool:
        """Whether it only asks to load the model."""
        return not (self.prompt or self.suffix)

    @property
    def call(self) -> Call:
        """The request."""
        return Call(
            prompt=self.prompt,
            suffix=self.suffix,
            context=self.context,
            model=model_name(self.model),
            max_tokens=self.options.num_predict if self.options.num_predict > 0 else None,
            stop=self.options.stop,
            stream=self.stream,
            is_warm_up=self.only_loads,
        )


class GenerateReply(Reply):
    """An answer."""

    request: GenerateBody
    media_type: ClassVar[str] = "application/x-ndjson"

    def body(self, generated: Generated) -> dict[str, Any]:
        """The whole answer, as JSON."""
        return self._final(generated, generated.text)

    def chunk(self, generated: Generated, start: int) -> str:
        """One line of a stream."""
        text = "".join(delta.text for delta in generated.deltas[start:])
        return compact({**self._common(), "response": text, "done": False}) + "\n"

    def end(self, generated: Generated) -> str:
        """The last line, without text."""
        return compact(self._final(generated, "")) + "\n"

    def _common(self) -> dict[str, Any]:
        return {"model": self.request.model or self.served.name, "created_at": datetime.now(UTC).isoformat()}

    def _final(self, generated: Generated, text: str) -> dict[str, Any]:
        return {
            **self._common(),
            "response": text,
            "done": True,
            "done_reason": "load" if self.request.only_loads else generated.finish_reason,
            "total_duration": _nanoseconds(generated.prompt_seconds + generated.seconds),
            "load_duration": 0,
            "prompt_eval_count": generated.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(generated.prompt_seconds),
            "eval_count": generated.tokens,
            "eval_duration": _nanoseconds(generated.seconds),
            **generated.extension,
        }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": str(error)}


OLLAMA = Protocol("/api/generate", GenerateBody, GenerateReply, _error)


class ShowBody(Options):
    """The body of `POST /api/show`; older clients call the model `name`."""

    model: str = ""
    name: str = ""


def model_name(name: str) -> str | None:
    """The name without Ollama's default tag; None if it is empty."""
    return name.removesuffix(":latest") or None


def list_models(served: Served) -> dict[str, Any]:
    """The answer of `GET /api/tags`."""
    return {"models": [{"name": served.name, "model": served.name, "details": _details()}]}


def show_model(served: Served) -> dict[str, Any]:
    """The answer of `POST /api/show`. Clients look for `.Suffix` in the template, or for the capability `insert`."""
    length = {} if served.context_length is None else {"fim.context_length": served.context_length}
    return {
        "modelfile": "",
        "parameters": "",
        "template": served.fim_block,
        "details": _details(),
        "model_info": {"general.architecture": "fim", **length},
        "capabilities": ["completion", "insert"],
    }


def _details() -> dict[str, Any]:
    return {"format": "safetensors", "family": "fim", "families": ["fim"]}
