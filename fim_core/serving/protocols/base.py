"""What all protocols share: the parsed request, the generated answer, and errors.

Editors send options that this server does not have. They are ignored, and named once in the log (see `Notices`), so that a
request never fails because of them. Their values are never quoted.
"""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fim_core.records.schema import CONTEXT_FIELDS
from fim_core.serving.choice import Choice
from fim_core.serving.delta import Delta

logger = logging.getLogger(__name__)

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256

_MAX_NOTICES = 200
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


class ApiError(Exception):
    """An error that the client gets; `body` is in OpenAI's format."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": self.kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Call:
    """A request, whatever its protocol.

    Attributes:
        prompt, suffix: text left and right of the cursor.
        context: text by CONTEXT_FIELDS.
        model: name of the model; None for the model of this server.
        max_tokens: maximum number of new tokens; None for the default of this server.
        stop: strings that end the completion.
        stream: send the answer in parts.
        seconds: end the completion at the first line end after so many seconds of generation.
        is_warm_up: only compute the states of the prompt, so that the next request is faster.
        may_be_rendered: clients of this protocol may send a prompt with the FIM markers of a model.
    """

    prompt: str
    suffix: str
    context: Mapping[str, str]
    model: str | None = None
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    stream: bool = False
    seconds: float | None = None
    is_warm_up: bool = False
    may_be_rendered: bool = True


@dataclass
class Generated:
    """The answer to a call, as far as it has been generated.

    Attributes:
        prompt_tokens: tokens of the prompt.
        trimmed: characters that were removed by field, because the prompt was too long.
        deltas: one per token.
        prompt_computed: tokens of the prompt that were not in the cache.
        prompt_seconds: from the request's turn to the first token.
        seconds: from the first token to the last one.
        choice: what was chosen to be shown; None if the greedy completion is shown whatever it is.
        id: by which clients can say what the user did; None if the server keeps no log.
    """

    prompt_tokens: int
    trimmed: Mapping[str, int]
    deltas: list[Delta] = field(default_factory=list)
    prompt_computed: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0
    choice: Choice | None = None
    id: str | None = None

    def prompt_read(self, seconds: float, computed: int) -> None:
        """Note that the prompt has been read: after so many seconds, with so many tokens computed."""
        self.prompt_seconds, self.prompt_computed = seconds, computed

    def add(self, delta: Delta, seconds: float, computed: int, limit: float | None) -> None:
        """Add the delta of the next token.

        Args:
            seconds: since the request's turn.
            computed: tokens that the model has computed since then.
            limit: ends the completion at the first line end after so many seconds of generation.
        """
        if not self.deltas:
            self.prompt_read(seconds, computed)
        self.seconds = seconds - self.prompt_seconds
        if limit is not None and self.seconds > limit and "\n" in delta.text and not delta.finish_reason:
            delta = replace(delta, finish_reason="length")
        self.deltas.append(delta)

    def choose(self, choice: Choice, seconds: float) -> None:
        """Note what is shown, which took so many seconds to choose."""
        self.choice, self.deltas = choice, choice.deltas
        self.seconds += seconds

    @property
    def text(self) -> str:
        """The text."""
        return "".join(delta.text for delta in self.deltas)

    @property
    def tokens(self) -> int:
        """Number of tokens, stop token included."""
        return len(self.deltas)

    @property
    def finish_reason(self) -> str | None:
        """Why the completion ended: `stop` or `length`; None before that."""
        return self.deltas[-1].finish_reason if self.deltas else None

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens in OpenAI's format."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}

    @property
    def extension(self) -> dict[str, Any]:
        """The key `fim` of an answer, which none of the protocols has; empty if there is nothing to say."""
        found: dict[str, Any] = {"id": self.id} if self.id else {}
        found |= {"trimmed": dict(self.trimmed)} if self.trimmed else {}
        if (choice := self.choice) is not None:
            found |= {"confidence": choice.confidence} if choice.confidence is not None else {}
            found |= {"shown": choice.shown, "alternative": choice.alternative}
        return {"fim": found} if found else {}


@dataclass(frozen=True)
class Served:
    """The model that a server has.

    Attributes:
        name: in the API.
        context_length: maximum number of tokens of prompt and completion together; None if unknown.
        fim_block: the FIM block of its prompts in the syntax of Ollama's templates.
    """

    name: str
    context_length: int | None
    fim_block: str


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _bounded(stops: list[str]) -> list[str]:
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters each")
    # An empty string would end every completion immediately.
    return [stop for stop in stops if stop]


Stops = Annotated[list[str], BeforeValidator(_as_list), AfterValidator(_bounded)]
"""A string or a list of strings."""


class Options(BaseModel):
    """An object of a request. `null` is the same as a missing key; unknown keys are kept for `Notices`.

    `without_effect` are options of the protocol that are accepted and change nothing.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    without_effect: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Parse the body of a request.

        Raises:
            ApiError: not JSON, or a value of a wrong type; the message names the field and does not quote its value.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        if problem["type"] == "json_invalid":
            raise ApiError(400, "The body is not valid JSON.")
        param = ".".join(str(part) for part in problem["loc"]) or None
        message = f"{param or 'The body'}: {problem['msg'].removeprefix('Value error, ')}."
        raise ApiError(400, message, param=param, code="unsupported_value")


class Body(Options, ABC):
    """The body of a request. Every protocol accepts the context of training as well, by its names."""

    model: str = ""
    sql_history: str = Field("", description="Recent statements; context as in training.")
    ddl_context: str = Field("", description="Table definitions; context as in training.")
    last_few_executed: str = Field("", description="Statements that ran last; context as in training.")
    file_content: str = Field("", description="The open file; context as in training.")
    type: str = Field("", description="Kind of completion: TYPE in the log, if the server keeps one.")

    @property
    def context(self) -> dict[str, str]:
        """Text by CONTEXT_FIELDS."""
        return {name: getattr(self, name) for name in CONTEXT_FIELDS}

    @property
    @abstractmethod
    def call(self) -> Call:
        """The request."""


class PromptBody(Body):
    """The body of a request in the manner of OpenAI, which other protocols have taken over."""

    prompt: str = Field(description="Text left of the cursor.")
    suffix: str = Field("", description="Text right of the cursor.")
    max_tokens: int | None = Field(None, ge=1)
    stop: Stops = Field(default_factory=list)
    stream: bool = False

    @property
    def call(self) -> Call:
        """The request."""
        return Call(
            prompt=self.prompt,
            suffix=self.suffix,
            context=self.context,
            model=self.model or None,
            max_tokens=self.max_tokens,
            stop=self.stop,
            stream=self.stream,
        )


class Reply(ABC):
    """The format of one answer.

    Args:
        body: the request.
        served: the model.
    """

    media_type: ClassVar[str] = "text/event-stream"

    def __init__(self, body: Any, served: Served) -> None:
        self.request = body
        self.served = served

    @abstractmethod
    def body(self, generated: Generated) -> Any:
        """The whole answer, as JSON."""

    @abstractmethod
    def chunk(self, generated: Generated, start: int) -> str:
        """One part of a stream: of the deltas from `start` on, which contain text or are the last ones."""

    @abstractmethod
    def end(self, generated: Generated) -> str:
        """The last part of a stream."""


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        path: of the POST request.
        body: parses it.
        reply: formats the answer.
        error: formats an error.
    """

    path: str
    body: type[Body]
    reply: type[Reply]
    error: Callable[[ApiError], Any]


def event(content: Any) -> str:
    """A server-sent event."""
    return f"data: {content if isinstance(content, str) else compact(content)}\n\n"


def compact(content: Any) -> str:
    """JSON in one line, without spaces."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


class Notices:
    """Logs the names of options that are ignored, each once per server."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def note(self, body: Body) -> None:
        """Log the names of a request that were not in an earlier one."""
        found = {"": body} | {f"{name}.": value for name, value in body if isinstance(value, Options)}
        for prefix, options in found.items():
            names, known = set(options.model_extra or ()), options.without_effect
            self._log({prefix + name for name in names & known}, "without effect: one model, greedy decoding")
            self._log({prefix + name for name in names - known}, "unknown")

    def _log(self, names: set[str], why: str) -> None:
        new = sorted(name for name in names - self._known if _PLAIN_NAME.fullmatch(name))
        new = new[: max(0, _MAX_NOTICES - len(self._known))]
        if new:
            self._known.update(new)
            logger.warning("fim: options of requests are ignored (%s; said once): %s", why, ", ".join(new))
