"""User text never becomes a control token, whatever the tokenizer does with text.

Tokenizers of every build (model, normaliser, pre-tokenizer, flags of added tokens) meet attacks in every field. Control
ids of a finished row are those of the template, at their positions, and the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import TEXTS, long_run
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.errors import FimError
from fim_core.prompts import PromptBuilder
from fim_core.prompts.rows import RowBuilder
from fim_core.records.schema import Completion, Rejection

SCRATCH = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")
MARKERS = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
TOKENS = ["<unk>", "<s>", "</s>", *MARKERS]
SAMPLE = [*TEXTS, "".join(map(chr, range(32, 127))), "\n\t▁é漢"]

NORMALIZERS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "NFC": normalizers.NFC,
    "NFKC": normalizers.NFKC,
    "lowercase": normalizers.Lowercase,
    "accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "strip": normalizers.Strip,
    "invisible": lambda: normalizers.Replace("\u200b", ""),
    "llama": lambda: normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "gemma": lambda: normalizers.Replace(" ", "▁"),
}
PRE_TOKENIZERS: dict[str, Callable[[], tuple[object, object]]] = {
    "bytes": lambda: (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "bytes, space in front": lambda: (pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace always": lambda: _metaspace("always"),
    "metaspace never": lambda: _metaspace("never"),
    "words": lambda: (pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()),
    "none": lambda: (None, decoders.Fuse()),
}
MODELS = ("BPE", "BPE, merges ignored", "Unigram", "WordPiece", "WordLevel")


def _metaspace(scheme: str) -> tuple[object, object]:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False), decoders.Metaspace(prepend_scheme=scheme)


class Flags(NamedTuple):
    """Of every control token; `vocab`: the model has them in its vocabulary as well."""

    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    vocab: bool = True


@cache
def made(model: str, normalizer: str, pre_tokenizer: str, flags: Flags) -> PreTrainedTokenizerFast:
    """A tokenizer of this build, with the control tokens of CodeLlama."""
    alphabet = sorted({mark for text in SAMPLE for mark in text} | set(pre_tokenizers.ByteLevel.alphabet()))
    words = [*alphabet, "▁▁", "select", "▁select", "##x", *(f"##{mark}" for mark in alphabet)]
    vocab = dict.fromkeys(["<unk>", *(TOKENS if flags.vocab else []), *words])
    ids = {word: number for number, word in enumerate(vocab)}
    match model:
        case "Unigram":
            # Control tokens are the likeliest words of all.
            scores = [(word, 0.0 if word in TOKENS else -float(1 + len(word))) for word in ids]
            backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
        case "WordPiece":
            backend = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=200))
        case "WordLevel":
            backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        case _:
            merges = [("s", "e"), ("l", "e"), ("▁", "▁")]
            ids |= {"".join(pair): len(ids) + place for place, pair in enumerate(merges) if "".join(pair) not in ids}
            backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", ignore_merges="ignored" in model))
    if (given_normalizer := NORMALIZERS[normalizer]()) is not None:
        backend.normalizer = given_normalizer
    before, backend.decoder = PRE_TOKENIZERS[pre_tokenizer]()
    if before is not None:
        backend.pre_tokenizer = before
    how = flags._asdict()
    how.pop("vocab")
    backend.add_tokens([AddedToken(token, special=token != "▁<EOT>", **how) for token in TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


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
