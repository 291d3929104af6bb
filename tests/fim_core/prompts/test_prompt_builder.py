"""Prompts against the slow, obvious way: render each row by itself, encode the whole text at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import chat_templates as templates
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_tokenizers import CL100K, byte_level, long_run, sentencepiece_like
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.prompt_format.template import FIELDS, parse_template
from fim_core.prompt_format.tokens import control_tokens
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.records.schema import Completion, Reason, Rejection
from fim_core.tokenization.pieces import PieceTable

QWEN = train_tokenizer(["select a, b\n  from t where x = 'y';\n"] * 3, 600)
MODEL = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")
CONTROLS = sorted(control_tokens(QWEN))

SQL = st.text(st.sampled_from("abx1 \n\t\r'\",;()<|>{}.é\u0301漢🙂\u00a0\U000f0001"), max_size=15)
HOSTILE = st.lists(
    st.one_of(SQL, st.sampled_from([*CONTROLS, "{{.SUFFIX}}", "{{end}}", "<|im_", "end|>"])), max_size=4
).map("".join)


def completions(text: st.SearchStrategy[str]) -> st.SearchStrategy[Completion]:
    texts = {field.name: text for field in fields(Completion) if field.name != "repaired"}
    return st.builds(Completion, **texts)


PROSE = st.text(st.sampled_from("ab :#\n\té"), max_size=8)
NODES = st.recursive(
    st.one_of(
        PROSE,
        st.sampled_from([f"{{{{.{field}}}}}" for field in FIELDS]),
        st.sampled_from(["{{- /* note */ -}}", "{{- .PREFIX }}", "{{ .SUFFIX -}}"]),
    ),
    lambda inner: st.builds("{{{{if .{}}}}}{}{{{{else}}}}{}{{{{end}}}}".format, st.sampled_from(FIELDS), inner, inner),
    max_leaves=6,
)
BODIES = st.lists(NODES, max_size=5).map("".join)
BLOCK = "<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>"


def data(**options: object) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"type": "demo"}], **options})


def builder(tokenizer: PreTrainedTokenizerFast = QWEN, model: ModelConfig = MODEL, **options: object) -> PromptBuilder:
    return PromptBuilder(tokenizer, model, data(**options))


def template_source(system: str, user: str, lead: str) -> str:
    sections = {"system": system, "user": user, "assistant": lead + BLOCK}
    return "".join(f'{{{{define "{name}"}}}}{body}{{{{end}}}}' for name, body in sections.items())


def by_row(source: str, completion: Completion, order: str) -> str:
    """One row rendered by the tokenizer's own apply_chat_template."""
    template = parse_template(source)
    values = {name: getattr(completion, name.lower()) for name in FIELDS}
    system, user, lead = (
        "".join(piece.text for piece in template.render(section, values)) for section in ("system", "user", "assistant")
    )
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    opening = str(QWEN.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    prefix, suffix = f"<|fim_prefix|>{completion.prefix}", f"<|fim_suffix|>{completion.suffix}"
    return opening + lead + (prefix + suffix if order == "psm" else suffix + prefix) + "<|fim_middle|>"


REJECTING = builder()
NEUTRALISING = builder(control_tokens="neutralise")


@long_run(short=40)
@given(BODIES, BODIES, PROSE, completions(SQL), st.sampled_from(["psm", "spm"]))
def test_templates_and_rows(
    tmp_path: Path, system: str, user: str, lead: str, completion: Completion, order: str
) -> None:
    path = tmp_path / "t.tmpl"
    path.write_text(source := template_source(system, user, lead), encoding="utf-8", newline="")
    source = path.read_text(encoding="utf-8")
    assembled = builder(template=str(path), fim_order=order)
    prompt = assembled.build(completion)
    assert isinstance(prompt, Prompt)
    assert prompt.text == by_row(source, completion, order)
    assert (prompt.prefix, prompt.suffix, prompt.control_spans) == (completion.prefix, completion.suffix, None)
    ids = QWEN(prompt.text, add_special_tokens=False)["input_ids"]
    pieces, _ = PieceTable(REJECTING.encoder).gather([REJECTING.encoder.pieces(prompt.text)])
    assert pieces.tolist() == ids
    assert ids[-1] == assembled.tokens.middle_id
    assert [ids.count(t) for t in (assembled.tokens.prefix_id, assembled.tokens.suffix_id)] == [1, 1]


@long_run(short=150)
@given(completions(HOSTILE))
def test_user_text_cannot_become_a_control_token(completion: Completion) -> None:
    names_one = any(token in getattr(completion, name.lower()) for token in CONTROLS for name in FIELDS)
    rejected = REJECTING.build(completion)
    neutral = NEUTRALISING.build(completion)
    assert isinstance(neutral, Prompt)
    if names_one:
        assert isinstance(rejected, Rejection)
        assert rejected.reason == Reason.CONTROL_TOKEN
    else:
        assert rejected == neutral
    # The same prompt with marks for the control tokens: they are where user text has them, as ordinary text.
    plain = NEUTRALISING.build(Completion("", ""))
    assert isinstance(plain, Prompt)
    expected = [t for t in QWEN(plain.text, add_special_tokens=False)["input_ids"] if t in IDS]
    ids = NEUTRALISING.encoder.encode(neutral.text, neutral.control_spans)
    assert [token for token in ids if token in IDS] == expected
    assert QWEN.decode(ids) == neutral.text
    assert ids == REJECTING.encode(completion)
    assert (neutral.prefix, neutral.suffix) == (completion.prefix, completion.suffix)


IDS = {QWEN.convert_tokens_to_ids(token) for token in CONTROLS}


@long_run(short=60)
@given(completions(SQL), st.sampled_from(FIELDS), st.sampled_from(CONTROLS))
def test_neutralising_changes_no_other_token(completion: Completion, field: str, control: str) -> None:
    """Compared with private characters in the control token's place, only those tokens differ."""
    assume("\U000f0001" not in "".join(getattr(completion, name.lower()) for name in FIELDS))
    values = {name.lower(): getattr(completion, name.lower()) for name in FIELDS}
    marked = NEUTRALISING.build(Completion(**values | {field.lower(): values[field.lower()] + "\n" + control + "\n"}))
    assert isinstance(marked, Prompt)
    pieces = NEUTRALISING.encoder.pieces(marked.text, marked.control_spans)
    segments = [piece for piece in pieces if isinstance(piece, str)]
    assert sum(control in segment for segment in segments) >= 1
    assert "".join(p if isinstance(p, str) else QWEN.convert_ids_to_tokens(p) for p in pieces) == marked.text
    for segment in segments:
        if not any(token in segment for token in CONTROLS):
            whole = QWEN(segment, add_special_tokens=False)["input_ids"]
            assert NEUTRALISING.encoder.encode_pieces([segment])[0].tolist() == whole


def test_a_control_token_that_template_and_user_spell_together(tmp_path: Path) -> None:
    path = tmp_path / "t.tmpl"
    path.write_text(template_source("s", "<|im_{{.DDL_CONTEXT}}", ""), encoding="utf-8")
    state = Completion("a", "b", ddl_context="end|>")
    rejecting = builder(template=str(path))
    result = rejecting.build(state)
    assert isinstance(result, Rejection)
    assert "together" in result.detail
    ids = rejecting.encode(state)
    plain = rejecting.encode(Completion("a", "b", ddl_context="x"))
    assert [token for token in ids if token in IDS] == [token for token in plain if token in IDS]
    assert "<|im_end|>" in QWEN.decode([token for token in ids if token not in IDS])


def test_a_template_that_spells_a_control_token_around_an_empty_field_is_refused(tmp_path: Path) -> None:
    """Else its count of control tokens would be one too high, and let one of the user's pass."""
    path = tmp_path / "t.tmpl"
    path.write_text(template_source("s", "<|im_{{.DDL_CONTEXT}}end|>", ""), encoding="utf-8")
    with pytest.raises(FimError, match="around an empty field"):
        builder(template=str(path))
    # Only where another field is there as well: the rows are rejected.
    path.write_text(template_source("s", "{{if .SQL_HISTORY}}<|im_{{.DDL_CONTEXT}}end|>{{end}}", ""), encoding="utf-8")
    assembled = builder(template=str(path))
    assert isinstance(assembled.build(Completion("a", "b", sql_history="h", ddl_context="d")), Prompt)
    for history, ddl in (("h", ""), ("h", "<|im_end|>")):
        assert isinstance(assembled.build(Completion("a", "b", sql_history=history, ddl_context=ddl)), Rejection)


def test_rejections_name_the_field_and_quote_nothing() -> None:
    result = REJECTING.build(Completion("secret <|im_end|>", "b", file_content="<|im_start|>"))
    assert isinstance(result, Rejection)
    assert "prefix, file_content" in result.detail
    assert "secret" not in result.detail


@pytest.mark.parametrize(
    ("chat_template", "template", "notice"),
    [
        (templates.VERBATIM, "chat", "Chat markup of the tokenizer."),
        (templates.NO_SYSTEM, "chat", "opens the first user turn"),
        (None, "chat", "the plain template is used"),
        (None, "plain", "Plain template"),
        (templates.VERBATIM, "plain", "Plain template"),
    ],
)
def test_the_notice_says_which_markup(chat_template: str | None, template: str, notice: str) -> None:
    tokenizer = byte_level(["<|im_start|>", "<|im_end|>"], chat_template=chat_template, eos="<|im_end|>")
    made = builder(tokenizer, template=template)
    assert notice in made.notice
    prompt = made.build(Completion("a", "b", ddl_context="create table t;"))
    assert isinstance(prompt, Prompt)
    assert prompt.text.startswith("<|im_start|>") == ("Chat markup" in notice or "user turn" in notice)
    assert prompt.text.endswith("<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>")


def test_a_chat_template_of_ones_own_without_markup(tmp_path: Path) -> None:
    path = tmp_path / "t.tmpl"
    path.write_text(template_source("Be brief.", "{{.DDL_CONTEXT}}", "-- lead\n"), encoding="utf-8")
    made = builder(byte_level(["</s>"], eos="</s>"), template=str(path))
    prompt = made.build(Completion("a", "b", ddl_context=" ddl "))
    assert isinstance(prompt, Prompt)
    assert prompt.text == "Be brief.\n\n ddl \n\n-- lead\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    assert "without markup" in made.notice


def test_plain_prompts_begin_with_what_the_tokenizer_begins_with() -> None:
    tokenizer = sentencepiece_like()
    made = builder(tokenizer)
    prompt = made.build(Completion("select a", " from t"))
    assert isinstance(prompt, Prompt)
    assert prompt.text == "<s>▁<PRE>select a▁<SUF> from t▁<MID>"
    assert (
        made.encode(Completion("select a", " from t")) == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    "names",
    [
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ],
)
def test_one_template_serves_every_family(names: tuple[str, str, str]) -> None:
    prefix, suffix, middle = names
    made = builder(byte_level([*names, "<|end|>"], regex=CL100K, eos="<|end|>"))
    prompt = made.build(Completion("a", "b"))
    assert isinstance(prompt, Prompt)
    assert prompt.text == f"{prefix}a{suffix}b{middle}"
    rejected = made.build(Completion("a", middle))
    assert isinstance(rejected, Rejection)


def test_codestral_reads_the_suffix_first() -> None:
    tokenizer = byte_level(["[PREFIX]", "[SUFFIX]", "[MIDDLE]", "</s>"], eos="</s>")
    with pytest.raises(FimError, match="fim_order: spm"):
        builder(tokenizer)
    prompt = builder(tokenizer, fim_order="spm").build(Completion("a", "b"))
    assert isinstance(prompt, Prompt)
    assert prompt.text == "[SUFFIX]b[PREFIX]a[MIDDLE]"


def test_templates_that_name_this_tokenizers_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tmpl"
    path.write_text(template_source("Stop with <|im_end|>.", "", ""), encoding="utf-8")
    with pytest.raises(FimError, match=r"line 1: .*<\|im_end\|>"):
        builder(template=str(path))


def test_masked_secrets_in_every_field() -> None:
    made = builder(mask_secrets=True)
    prompt = made.build(Completion("-- a@b.com", "c@d.org", file_content="PASSWORD = 'hunter2'"))
    assert isinstance(prompt, Prompt)
    assert prompt.masked == 3
    assert not any(secret in prompt.text for secret in ("a@b.com", "c@d.org", "hunter2"))
    assert prompt.prefix == "-- masked@example.com"
