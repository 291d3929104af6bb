"""Control tokens of each family, and the end token by configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_tokenizers import byte_level, like_model, sentencepiece_like
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.demo.tokenizer import CODE_TOKENS, SPECIAL_TOKENS, train_tokenizer
from fim_core.errors import FimError
from fim_core.prompt_format.families import FAMILIES
from fim_core.prompt_format.tokens import control_pattern, control_tokens, load_tokenizer, resolve_fim_tokens
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.prompts.rows import RowBuilder
from fim_core.records.schema import Completion, Rejection

SCRATCH = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recognised_by_the_tokens_of_the_tokenizer(family: str) -> None:
    names = FAMILIES[family]
    marks = [names.mark] if names.mark else []
    tokenizer = byte_level(["<|end|>", names.middle, names.suffix, names.prefix, *marks], eos="<|end|>")
    before = len(tokenizer)
    tokens = resolve_fim_tokens(tokenizer, SCRATCH)
    assert (tokens.family, tokens.prefix, tokens.suffix, tokens.middle) == (
        family,
        names.prefix,
        names.suffix,
        names.middle,
    )
    assert (tokens.added, len(tokenizer)) == ((), before)
    for text, token_id in ((tokens.prefix, tokens.prefix_id), (tokens.middle, tokens.middle_id)):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == [token_id]


def test_missing_tokens_are_added_and_survive_saving(tmp_path: Path) -> None:
    tokenizer = byte_level(["<|end|>"], eos="<|end|>")
    size = len(tokenizer)
    tokens = resolve_fim_tokens(tokenizer, SCRATCH)
    assert tokens.family == "added"
    assert tokens.added == ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    assert len(tokenizer) == size + 3
    tokenizer.save_pretrained(tmp_path)
    again = resolve_fim_tokens(load_tokenizer(tmp_path), SCRATCH)
    assert (again.prefix_id, again.suffix_id, again.middle_id) == (tokens.prefix_id, tokens.suffix_id, tokens.middle_id)
    assert again.added == ()


def test_a_family_without_its_middle_token_gets_one() -> None:
    tokens = resolve_fim_tokens(byte_level(["[PREFIX]", "[SUFFIX]", "</s>"], eos="</s>"), SCRATCH)
    assert (tokens.family, tokens.added) == ("codestral", ("[MIDDLE]",))


def test_the_experiment_names_them(tokenizer: PreTrainedTokenizerFast) -> None:
    names = {"prefix": "<A>", "suffix": "<B>", "middle": "<|fim_middle|>"}
    fresh = train_tokenizer(["select 1"], 600)
    tokens = resolve_fim_tokens(fresh, SCRATCH.model_copy(update={"fim_tokens": _names(**names)}))
    assert (tokens.prefix, tokens.suffix, tokens.middle, tokens.family) == (
        "<A>",
        "<B>",
        "<|fim_middle|>",
        "configured",
    )
    assert tokens.added == ("<A>", "<B>")
    assert {"<A>", "<B>"} <= control_tokens(fresh)
    with pytest.raises(FimError, match="three different"):
        resolve_fim_tokens(fresh, SCRATCH.model_copy(update={"fim_tokens": _names(**(names | {"suffix": "<A>"}))}))


def _names(**names: str) -> object:
    return ModelConfig.model_validate({"name_or_path": "x", "fim_tokens": names}).fim_tokens


@pytest.mark.parametrize(
    ("stops", "named", "expected"),
    [
        ([1, 2], None, [2, 1]),  # the tokenizer's own end is among them
        ([1, 0], None, [1, 0, 2]),
        (1, None, [1, 2]),
        (None, None, [2]),
        ([1, 2], "<c>", [3, 1, 2]),
    ],
)
def test_without_fim_tokens_the_end_token_is_that_of_generation(
    tmp_path: Path, stops: list[int] | int | None, named: str | None, expected: list[int]
) -> None:
    names = ["<z>", "<a>", "<b>", "<c>"]
    tokenizer = byte_level(names, eos="<b>")
    ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
    place = lambda stop: [ids[number] for number in stop] if isinstance(stop, list) else ids[stop]  # noqa: E731
    if stops is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": place(stops)}))
    tokens = resolve_fim_tokens(tokenizer, ModelConfig(name_or_path=str(tmp_path), end_token=named))
    markers = [tokens.prefix_id, tokens.suffix_id, tokens.middle_id]
    assert list(tokens.end_ids) == place(expected) + markers
    assert tokens.end_id == tokens.end_ids[0]
    assert tokens.end == names[expected[0]]


PLAIN, CHAT = "plain", "chat"


@pytest.mark.parametrize(
    ("model", "template", "end", "stops"),
    [
        ("qwen", PLAIN, "<|endoftext|>", {"<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|im_end|>"}),
        ("qwen", CHAT, "<|im_end|>", {"<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<|endoftext|>"}),
        ("starcoder", PLAIN, "<|endoftext|>", {"<fim_pad>", "<filename>", "<reponame>", "<gh_stars>"}),
        ("starcoder2", PLAIN, "<|endoftext|>", {"<fim_pad>", "<file_sep>", "<repo_name>"}),
        ("santacoder", PLAIN, "<|endoftext|>", {"<fim-pad>"}),
        ("granite4", PLAIN, "<|end_of_text|>", {"<|fim_pad|>", "<|filename|>", "<|reponame|>"}),
        ("granite4", CHAT, "<|end_of_text|>", {"<|fim_pad|>", "<|filename|>", "<|reponame|>"}),
        ("codegemma", PLAIN, "<|file_separator|>", {"<eos>", "<end_of_turn>"}),
        ("codegemma", CHAT, "<end_of_turn>", {"<eos>", "<|file_separator|>"}),
        ("codellama", PLAIN, "▁<EOT>", {"</s>"}),
        ("codellama", CHAT, "</s>", {"▁<EOT>"}),
        ("deepseek", PLAIN, "<｜end▁of▁sentence｜>", {"<|EOT|>"}),
        ("deepseek", CHAT, "<|EOT|>", {"<｜end▁of▁sentence｜>"}),
        ("codestral", PLAIN, "</s>", set()),
        ("codestral", CHAT, "</s>", set()),
        ("gemma3", PLAIN, "<eos>", set()),
        ("gemma3", CHAT, "<end_of_turn>", {"<eos>"}),
    ],
)
def test_what_ends_a_middle(model: str, template: str, end: str, stops: set[str]) -> None:
    tokenizer = like_model(model, chat=template == CHAT)
    order = "spm" if model == "codestral" else "psm"
    data = DataConfig(sources=[Source(type="demo")], template=template, fim_order=order)
    tokens = PromptBuilder(tokenizer, SCRATCH, data).tokens
    assert tokens.end == end
    assert tokenizer.convert_ids_to_tokens(tokens.end_id) == end
    assert tokens.end_ids[0] == tokens.end_id
    markers = {tokens.prefix, tokens.suffix, tokens.middle}
    assert set(tokenizer.convert_ids_to_tokens(list(tokens.end_ids))) == {end} | stops | markers
    assert len(set(tokens.end_ids)) == len(tokens.end_ids)
    assert {end} | stops | markers <= control_tokens(tokenizer)
    assert tokens.added == (() if model != "gemma3" else ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))


def test_the_chat_template_decides_only_where_prompts_use_it() -> None:
    tokenizer = like_model("qwen", chat=True)
    for template, rows, expected in (
        ("plain", False, "<|endoftext|>"),
        ("plain", True, "<|im_end|>"),
        ("chat", False, "<|im_end|>"),
    ):
        data = DataConfig(sources=[Source(type="demo")], template=template)
        assert PromptBuilder(tokenizer, SCRATCH, data, chat_rows=rows).tokens.end == expected
    named = SCRATCH.model_copy(update={"end_token": "<|file_sep|>"})
    data = DataConfig(sources=[Source(type="demo")], template="chat")
    tokens = PromptBuilder(tokenizer, named, data).tokens
    assert tokens.end == "<|file_sep|>"
    assert {"<|im_end|>", "<|endoftext|>"} <= set(tokenizer.convert_ids_to_tokens(list(tokens.end_ids)))


def test_a_family_without_its_end_token_falls_back() -> None:
    names = FAMILIES["qwen"].markers
    assert resolve_fim_tokens(byte_level([*names, "<eos>"], eos="<eos>"), SCRATCH).end == "<eos>"


def test_an_end_token_that_is_only_in_the_vocabulary_becomes_a_control_token() -> None:
    """So that text that spells it is found, as it is with the markers."""
    content = json.loads(sentencepiece_like().backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if "▁" not in token["content"]]
    backend = Tokenizer.from_str(json.dumps(content))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    size, end_id = len(tokenizer), tokenizer.convert_tokens_to_ids("▁<EOT>")
    assert "▁<EOT>" not in control_tokens(tokenizer)
    tokens = resolve_fim_tokens(tokenizer, SCRATCH)
    assert (tokens.end, tokens.end_id, tokens.added, len(tokenizer)) == ("▁<EOT>", end_id, (), size)
    assert "▁<EOT>" in control_tokens(tokenizer)


def test_invalid_end_tokens(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"Set model\.end_token"):
        resolve_fim_tokens(byte_level([]), SCRATCH)
    with pytest.raises(FimError, match="<nope> is not a token"):
        resolve_fim_tokens(byte_level(["<b>"], eos="<b>"), SCRATCH.model_copy(update={"end_token": "<nope>"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 99_999}))
    with pytest.raises(FimError, match="does not have"):
        resolve_fim_tokens(byte_level(["<b>"], eos="<b>"), ModelConfig(name_or_path=str(tmp_path)))


def test_control_tokens_with_and_without_the_special_flag(tokenizer: PreTrainedTokenizerFast) -> None:
    assert control_tokens(tokenizer) == {*SPECIAL_TOKENS, *CODE_TOKENS}


def test_added_tokens_are_control_tokens_only_where_they_are_named() -> None:
    """Gemma has thousands that are not: runs of spaces and line ends, markup of web pages."""
    words = [
        "    ",
        "\n\n",
        "õ",
        "hello",
        "<>",
        "<h1>",
        "</table>",
        "<unused7>",
        "[toxicity=0]",
        "<tool_call>",
        "<file_sep>",
    ]
    plain = [AddedToken(text, special=False, normalized=False) for text in words]
    template = "{% for m in messages %}    {{ m.content }}hello<tool_call>{% endfor %}"
    assert control_tokens(byte_level(["<|end|>", *plain])) == {"<|end|>", "<file_sep>"}, "a family's name"
    named = byte_level(["<|end|>", *plain], chat_template=template)
    assert control_tokens(named) == {"<|end|>", "<file_sep>", "<tool_call>"}, "one that the chat template writes"
    fim = resolve_fim_tokens(named, SCRATCH.model_copy(update={"end_token": "<h1>"}))
    in_use = {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<h1>"}
    assert control_tokens(named, fim) == {"<|end|>", "<file_sep>", "<tool_call>"} | in_use, "what the experiment names"


def test_rows_about_markup_are_kept_with_a_tokenizer_that_has_tokens_for_it() -> None:
    plain = [AddedToken(text, special=False, normalized=False) for text in ("<h1>", "<table>")]
    tokenizer = byte_level(["<eos>", "<start_of_turn>", *plain], eos="<eos>")
    builder = PromptBuilder(tokenizer, SCRATCH, DataConfig(sources=[Source(type="demo")], template="plain"))
    state = Completion("select '<h1>", "</h1><table>'")
    assert isinstance(builder.build(state), Prompt)
    assert tokenizer.convert_tokens_to_ids("<h1>") in builder.encode(state), "the token that the model knows"
    assert isinstance(builder.build(Completion("<start_of_turn>", "")), Rejection)


def test_an_end_token_that_is_a_plain_added_token_is_guarded() -> None:
    tokenizer = byte_level(["<eos>", AddedToken("<stop>", special=False, normalized=False)], eos="<eos>")
    model = SCRATCH.model_copy(update={"end_token": "<stop>"})
    builder = PromptBuilder(tokenizer, model, DataConfig(sources=[Source(type="demo")], template="plain"))
    end = tokenizer.convert_tokens_to_ids("<stop>")
    assert builder.tokens.end_id == end
    assert builder.reads_control("a <stop> b", neutralise=False)
    assert isinstance(RowBuilder(builder).completion(Completion("a", "b"), "x<stop>y"), Rejection)
    assert end not in builder.encode(Completion("<stop>", "<stop>"))
    assert end not in builder.encoder.join(["x<stop>y"])


def test_an_end_token_that_is_ordinary_text_is_refused() -> None:
    tokenizer = byte_level(["<eos>"], eos="<eos>")
    with pytest.raises(FimError, match="is ordinary text"):
        resolve_fim_tokens(tokenizer, SCRATCH.model_copy(update={"end_token": ";"}))


def test_the_pattern_takes_the_longest_where_several_begin() -> None:
    assert control_pattern({"<a>", "<a><b>"}).findall("<a><b><a>") == ["<a><b>", "<a>"]
    assert control_pattern(set()).findall("text") == []


def test_codellama_marks_begin_with_its_sign_for_a_space() -> None:
    tokens = resolve_fim_tokens(sentencepiece_like(), SCRATCH)
    assert (tokens.family, tokens.prefix, tokens.end) == ("codellama", "▁<PRE>", "▁<EOT>")


@pytest.mark.parametrize("place", ["/nowhere/at/all", "not a hub id", "nobody/has-this-tokenizer"])
def test_a_missing_tokenizer_is_an_error_with_a_cure(place: str) -> None:
    with pytest.raises(FimError, match=r"tokenizer.*Give a folder"):
        load_tokenizer(place)


def test_a_tokenizer_that_needs_its_own_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("someone was asked"))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"})
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('ran code')")
    with pytest.raises(FimError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"model": 1}', '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'],
)
def test_a_damaged_tokenizer_is_an_error_of_one_sentence(tmp_path: Path, content: str) -> None:
    byte_level(["<|end|>"], eos="<|end|>").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FimError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
