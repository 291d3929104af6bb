"""llama.cpp's `POST /infill`, which llama.vim and llama.vscode speak.

The format is that of tools/server/README.md of llama.cpp. The text left of the cursor is `input_prefix` + `prompt`; the
clients put the current line into `prompt`. The texts of `input_extra` become part of the context field `file_content`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from fim_core.serving.protocols.base import ApiError, Body, Call, Generated, Options, Protocol, Reply, Stops, event


class Extra(Options):
    """A text from another place: a file, or what was copied."""

    filename: str = ""
    text: str = ""


class InfillBody(Body):
    """The body of a request."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {
            *("temperature", "top_k", "top_p", "min_p", "samplers", "seed", "n_cmpl", "n_indent", "t_max_prompt_ms"),
            *("cache_prompt", "id_slot", "lora", "repeat_penalty", "n_probs"),
        }
    )

    input_prefix: str = Field("", description="Text left of the cursor, up to `prompt`.")
    input_suffix: str = Field("", description="Text right of the cursor.")
    input_extra: list[Extra] = Field(default_factory=list)
    prompt: str = Field("", description="The rest of the text left of the cursor.")
    n_predict: int = Field(-1, description="Maximum number of new tokens; 0: only read the prompt; -1: no maximum.")
    stop: Stops = Field(default_factory=list)
    stream: bool = False
    t_max_predict_ms: float = Field(0, description="End at the first line end after this time; 0: no such limit.")
    response_fields: list[str] = Field(
        default_factory=list, description="Keys of the answer, `a/b` for nested ones; all if empty."
    )

    @property
    def context(self) -> dict[str, str]:
        """Text by CONTEXT_FIELDS: `input_extra` in the order of the client, before `file_content`."""
        extra = [f"-- {each.filename}\n{each.text}" if each.filename else each.text for each in self.input_extra]
        texts = [text for text in (*extra, self.file_content) if text.strip()]
        return {**super().context, "file_content": "\n".join(texts)}

    @property
    def call(self) -> Call:
        """The request."""
        return Call(
            prompt=self.input_prefix + self.prompt,
            suffix=self.input_suffix,
            context=self.context,
            model=self.model or None,
            max_tokens=self.n_predict if self.n_predict > 0 else None,
            stop=self.stop,
            stream=self.stream,
            seconds=self.t_max_predict_ms / 1000 if self.t_max_predict_ms > 0 else None,
            is_warm_up=self.n_predict == 0,
            may_be_rendered=False,
        )


class InfillReply(Reply):
    """An answer."""

    request: InfillBody

    def body(self, generated: Generated) -> dict[str, Any]:
        """The whole answer, as JSON."""
        return self._chosen(self._final(generated, generated.text))

    def chunk(self, generated: Generated, start: int) -> str:
        """One part of a stream."""
        text = "".join(delta.text for delta in generated.deltas[start:])
        part = {"content": text, "stop": False, "tokens_predicted": generated.tokens}
        return event({**part, "tokens_evaluated": generated.prompt_tokens})

    def end(self, generated: Generated) -> str:
        """The last part, without text."""
        return event(self._chosen(self._final(generated, "")))

    def _final(self, generated: Generated, content: str) -> dict[str, Any]:
        return {
            "content": content,
            "stop": True,
            "model": self.served.name,
            "tokens_predicted": generated.tokens,
            "tokens_evaluated": generated.prompt_tokens,
            "tokens_cached": generated.prompt_tokens + generated.tokens,
            "truncated": bool(generated.trimmed),
            "generation_settings": {"n_ctx": self.served.context_length, "n_predict": self.request.n_predict},
            "timings": {
                **_timing("prompt", generated.prompt_computed, generated.prompt_seconds),
                **_timing("predicted", generated.tokens, generated.seconds),
            },
            **generated.extension,
        }

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The keys of `response_fields`; nested ones by their path. Keys that do not exist are left out."""
        if not self.request.response_fields:
            return answer
        found = {path: _at(answer, path) for path in self.request.response_fields}
        return {path: value for path, value in found.items() if value is not None}


def _timing(name: str, tokens: int, seconds: float) -> dict[str, float]:
    ms = 1000 * seconds
    return {
        f"{name}_n": tokens,
        f"{name}_ms": ms,
        f"{name}_per_token_ms": ms / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / seconds if seconds else 0.0,
    }


def _at(answer: Any, path: str) -> Any:
    for name in path.split("/"):
        answer = answer.get(name) if isinstance(answer, dict) else None
    return answer


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": {"code": error.status, "message": str(error), "type": error.kind}}


INFILL = Protocol("/infill", InfillBody, InfillReply, _error)
