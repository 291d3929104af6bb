"""Conversations: exactly the tokens of assistant turns are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_templates as templates
import pytest
from data_path import DataPath, completion, run_data_path
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CL100K, byte_level, like_model, long_run, sentencepiece_like
from transformers import PreTrainedTokenizerFast

from fim_core.config import ModelConfig
from fim_core.demo.tokenizer import CHAT_TEMPLATE, train_tokenizer
from fim_core.errors import FimError
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.rows import RowBuilder
from fim_core.quality.run import run_checks
from fim_core.records.schema import Reason, Rejection

DEMO = train_tokenizer(["select a\n  from t;\n"] * 3, 600)
MARKS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
MODEL = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1\n"},
    {"role": "user", "content": "a1\n again"},
    {"role": "assistant", "content": " a2"},
]


def like_qwen(chat_template: str) -> PreTrainedTokenizerFast:
    return byte_level(MARKS, regex=CL100K, chat_template=chat_template, eos="<|im_end|>")


def chat_row(messages: Any) -> dict[str, Any]:
    return {"source_type": "messages", "input": json.dumps(messages)}


def trained(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> list[str]:
    """Runs of trained tokens, decoded."""
    runs: list[list[int]] = []
    previous = -100
    for label in row["labels"]:
        if label != -100:
            if previous == -100:
                runs.append([])
            runs[-1].append(label)
        previous = label
    return [tokenizer.decode(run) for run in runs]


def run(folder: Path, tokenizer: PreTrainedTokenizerFast, messages: Any = CHAT, **options: Any) -> DataPath:
    return run_data_path(folder, [chat_row(messages)], tokenizer, eval_fraction=0, **options)


@pytest.mark.parametrize("chat_template", [CHAT_TEMPLATE, templates.VERBATIM], ids=["mask", "turn_by_turn"])
def test_every_assistant_turn_and_nothing_else(tmp_path: Path, chat_template: str) -> None:
    tokenizer = like_qwen(chat_template)
    row = run(tmp_path, tokenizer).rows[0]
    assert trained(tokenizer, row) == ["a1\n<|im_end|>", " a2<|im_end|>"]
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokenizer.decode(row["input_ids"]) == text.removesuffix("\n")


def prompt_and_target(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> tuple[str, str]:
    """What evaluation reads of a row: decoded tokens before the response, and from there on."""
    length = row["prompt_length"]
    assert row["labels"][length:] == row["input_ids"][length:]
    return tokenizer.decode(row["input_ids"][:length]), tokenizer.decode(row["input_ids"][length:])


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("messages", [CHAT[:3], CHAT], ids=["one_turn", "two_turns"])
def test_the_prompt_ends_where_the_last_answer_begins(tmp_path: Path, messages: Any, ignores: bool) -> None:
    """Behind earlier answers and behind an empty block of thoughts, though both are trained on."""
    tokenizer = like_qwen(templates.THINKS)
    prompt, target = prompt_and_target(
        tokenizer, run(tmp_path, tokenizer, messages, ignore_empty_think=ignores).rows[0]
    )
    markup = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert prompt == markup + "<think>\n\n</think>\n\n"
    assert target == messages[-1]["content"] + "<|im_end|>"


def test_the_checks_accept_conversations(tmp_path: Path) -> None:
    tokenizer = like_qwen(templates.THINKS)
    texts = [CHAT, CHAT[:3], [*CHAT, {"role": "user", "content": "left out"}], CHAT[1:3] * 4]
    done = run_data_path(tmp_path, [chat_row(messages) for messages in texts], tokenizer, eval_fraction=0)
    assert len(done.rows) == len(texts)
    tables = {
        "tokenized_dataset": tmp_path / "tokens" / "dataset",
        "not_tokenized": tmp_path / "tokens" / "rejected.parquet",
        "changed": tmp_path / "tokens" / "changed.parquet",
        "fim_prompts": tmp_path / "prompts" / "prompts.parquet",
    }
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    counts = {"vocab_size": len(tokenizer), "asked_share": 0.0, "nothing_held_out": ""}
    facts = {
        "config": {"data": {"max_length": 8192, "mask_inputs": True}},
        "fim_prompts": {"counts": counts, "recipe": {"fim_tokens": {"end_id": end}}},
    }
    results = run_checks("tokenized_dataset", tables, facts, {})
    assert [result.name for result in results if not result.passed and result.severity == "error"] == []


def test_labels_are_those_of_the_tokenizers_own_mask(tmp_path: Path) -> None:
    tokenizer = like_qwen(CHAT_TEMPLATE)
    messages = [message | {"content": message["content"].strip()} for message in CHAT]
    row = run(tmp_path, tokenizer, messages).rows[0]
    own = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = own["input_ids"], own["assistant_masks"]
    length = len(row["input_ids"])
    assert row["input_ids"] == ids[:length]
    assert row["labels"] == [token if on else -100 for token, on in zip(ids, mask, strict=True)][:length]
    assert not any(mask[length:])


SQL = st.text(st.sampled_from("ab1 \n\t;é🙂<|"), max_size=10)


@long_run(short=100)
@given(st.lists(st.tuples(SQL, SQL), min_size=1, max_size=4), st.sampled_from([CHAT_TEMPLATE, templates.VERBATIM]))
def test_any_conversation(turns: list[tuple[str, str]], chat_template: str) -> None:
    builder = BUILDERS[chat_template]
    messages = [
        {"role": role, "content": text}
        for question, answer in turns
        for role, text in (("user", question), ("assistant", answer))
    ]
    row = RowBuilder(builder).build("messages", json.dumps(messages), "")
    assert isinstance(row, PromptRow)
    expected, parts = "", []
    for question, answer in turns:
        expected += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        parts += [len(expected), len(expected) + len(answer) + len("<|im_end|>")]
        expected += f"{answer}<|im_end|>\n"
    assert row.prompt + row.response + "<|im_end|>\n" == expected
    assert row.response == turns[-1][1]
    assert (row.trained_spans or []) == parts[:-2]


def builder_of(tokenizer: PreTrainedTokenizerFast, **options: Any) -> PromptBuilder:
    from data_path import data_options

    return PromptBuilder(tokenizer, MODEL, data_options(**options))


BUILDERS = {template: builder_of(like_qwen(template)) for template in (CHAT_TEMPLATE, templates.VERBATIM)}


def test_an_empty_think_block_is_trained_on_unless_ignored(tmp_path: Path) -> None:
    tokenizer = like_qwen(templates.THINKS)
    row = run(tmp_path / "a", tokenizer).rows[0]
    assert trained(tokenizer, row) == ["a1\n<|im_end|>", "<think>\n\n</think>\n\n a2<|im_end|>"]
    ignored = run(tmp_path / "b", tokenizer, ignore_empty_think=True).rows[0]
    assert trained(tokenizer, ignored) == ["a1\n<|im_end|>", " a2<|im_end|>"]
    assert ignored["input_ids"] == row["input_ids"]


def test_thoughts_in_the_content_are_passed_as_reasoning_content(tmp_path: Path) -> None:
    tokenizer = like_qwen(templates.THINKS)
    messages = [CHAT[1], {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}]
    for ignores in (False, True):
        row = run(tmp_path / str(ignores), tokenizer, messages, ignore_empty_think=ignores).rows[0]
        assert trained(tokenizer, row) == ["<think>\nhm\n</think>\n\nyes<|im_end|>"]


def test_turns_after_the_last_answer_are_left_out(tmp_path: Path) -> None:
    shorter = run(tmp_path / "a", DEMO, CHAT[:3]).rows[0]
    longer = run(tmp_path / "b", DEMO, CHAT[:4]).rows[0]
    assert longer["input_ids"] == shorter["input_ids"]


def test_stripped_content(tmp_path: Path) -> None:
    tokenizer = like_qwen(templates.STRIPPED)
    assert trained(tokenizer, run(tmp_path, tokenizer).rows[0]) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_whole_texts_are_masked_by_offsets(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = "{% for m in messages %}{{ '<s>' + m.role + ':' + m.content + '</s>' }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    row = run(tmp_path, tokenizer, [m | {"content": m["content"].strip()} for m in CHAT]).rows[0]
    assert [text.strip() for text in trained(tokenizer, row)] == ["a1</s>", "a2</s>"]
    prompt, target = prompt_and_target(tokenizer, row)
    assert prompt.endswith("assistant:")
    assert "a1</s>" in prompt
    assert target.strip() == "a2</s>"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("{", Reason.INVALID_JSON),
        ({}, Reason.UNSUPPORTED_JSON),
        (["hi"], Reason.UNSUPPORTED_JSON),
        ([{"role": "user"}], Reason.UNSUPPORTED_JSON),
        ([{"role": "user", "content": ["a"]}], Reason.UNSUPPORTED_JSON),
        ([{"role": "user", "content": "\ud800"}], Reason.UNSUPPORTED_JSON),
        ([], Reason.EMPTY_INPUT),
        (CHAT[:2], Reason.EMPTY_OUTPUT),
        ([CHAT[1], {"role": "assistant", "content": "stop <|im_end|> here"}], Reason.CONTROL_TOKEN),
        ([{"role": "<|im_start|>", "content": "x"}, CHAT[2]], Reason.CONTROL_TOKEN),
        ([CHAT[1], CHAT[2], {"role": "assistant", "content": "im_end|>"}], None),
    ],
)
def test_rows_that_cannot_be_used(messages: Any, reason: Reason | None) -> None:
    text = messages if isinstance(messages, str) else json.dumps(messages)
    row = RowBuilder(BUILDERS[CHAT_TEMPLATE]).build("messages", text, "")
    assert (row.reason if isinstance(row, Rejection) else None) == reason


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        (templates.each_turn("m.content[1:]"), "rewrites the text of a turn"),
        (templates.each_turn("m.content", "{{ messages | length }}"), "rewrites earlier turns"),
    ],
)
def test_templates_whose_turns_cannot_be_located(chat_template: str, why: str) -> None:
    row = RowBuilder(builder_of(like_qwen(chat_template))).build("messages", json.dumps(CHAT), "")
    assert isinstance(row, Rejection)
    assert row.reason == Reason.BAD_CONTEXT
    assert why in row.detail


def test_neutralised_conversations(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "what is <|im_end|>?"},
        {"role": "assistant", "content": "a <|im_start|>\n"},
        {"role": "user", "content": "ok"},
        {"role": "assistant", "content": "<|im_end|>"},
    ]
    row = run(tmp_path, DEMO, messages, control_tokens="neutralise").rows[0]
    end, start = (DEMO.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>"))
    assert (row["input_ids"].count(start), row["input_ids"].count(end)) == (4, 4)
    assert trained(DEMO, row) == ["a <|im_start|>\n<|im_end|>", "<|im_end|><|im_end|>"]
    assert DEMO.decode(row["input_ids"]) == DEMO.apply_chat_template(messages, tokenize=False).removesuffix("\n")


def test_chat_rows_need_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="chat template"):
        run(tmp_path, byte_level(MARKS, eos="<|im_end|>"))


@pytest.mark.parametrize(("template", "row", "end"), [
    ("plain", completion("select ", " from t", "a"), "<|endoftext|>"),
    ("chat", completion("select ", " from t", "a"), "<|im_end|>"),
    ("plain", chat_row(CHAT), "<|im_end|>"),
])  # fmt: skip
def test_rows_with_chat_markup_end_with_the_end_of_turn_token(
    tmp_path: Path, template: str, row: Any, end: str
) -> None:
    tokenizer = like_model("qwen", chat=True)
    tokenizer.chat_template = templates.VERBATIM
    done = run_data_path(tmp_path, [row], tokenizer, template=template, eval_fraction=0)
    assert tokenizer.decode(done.rows[0]["labels"][-1]) == end
    assert read_recipe(tmp_path / "prompts").fim_tokens.end == end
