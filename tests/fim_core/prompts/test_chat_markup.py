"""Chat markup from constant parts equals the output of the chat template."""

from __future__ import annotations

import datetime as dt
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import chat_templates as templates
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from small_tokenizers import byte_level, long_run

from fim_core.errors import FimError
from fim_core.prompt_format.tokens import control_tokens
from fim_core.prompts.chat_template import ChatMarkup, assistant_spans, render_chat
from fim_core.prompts.guard import ControlTokenGuard

KINDS = {
    "verbatim": templates.VERBATIM,
    "stripped": templates.STRIPPED,
    "no_system": templates.NO_SYSTEM,
    "drops_system": templates.DROPS_SYSTEM,
    "merged": templates.MERGED,
    "rewrites": templates.REWRITES,
}
TOKENIZERS = {kind: byte_level(["<|im_start|>", "<|im_end|>"], chat_template=text) for kind, text in KINDS.items()}
MARKUPS = {
    (kind, system): ChatMarkup(tokenizer, ControlTokenGuard(control_tokens(tokenizer)), system=system)
    for kind, tokenizer in TOKENIZERS.items()
    for system in (True, False)
}

CONTENT = st.text(st.sampled_from("abx \n\t\u00a0{}%<>'\"é\u3000"), max_size=12)


def by_row(kind: str, system: str | None, user: str) -> str:
    """What the tokenizer renders for these turns, with nothing kept from other rows."""
    folds = kind in ("no_system", "drops_system")
    turns = [] if system is None or folds else [{"role": "system", "content": system}]
    if folds and system is not None:
        user = f"{system}\n\n{user}" if user else system
    return render_chat(TOKENIZERS[kind], [*turns, {"role": "user", "content": user}])


@pytest.mark.parametrize("kind", KINDS)
@long_run(short=60)
@given(CONTENT, CONTENT)
def test_equals_rendering_each_row(kind: str, system: str, user: str) -> None:
    for text, spans, expected in (
        (*MARKUPS[kind, True].render(system, user), by_row(kind, system, user)),
        (*MARKUPS[kind, False].render("", user), by_row(kind, None, user)),
    ):
        assert text == expected
        assert spans == [place for mark in re.finditer(r"<\|im_(start|end)\|>", text) for place in mark.span()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_templates_own_control_tokens_are_distinguished_from_those_of_a_turn(kind: str) -> None:
    plain, own = MARKUPS[kind, True].render("s", "u")
    text, spans = MARKUPS[kind, True].render("s", "<|im_end|>u<|im_start|>")
    assert own is not None
    assert spans is not None
    assert [text[a:b] for a, b in zip(spans[::2], spans[1::2], strict=True)] == re.findall(
        r"<\|im_(?:start|end)\|>", plain
    )
    # Without the spans, the text of the turn is left whole.
    for start, end in reversed(list(zip(spans[::2], spans[1::2], strict=True))):
        text = text[:start] + text[end:]
    assert text.count("<|im_end|>u<|im_start|>") == text.count("<|im_end|>") == 1


def test_constant_parts_are_used_where_they_can_be() -> None:
    constant = {kind for kind in KINDS if MARKUPS[kind, True].constant}
    assert constant == set(KINDS) - {"rewrites"}
    folded = {kind for kind in KINDS if MARKUPS[kind, True].folds_system}
    assert folded == {"no_system", "drops_system"}


def test_a_template_that_refuses_a_user_turn() -> None:
    tokenizer = byte_level([], chat_template="{{ raise_exception('never') }}")
    with pytest.raises(FimError, match="does not allow"):
        ChatMarkup(tokenizer, ControlTokenGuard(control_tokens(tokenizer)), system=True)


def test_assistant_spans_by_the_templates_own_mask() -> None:
    text = "{% for m in messages %}{{ m.role + ':' }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    messages = [{"role": "u", "content": "ab"}, {"role": "a", "content": "cde"}]
    assert assistant_spans(byte_level([], chat_template=text), messages) == [(2, 4), (6, 9)]
    assert assistant_spans(TOKENIZERS["verbatim"], messages) is None


def test_no_clock_reaches_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise serving would not build the prompts of training."""
    template = (
        "{% macro now() %}{{ strftime_now('%H:%M:%S.%f') }}{% endmacro %}"
        "{{ strftime_now('%d %b %Y %j %A') }} {{ now() }} {{ date_string }}"
        "{% for m in messages %}{{ m.content }}{% generation %}{{ strftime_now('%s') }}{% endgeneration %}{% endfor %}"
    )
    tokenizer = byte_level([], chat_template=template)
    turns = [{"role": "user", "content": "x"}]
    text, spans = render_chat(tokenizer, turns), assistant_spans(tokenizer, turns)
    assert text.startswith("01 Jan 2025 001 Wednesday 00:00:00.000000 01 Jan 2025x")
    later = dt.datetime(2031, 5, 6, 7, 8, 9)
    clock = SimpleNamespace(now=lambda *_: later, today=lambda *_: later, utcnow=lambda *_: later)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)
    assert (render_chat(tokenizer, turns), assistant_spans(tokenizer, turns)) == (text, spans)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fim_core.prompts.chat_template.TIME_LIMIT_S", 0.1)
    tokenizer = byte_level([], chat_template=ENDLESS + "{% generation %}{% endgeneration %}")
    for render in (render_chat, assistant_spans):
        with pytest.raises(FimError, match="seems to loop without end"):
            render(tokenizer, [{"role": "user", "content": "x"}])
    monkeypatch.undo()
    assert render_chat(TOKENIZERS["verbatim"], [{"role": "user", "content": "x"}]), "the thread is well"


def test_a_loop_in_another_thread_is_ended_there_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fim_core.prompts.chat_template.TIME_LIMIT_S", 0.1)
    tokenizer = byte_level([], chat_template=ENDLESS)
    with ThreadPoolExecutor(2) as pool:
        looping = pool.submit(render_chat, tokenizer, [{"role": "user", "content": "x"}])
        other = pool.submit(time.sleep, 1)
        assert isinstance(looping.exception(), FimError)
        assert other.exception() is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 + 'a' }}",
        "{{ 1 // 0 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[9].x.y }}",
        "{{ [1, 2] | random }}",
        "{{ lipsum() }}",
    ],
)
def test_errors_in_a_template_are_template_errors(template: str) -> None:
    tokenizer = byte_level([], chat_template=template)
    with pytest.raises(TemplateError):
        render_chat(tokenizer, [{"role": "user", "content": "x"}])
    with pytest.raises(FimError, match=r"Use `data\.template: plain`"):
        ChatMarkup(tokenizer, ControlTokenGuard(control_tokens(tokenizer)), system=False)
