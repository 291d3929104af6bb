"""Chat markup around one system and one user turn, from the tokenizer's own chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from fim_core.errors import FimError, first_line
from fim_core.prompt_format.tokens import control_pattern, control_tokens
from fim_core.prompts.deadline import OutOfTimeError, time_limit
from fim_core.prompts.guard import ControlTokenGuard

# Some chat templates write today's date. A fixed one keeps training and serving the same.
_TODAY = datetime(2025, 1, 1)
_DATE = _TODAY.strftime("%d %b %Y")

TIME_LIMIT_S = 10.0
"""Limit of one rendering. Most take microseconds; only a template that loops reaches it."""

# Text of a turn while the markup around it is determined: nothing that a template would react to.
_SYSTEM, _USER, _ASSISTANT = "\ufdd0system\ufdd1", "\ufdd0user\ufdd1", "\ufdd0assistant\ufdd1"

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_PROBES = (
    *("x", " x ", "\n\nx\n\n", "\tx\n y \n", "<x>", 'x\'s "y" & {z} {{w}} {% v %}', "\u00a0x\u3000", "\\n", "日本"),
    "x" * 99,
)


def render_chat(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]], *, open_turn: bool = True
) -> str:
    """Render turns with the tokenizer's chat template, as text.

    Args:
        messages: turns, `role` and `content`.
        open_turn: end with the beginning of the assistant's turn.

    Raises:
        jinja2.TemplateError: the template does not allow these turns.
        FimError: it exceeds the time limit.
    """
    with _bounded():
        _pin_clocks(tokenizer.get_chat_template())
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=open_turn, date_string=_DATE
            )
        )


def _pin_clocks(template: str) -> None:
    """Make a template see _TODAY as the time, and refuse random values.

    transformers accepts no functions from callers, and caches the environment of each compiled template.
    """
    environment = _compile_jinja_template(template).environment
    environment.globals["strftime_now"] = _TODAY.strftime
    environment.globals.pop("lipsum", None)
    environment.filters["random"] = _refuse_chance


def _refuse_chance(_: object) -> None:
    raise TemplateError("the template uses random values, so that prompts would not be reproducible")


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit the time of a template, and report its errors as TemplateError."""
    try:
        with time_limit(TIME_LIMIT_S):
            yield
    except OutOfTimeError as error:
        raise FimError(
            f"The tokenizer's chat template did not finish within {TIME_LIMIT_S:g} s, so it seems to loop without "
            "end. Use `data.template: plain`, or a tokenizer with another chat template."
        ) from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise TemplateError(f"{type(error).__name__} in the template: {first_line(error)}") from error


def assistant_spans(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]
) -> list[tuple[int, int]] | None:
    """Positions of the assistant's text in `render_chat(…, open_turn=False)`, from the template's `{% generation %}`.

    None if the template has no such blocks.
    """
    template = tokenizer.get_chat_template()
    if not _GENERATION.search(template):
        return None
    variables: dict[str, Any] = {**tokenizer.special_tokens_map, "date_string": _DATE}
    with _bounded():
        _pin_clocks(template)
        # Annotated as str, but returns a pair: the rendered conversations, and the spans of each.
        rendered: Any = render_jinja_template([list(messages)], None, None, template, True, **variables)
    return [(int(start), int(end)) for start, end in rendered[1][0]]


def turn_end(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """The control token that closes the assistant's turn in the tokenizer's chat markup.

    The tokenizer's end-of-sequence token if the template writes none; None if it has none either.
    """
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}]
    try:
        _, _, after = render_chat(tokenizer, turns, open_turn=False).rpartition(_ASSISTANT)
    except TemplateError:
        after = ""
    closing = control_pattern(control_tokens(tokenizer)).search(after)
    return closing[0] if closing else tokenizer.eos_token


@dataclass(frozen=True)
class _Frame:
    """The constant parts of the markup, and on which sides it strips a turn's text."""

    before: str
    between: str
    after: str
    strip: tuple[bool, bool, bool, bool]

    def fill(self, system: str, user: str) -> tuple[str, int, int]:
        """The text, and the positions of `between` and `after` in it."""
        left_system, right_system, left_user, right_user = self.strip
        system = system.lstrip() if left_system else system
        system = system.rstrip() if right_system else system
        user = user.lstrip() if left_user else user
        user = user.rstrip() if right_user else user
        start = len(self.before) + len(system)
        end = start + len(self.between) + len(user)
        return f"{self.before}{system}{self.between}{user}{self.after}", start, end


class ChatMarkup:
    """Renders the markup of a system and a user turn; its constant parts are rendered once.

    The constant parts are used only if probes show that they give the template's output: a template that does more with a
    text than strip it is rendered for every row, and so is a turn without any visible character.

    Args:
        guard: knows the tokenizer's control tokens.
        system: whether there is a system turn.

    Attributes:
        folds_system: the template has no system role, so the system text opens the user's turn.
        constant: whether the constant parts are used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, guard: ControlTokenGuard, *, system: bool) -> None:
        self._tokenizer = tokenizer
        self._guard = guard
        self._with_system = system
        self.folds_system = system and not self._keeps_system()
        self._frame = self._find_frame()
        self.constant = self._frame is not None
        if self._frame is not None:
            self._spans = [guard.spans(text) for text in (self._frame.before, self._frame.between, self._frame.after)]
        self._rendered = lru_cache(maxsize=256)(self._render_with_spans)

    def render(self, system: str, user: str) -> tuple[str, list[int] | None]:
        """The markup up to the beginning of the assistant's turn.

        Returns:
            the text, and the positions of control tokens that the template wrote, `[start, end, …]` in characters; None if
            they cannot be told from the text of the turns.

        Raises:
            FimError: the chat template refuses the turns.
        """
        if self._frame is not None and user.strip() and (system.strip() or not self._with_system):
            text, start, end = self._frame.fill(system, user)
            before, between, after = self._spans
            return text, [*before, *(start + place for place in between), *(end + place for place in after)]
        return self._rendered(system, user)

    def _render_with_spans(self, system: str, user: str) -> tuple[str, list[int] | None]:
        """Render with the control tokens of the turns hidden, so that all control tokens found are the template's."""
        plane = self._guard.plane_for(system, user)
        if plane is None:
            return self._render_template(system, user), None
        hidden = [self._guard.hide(text, plane) for text in (system, user)]
        text, spans = self._guard.reveal(self._render_template(*hidden), plane)
        # Text of the template and of a turn may form one together.
        own = self._render_template(*("x" if text.strip() else text for text in (system, user)))
        return text, spans if len(spans) == 2 * self._guard.count(own) else None

    def _render_template(self, system: str, user: str) -> str:
        if self.folds_system:
            messages = [{"role": "user", "content": f"{system}\n\n{user}" if user else system}]
        else:
            messages = [{"role": "system", "content": system}] if self._with_system else []
            messages.append({"role": "user", "content": user})
        try:
            return render_chat(self._tokenizer, messages)
        except TemplateError as error:
            raise FimError(
                f"The tokenizer's chat template does not allow a user turn alone: {error}. Use `data.template: plain`."
            ) from error

    def _keeps_system(self) -> bool:
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}]
        try:
            return render_chat(self._tokenizer, messages).count(_SYSTEM) == 1
        except TemplateError:
            return False

    def _find_frame(self) -> _Frame | None:
        system = _SYSTEM if self._with_system else ""
        text = self._render_template(system, _USER)
        head, found, after = text.partition(_USER)
        before, _, between = head.partition(system) if system else (head, "", "")
        if not found or _USER in after or _SYSTEM in before + between + after:
            return None
        spaced = self._render_template(f" \n{system}\n ", f" \n{_USER}\n ")
        frame = _Frame(
            before,
            between,
            after,
            (
                bool(system) and f" \n{system}" not in spaced,
                bool(system) and f"{system}\n " not in spaced,
                f" \n{_USER}" not in spaced,
                f"{_USER}\n " not in spaced,
            ),
        )
        for number, user in enumerate(_PROBES * 2):
            # Each probe is paired with itself and with the next one.
            text = _PROBES[(number + number // len(_PROBES)) % len(_PROBES)] if system else ""
            if frame.fill(text, user)[0] != self._render_template(text, user):
                return None
        return frame
