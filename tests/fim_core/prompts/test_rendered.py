"""Prompts that a client rendered with FIM markers."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import MODEL_TOKENS, like_model

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.errors import FimError
from fim_core.prompt_format.families import FAMILIES, SUFFIX_FIRST
from fim_core.prompt_format.tokens import FimTokens, resolve_fim_tokens
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.prompts.rendered import fim_block, take_apart, text_around_cursor
from fim_core.records.schema import Completion

MODEL = ModelConfig(config={"model_type": "llama"}, tokenizer="trained")
TOKENS = {
    name: resolve_fim_tokens(like_model(name, chat=False), MODEL, turn_end=None)
    for name in MODEL_TOKENS
    if name != "gemma3"
}
MARKERS = sorted({marker for family in FAMILIES.values() for marker in family.markers})
ORDERS: tuple[Literal["psm", "spm"], ...] = ("psm", "spm")

PLAIN = st.text(st.sampled_from("ab1 \n'<|>[]_▁｜é漢"), max_size=12)
ANY = st.lists(st.one_of(PLAIN, st.sampled_from([*MARKERS, "<|fim_", "fix|>", "<PRE>", "<s>"])), max_size=6).map(
    "".join
)
FAMILY = st.sampled_from(sorted(TOKENS))


def readings(prompt: str, tokens: FimTokens) -> list[tuple[str, str]]:
    """Every way to read a prompt as a FIM block."""
    found = []
    for order in ORDERS:
        first, second = (tokens.prefix, tokens.suffix) if order == "psm" else (tokens.suffix, tokens.prefix)
        for place in range(len(prompt)):
            if not prompt.startswith(second, place):
                continue
            sides = prompt[len(first) : place], prompt[place + len(second) : len(prompt) - len(tokens.middle)]
            sides = sides if order == "psm" else sides[::-1]
            if fim_block(*sides, tokens, order) == prompt:
                found.append(sides)
    return found


@settings(max_examples=300, deadline=None)
@given(family=FAMILY, order=st.sampled_from(ORDERS), prefix=ANY, suffix=ANY)
def test_takes_apart_what_was_rendered(family: str, order: Literal["psm", "spm"], prefix: str, suffix: str) -> None:
    tokens = TOKENS[family]
    prompt = fim_block(prefix, suffix, tokens, order)
    names = (tokens.prefix, tokens.suffix, tokens.middle)
    if any(name in text for name in names for text in (prefix, suffix)):
        assert take_apart(prompt, tokens) is None, "text that names a marker is not split at it"
        with pytest.raises(FimError, match="Send plain text"):
            text_around_cursor(prompt, "", tokens)
    else:
        assert take_apart(prompt, tokens) == (prefix, suffix)
        assert text_around_cursor(prompt, "", tokens) == (prefix, suffix)
        assert text_around_cursor("<s>" + prompt, "", tokens, start="<s>") == (prefix, suffix)


@settings(max_examples=500, deadline=None)
@given(family=FAMILY, prompt=ANY, suffix=st.sampled_from(["", " FROM t"]))
def test_never_splits_silently_where_there_are_two_readings(family: str, prompt: str, suffix: str) -> None:
    tokens = TOKENS[family]
    found = readings(prompt, tokens)
    try:
        sides = text_around_cursor(prompt, suffix, tokens)
    except FimError:
        return
    if found:
        assert sides == found[0]
        assert len(found) == 1
        assert not suffix
    else:
        assert sides == (prompt, suffix)


@pytest.mark.parametrize("family", sorted(TOKENS))
def test_takes_apart_the_prompts_of_training(family: str) -> None:
    tokenizer = like_model(family, chat=False)
    orders = ("spm",) if TOKENS[family].family in SUFFIX_FIRST else ORDERS
    for order in orders:
        data = DataConfig(sources=[Source(type="demo")], template="plain", fim_order=order)
        builder = PromptBuilder(tokenizer, MODEL, data)
        prompt = builder.build(Completion("SELECT a\n", "\nFROM t"))
        assert isinstance(prompt, Prompt)
        start = builder.sequence_start
        assert text_around_cursor(prompt.text, "", builder.tokens, start=start) == ("SELECT a\n", "\nFROM t")


@pytest.mark.parametrize(
    "prompt",
    [
        "SELECT * FROM prompts WHERE text LIKE '%<|fim_middle|>%' AND ",
        "SELECT [PREFIX], [SUFFIX], [MIDDLE] FROM people",
        "<fim_prefix> is a marker of another model",
        "",
    ],
)
def test_text_that_names_a_marker_is_text(prompt: str) -> None:
    assert text_around_cursor(prompt, "x", TOKENS["qwen"]) == (prompt, "x")


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        ("qwen", "<|repo_name|>r<|file_sep|>f\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"),
        ("qwen", "<|im_start|>user\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|><|im_end|>"),
        ("qwen", "<|fim_prefix|><|fim_suffix|>b<|fim_middle|>a"),
        ("qwen", "<|fim_prefix|>a"),
        ("qwen", "a<|fim_middle|>\n"),
        ("qwen", "<fim_prefix>a<fim_suffix>b<fim_middle>"),
        ("qwen", "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"),
        ("qwen", "<PRE> a <SUF>b <MID>"),
        ("codellama", "<PRE> a <SUF>b <MID>"),
        ("qwen", "[SUFFIX]b[PREFIX]a"),
        ("codestral", "[SUFFIX]b[PREFIX]a"),
        ("starcoder2", "<file_sep>x<file_sep><fim_prefix>a<fim_suffix>b<fim_middle>"),
    ],
)
def test_prompts_that_cannot_be_taken_apart_are_refused(family: str, prompt: str) -> None:
    with pytest.raises(FimError, match="Send plain text"):
        text_around_cursor(prompt, "", TOKENS[family])
