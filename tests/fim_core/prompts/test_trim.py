"""Trimming the editor's state to the context of a model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import like_model
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.errors import FimError
from fim_core.prompts import PromptBuilder
from fim_core.prompts.trim import fit
from fim_core.records.schema import CONTEXT_FIELDS, Completion

MODEL = ModelConfig(config={"model_type": "llama"}, tokenizer="trained")
TEXT = st.lists(st.sampled_from(["select a.b", "\n", " where x = 1;", "é漢", "''", "from t\n\n"]), max_size=40).map(
    "".join
)


def builder_of(tokenizer: PreTrainedTokenizerFast, **options: object) -> PromptBuilder:
    data = DataConfig.model_validate({"sources": [Source(type="demo")], **options})
    return PromptBuilder(tokenizer, MODEL, data)


BUILDERS = [
    builder_of(like_model("qwen", chat=True)),
    builder_of(like_model("codestral", chat=False), template="plain", fim_order="spm"),
]
EMPTY = [len(builder.encode(Completion("", ""))) for builder in BUILDERS]


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(0, len(BUILDERS) - 1),
    completion=st.builds(Completion, *[TEXT] * 6),
    room=st.integers(0, 120),
)
def test_keeps_what_is_nearest_to_the_cursor(number: int, completion: Completion, room: int) -> None:
    builder, limit = BUILDERS[number], EMPTY[number] + room
    fitted = fit(builder, completion, limit)
    assert fitted.ids == builder.encode(fitted.completion)
    assert len(fitted.ids) <= limit
    texts = {
        name: (getattr(completion, name), getattr(fitted.completion, name)) for name in (*CONTEXT_FIELDS, "prefix")
    }
    for whole, kept in texts.values():
        assert whole.endswith(kept)
    assert completion.suffix.startswith(fitted.completion.suffix)
    texts["suffix"] = (completion.suffix, fitted.completion.suffix)
    cut = {name: len(whole) - len(kept) for name, (whole, kept) in texts.items() if whole != kept}
    assert fitted.trimmed == cut
    assert bool(cut) == (len(builder.encode(completion)) > limit), "only what is too long is trimmed"
    # A field is only touched once the ones before it are gone.
    order = [name for name in (*CONTEXT_FIELDS, "prefix", "suffix") if name in cut]
    for earlier, _ in itertools.pairwise(order):
        assert earlier in {"prefix", "suffix"} or texts[earlier][1] == ""
    if {"prefix", "suffix"} & set(cut):
        assert all(texts[name][1] == "" for name in CONTEXT_FIELDS)


@pytest.mark.parametrize("number", range(len(BUILDERS)))
@pytest.mark.parametrize("room", [1, 7, 40])
def test_keeps_about_as_much_as_fits(number: int, room: int) -> None:
    builder, limit = BUILDERS[number], EMPTY[number] + room
    prefix = "select a.b, count(*) from events where x = 1 " * 8
    fitted = fit(builder, Completion(prefix, ""), limit)
    longest = max(
        (
            prefix[start:]
            for start in range(len(prefix))
            if len(builder.encode(Completion(prefix[start:], ""))) <= limit
        ),
        key=len,
    )
    assert len(longest) - len(fitted.completion.prefix) <= 4, "a few characters, since a cut changes the tokens"


def test_begins_and_ends_with_whole_lines() -> None:
    builder = BUILDERS[0]
    line = "select a.b from t where x = 1;\n"
    fitted = fit(builder, Completion(line * 30, line * 30), EMPTY[0] + 200)
    kept = fitted.completion
    assert set(kept.prefix.splitlines()) | set(kept.suffix.splitlines()) == {line.strip()}
    assert kept.suffix.endswith("\n")
    assert 2 < len(kept.prefix) / len(kept.suffix) < 4, "three quarters are for the prefix"


def test_a_short_side_leaves_its_room_to_the_other() -> None:
    builder, text = BUILDERS[0], "select a.b from t where x = 1; " * 30
    prefix, suffix = (fit(builder, each, EMPTY[0] + 200) for each in (Completion(text, "x"), Completion("x", text)))
    assert prefix.trimmed.keys() == {"prefix"}
    assert suffix.trimmed.keys() == {"suffix"}
    assert abs(len(prefix.ids) - len(suffix.ids)) <= 4


def test_context_that_the_template_leaves_out_is_not_touched() -> None:
    tokenizer = like_model("qwen", chat=False)
    builder = builder_of(tokenizer, template="plain")
    used = set(builder.context_fields)
    completion = Completion("x " * 500, "", *["y " * 100] * 4)
    fitted = fit(builder, completion, 200)
    assert {name for name in fitted.trimmed if name in CONTEXT_FIELDS} == used


def test_secrets_are_masked_before_the_text_is_cut() -> None:
    builder = builder_of(like_model("qwen", chat=True), mask_secrets=True)
    secret = "AKIAIOSFODNN7EXAMPLE"
    prefix = f"CREATE STAGE s CREDENTIALS = (AWS_KEY_ID = '{secret}') " + "a " * 60
    for room in range(1, 160):
        fitted = fit(builder, Completion(prefix, ""), len(builder.encode(Completion("", ""))) + room)
        text = builder.encoder.decode(fitted.ids)
        assert not any(secret[-size:] in text for size in (6, 12, 20))


def test_refuses_a_limit_below_the_markup() -> None:
    with pytest.raises(FimError, match="without any text"):
        fit(BUILDERS[0], Completion("SELECT ", ""), EMPTY[0] - 1)
