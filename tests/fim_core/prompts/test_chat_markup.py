"""Chat markup from constant parts is what the chat template writes, whatever the template does with its turns."""

from __future__ import annotations

import re

import chat_templates as templates
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import byte_level, long_run

from fim_core.errors import FimError
from fim_core.prompts.guard import ControlTokenGuard
from fim_core.prompts.markup import ChatMarkup, assistant_spans, render_chat
from fim_core.tokens import control_tokens

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
def test_the_templates_own_control_tokens_are_told_from_those_of_a_turn(kind: str) -> None:
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
