"""Detection of the form of finished prompts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from data_path import MODEL, data_options
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CL100K, byte_level
from transformers import PreTrainedTokenizerFast

from fim_core.config.model import FimTokenNames
from fim_core.errors import FimError
from fim_core.prompt_format.families import FAMILIES
from fim_core.prompts.finished import (
    DetectedForm,
    around_cursor,
    context_of,
    detect_form,
    holds_chat_markup,
    is_fim_prompt,
)

NAMES = {
    name: FimTokenNames(prefix=family.prefix, suffix=family.suffix, middle=family.middle)
    for name, family in FAMILIES.items()
}
QWEN, STARCODER = NAMES["qwen"], NAMES["starcoder"]
TEXT = st.text(max_size=20)


def prompt_of(family: str, order: str, before: str = "a", after: str = "b", lead: str = "") -> str:
    names = NAMES[family]
    left, right = names.prefix + before, names.suffix + after
    return lead + (left + right if order == "psm" else right + left) + names.middle


@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from(["psm", "spm"]), TEXT, TEXT, TEXT)
def test_text_around_the_cursor(family: str, order: Any, before: str, after: str, lead: str) -> None:
    prompt = prompt_of(family, order, before, after, lead)
    assert around_cursor(prompt, NAMES[family], order) == (before, after)
    assert around_cursor(prompt, NAMES[family], "spm" if order == "psm" else "psm") is None
    assert is_fim_prompt(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "select 1",
        prompt_of("qwen", "psm") + "x",
        prompt_of("qwen", "psm", before="<|fim_suffix|>"),
        prompt_of("qwen", "psm").replace("<|fim_suffix|>", ""),
        prompt_of("starcoder", "psm"),
    ],
)
def test_prompts_without_a_known_cursor(prompt: str) -> None:
    assert around_cursor(prompt, QWEN, "psm") is None


def find(tokenizer: PreTrainedTokenizerFast, prompts: list[str], **options: Any) -> DetectedForm:
    data = data_options(**options)
    return detect_form(prompts, copy.deepcopy(tokenizer), MODEL, data, has_template="template" in options)


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_the_most_frequent_form_is_found(tokenizer: PreTrainedTokenizerFast, order: str) -> None:
    other = {"psm": "spm", "spm": "psm"}[order]
    prompts = [prompt_of("qwen", order)] * 5 + [prompt_of("qwen", other)] * 2 + ["select"]
    found = find(tokenizer, prompts)
    assert (found.model.fim_tokens, found.data.fim_order) == (QWEN, order)
    assert "in 5 of 8 prompts" in found.notice
    assert found.recipe is not None
    assert (found.recipe.template, found.recipe.fim_order) == (None, order)
    known = find(tokenizer, prompts, template="chat")
    assert known.recipe is None
    assert "Serving uses the template chat" in known.notice
    assert find(tokenizer, prompts, fim_order=order).data.fim_order == order
    with pytest.raises(FimError, match=f"in the order {order}"):
        find(tokenizer, prompts, fim_order=other)


def test_prompts_without_fim_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    found = find(tokenizer, ["what is a join?"])
    assert found.recipe is None
    assert "`render: chat`" in found.notice


def test_tokens_of_another_family_are_refused_and_new_ones_added(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(FimError, match=r"<fim_prefix>, .* its own are <\|fim_prefix\|>"):
        find(tokenizer, [prompt_of("starcoder", "psm")])
    bare = byte_level(["<|end|>"], regex=CL100K, eos="<|end|>")
    found = find(bare, [prompt_of("starcoder", "psm")])
    assert found.recipe is not None
    assert set(found.recipe.fim_tokens.added) == {STARCODER.prefix, STARCODER.suffix, STARCODER.middle}


def test_chat_markup_is_detected(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = prompt_of("qwen", "psm", lead="<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")
    assert holds_chat_markup([chat], tokenizer)
    assert not holds_chat_markup([prompt_of("qwen", "psm")], tokenizer)
    native = prompt_of("qwen", "psm")
    for prompt, is_chat, end in ((chat, True, "<|im_end|>"), (native, False, "<|endoftext|>")):
        found = find(tokenizer, [prompt])
        assert found.recipe is not None
        assert (found.is_chat, found.recipe.fim_tokens.end) == (is_chat, end)
        assert (", with chat markup" in found.notice) == is_chat


def test_the_context_of_a_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    for order in ("psm", "spm"):
        found = find(tokenizer, [prompt_of("qwen", order)])
        assert found.recipe is not None
        assert context_of(prompt_of("qwen", order, lead="ctx"), found.recipe) == "ctx"
        assert context_of("no markers", found.recipe) == "no markers"
