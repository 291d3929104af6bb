"""User text never becomes a control token, whatever the tokenizer does with text.

Tokenizers of every build (model, normaliser, pre-tokenizer, flags of added tokens) meet attacks in every field. Control
ids of a finished row are those of the template, at their positions, and the end.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import long_run
from tokenizer_builds import MODELS, NORMALIZERS, PRE_TOKENIZERS, TOKENS, Flags, made
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.errors import FimError
from fim_core.prompts import PromptBuilder
from fim_core.prompts.rows import RowBuilder
from fim_core.records.schema import Completion, Rejection

SCRATCH = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")


def attacks() -> list[str]:
    """Texts that one tokenizer or another reads as a control token."""
    found: dict[str, None] = {}
    for token in TOKENS[1:]:
        name = token.lstrip("▁")
        wide = "".join(chr(ord(mark) + 0xFEE0) if "!" <= mark <= "~" else mark for mark in name)
        for form in (token, name, f" {name}", f"  {name} ", wide, f" {wide}", name.lower(), name.upper(),
                     f"{name[:2]}\u0301{name[2:]}", f"{name[:1]}\u200b{name[1:]}", f"\u200b{name}", f"{name}\u0338",
                     f"a{name}b", f"a {name} b", f"\n{name}\n", f"\u00a0{name}", f"{name}{name}", f"▁{name}"):  # fmt: skip
            found[form] = None
    return list(found)


ATTACKS = attacks()
FIELDS = [field.name for field in fields(Completion) if field.name != "repaired"]


class Outcome(NamedTuple):
    """What became of a row: its ids by parts, or None where it is rejected."""

    ids: list[int] | None
    response: list[int]


class Path(NamedTuple):
    """One tokenizer on its way through training and serving."""

    rows: RowBuilder
    neutral: RowBuilder

    @property
    def serving(self) -> PromptBuilder:
        return self.rows.prompts


@cache
def path(model: str, normalizer: str, pre_tokenizer: str, flags: Flags) -> Path:
    tokenizer = made(model, normalizer, pre_tokenizer, flags)
    return Path(*(
        RowBuilder(PromptBuilder(tokenizer, SCRATCH, DataConfig.model_validate(
            {"sources": [{"type": "demo"}], "control_tokens": how, "template": "plain"})))
        for how in ("reject", "neutralise")
    ))  # fmt: skip


def control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """All but the one for unknown characters, which means nothing."""
    return {tokenizer.convert_tokens_to_ids(token) for token in TOKENS[1:]}


def trained(builder: RowBuilder, state: Completion, output: str) -> Outcome:
    """Ids of a row as the data set has it; those of the prompt and of the response with its end."""
    row = builder.completion(state, output)
    if isinstance(row, Rejection):
        return Outcome(None, [])
    encoder = builder.prompts.encoder
    prompt = encoder.join(encoder.pieces(row.prompt, row.control_spans))
    return Outcome(prompt, [*(encoder.join([row.response]) if row.response else []), builder.prompts.tokens.end_id])


def is_safe(builder: RowBuilder, outcome: Outcome) -> bool:
    """The slow, obvious reference: control ids in the order of an innocent row, the markers around what they enclose."""
    tokens, controls = builder.prompts.tokens, control_ids(builder.prompts.tokenizer)
    assert outcome.ids is not None
    found = [number for number in outcome.ids if number in controls]
    start = builder.prompts.tokenizer.bos_token_id
    expected = [tokens.prefix_id, tokens.suffix_id, tokens.middle_id]
    in_response = [number for number in outcome.response if number in controls]
    return (
        found in (expected, [start, *expected])
        and outcome.ids[-1] == tokens.middle_id
        and in_response == [tokens.end_id]
        and outcome.response[-1] == tokens.end_id
    )


def serves_safely(path: Path, state: Completion) -> bool | None:
    """None where the text is refused."""
    try:
        ids = path.serving.encode(state)
    except FimError:
        return None
    return is_safe(path.rows, Outcome(ids, [path.serving.tokens.end_id]))


BUILDS = st.tuples(
    st.sampled_from(MODELS),
    st.sampled_from(list(NORMALIZERS)),
    st.sampled_from(list(PRE_TOKENIZERS)),
    st.builds(Flags, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
TEXT = st.lists(
    st.one_of(st.sampled_from(ATTACKS), st.sampled_from(["", " ", "select a", "x", "\n", "<", "/s>", "PRE>", "é"])),
    max_size=3,
).map("".join)


@long_run(short=60)
@given(BUILDS, st.fixed_dictionaries(dict.fromkeys(FIELDS, TEXT)), TEXT)
def test_no_user_text_becomes_a_control_token(
    build: tuple[str, str, str, Flags], texts: dict[str, str], output: str
) -> None:
    taken, state = path(*build), Completion(**texts)
    for builder in taken:
        outcome = trained(builder, state, output)
        assert outcome.ids is None or is_safe(builder, outcome)
    assert serves_safely(taken, state) is not False
    # A row that training keeps is served, with the same tokens.
    kept = trained(taken.rows, state, output).ids
    assert kept is None or kept == taken.serving.encode(state)


# Builds like those of published models, and those that went wrong once.
TABLE = {
    "byte-level BPE": ("BPE", "none", "bytes", Flags(vocab=False)),
    "byte-level BPE, NFC": ("BPE", "NFC", "bytes", Flags(vocab=False)),
    "byte-level BPE, merges ignored": ("BPE, merges ignored", "none", "none", Flags()),
    "Llama 2": ("BPE", "llama", "none", Flags()),
    "CodeLlama": ("BPE, merges ignored", "none", "metaspace first", Flags(normalized=True)),
    "Gemma": ("BPE", "gemma", "none", Flags()),
    "Unigram": ("Unigram", "none", "metaspace always", Flags()),
    "Unigram, NFKC": ("Unigram", "NFKC", "metaspace first", Flags(normalized=True)),
    "WordPiece, lowercase": ("WordPiece", "lowercase", "words", Flags(normalized=True)),
    "WordPiece, accents": ("WordPiece", "accents", "words", Flags(normalized=True)),
    "WordLevel, strip": ("WordLevel", "strip", "words", Flags()),
    "invisible characters": ("BPE", "invisible", "bytes", Flags(normalized=True)),
    "stripping flags": ("BPE", "none", "bytes", Flags(lstrip=True, rstrip=True, vocab=False)),
    "single words": ("BPE", "none", "bytes", Flags(single_word=True, vocab=False)),
}


def test_table_of_attacks() -> None:
    """Every attack in a prompt and in a response. None gets through, and many would without the check."""
    tried, kept, neutralised, served, effective, would_be = [0] * 6
    for name, build in TABLE.items():
        taken = path(*build)
        tokenizer, controls = taken.serving.tokenizer, control_ids(taken.serving.tokenizer)
        innocent = tokenizer("select a", add_special_tokens=False)["input_ids"]
        assert not controls.intersection(innocent), name
        for attack in ATTACKS:
            would_be += bool(controls.intersection(tokenizer(attack, add_special_tokens=False)["input_ids"]))
            for state, output in (
                (Completion(attack, "", ddl_context=attack), ""),
                (Completion("a", "b"), attack),
            ):
                tried += 1
                for number, builder in enumerate(taken):
                    outcome = trained(builder, state, output)
                    kept += number == 0 and outcome.ids is not None
                    neutralised += number == 1 and outcome.ids is not None
                    effective += outcome.ids is not None and not is_safe(builder, outcome)
                is_served = serves_safely(taken, state)
                served += is_served is not None
                effective += is_served is False
    assert effective == 0
    assert (tried, would_be, kept, neutralised, served) == COUNTS


COUNTS = (2688, 432, 1844, 2352, 2520)
"""Rows tried; texts that the tokenizer itself reads as a control token; rows kept under `reject`, under `neutralise`, and
served."""


@pytest.mark.parametrize("pre_tokenizer", ["bytes", "metaspace first", "metaspace always", "none"])
@pytest.mark.parametrize("normalizer", ["none", "NFC", "gemma"])
def test_innocent_rows_are_kept(normalizer: str, pre_tokenizer: str) -> None:
    """Text about markup is text: only what becomes a control token is rejected."""
    for model in ("BPE", "BPE, merges ignored", "Unigram"):
        taken = path(model, normalizer, pre_tokenizer, Flags())
        for text in ("select a < b", "<h1>", " <PR", "/s>", "漢"):
            for builder in taken:
                outcome = trained(builder, Completion(text, text, ddl_context=text), text)
                assert outcome.ids is not None
                assert is_safe(builder, outcome)
