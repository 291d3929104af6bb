"""Sample rows: masked and trained spans, in code blocks that no text can close."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import PreTrainedTokenizerFast

from fim_assets.metadata.samples import samples

BLOCK = re.compile(r"\*\*(Masked|Trained on)\*\* \(([\d,]+) tokens\)\n\n(`{3,})text\n(.*?)\n\3(?:\n|$)", re.DOTALL)


@pytest.fixture(scope="module")
def tokenizer_file(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder / "tokenizer.json"


def row(tokenizer: PreTrainedTokenizerFast, *stretches: tuple[str, bool]) -> dict:
    """A row of text spans, each trained on or masked."""
    encoded = [(tokenizer.encode(text), trained) for text, trained in stretches]
    return {
        "row_id": "abc-0",
        "input_ids": [token for ids, _ in encoded for token in ids],
        "labels": [token if trained else -100 for ids, trained in encoded for token in ids],
    }


def blocks(rows: list[dict], tokenizer_file: Path) -> list[tuple[str, int, str]]:
    shown = samples(pa.Table.from_pylist(rows), tokenizer_file).md_str
    return [(kind, int(tokens.replace(",", "")), text) for kind, tokens, _, text in BLOCK.findall(shown)]


def test_spans_are_separated_and_control_tokens_are_shown(
    tokenizer: PreTrainedTokenizerFast, tokenizer_file: Path
) -> None:
    stretches = [
        ("<|fim_prefix|>select a", False),
        ("one", True),
        ("\nfrom t<|fim_middle|>", False),
        (" b<|im_end|>", True),
    ]
    found = blocks([row(tokenizer, *stretches)], tokenizer_file)
    assert [(kind == "Trained on", text) for kind, _, text in found] == [(trained, text) for text, trained in stretches]
    assert [tokens for _, tokens, _ in found] == [len(tokenizer.encode(text)) for text, _ in stretches]


@pytest.mark.parametrize("text", ["```\n# heading\n```", "````` x", "a ``` b"])
def test_text_cannot_close_its_code_block(text: str, tokenizer: PreTrainedTokenizerFast, tokenizer_file: Path) -> None:
    assert [shown for _, _, shown in blocks([row(tokenizer, (text, False))], tokenizer_file)] == [text]


def test_a_long_prompt_is_cut_in_the_middle(tokenizer: PreTrainedTokenizerFast, tokenizer_file: Path) -> None:
    text = "select first, " + "x, " * 2000 + "last from t"
    [(_, _, shown)] = blocks([row(tokenizer, (text, False))], tokenizer_file)
    head, _, tail = re.split(r"\n(⋯ .* ⋯)\n", shown)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert f"{len(text) - len(head) - len(tail):,} characters" in shown


def test_three_rows_of_many(tokenizer: PreTrainedTokenizerFast, tokenizer_file: Path) -> None:
    rows = [row(tokenizer, (f"select {n}", False)) for n in range(101)]
    assert [text for _, _, text in blocks(rows, tokenizer_file)] == ["select 0", "select 50", "select 100"]
