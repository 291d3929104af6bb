"""Conversations from export to report, with a chat template that adds a think block before the last answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_templates as templates
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk
from small_tokenizers import CL100K, byte_level
from tiny_pipeline import TINY, write_experiment

from fim_core.config import load_experiment
from fim_core.evaluation.eval_set import load_eval_set
from fim_core.evaluation.predictors import Predictor
from fim_core.folders.raw import RawFolder
from fim_core.pipeline import run
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.tokenization.encoder import TextEncoder

ROWS = 40


def conversation(number: int) -> list[dict[str, Any]]:
    texts = [f"question {number} about t{number}", f"select {number};", f"and then {number}?", f"delete {number};"]
    # Every other one has a single turn.
    return [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts[: 4 - number % 2 * 2])
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    marks = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer = byte_level(marks, regex=CL100K, chat_template=templates.THINKS, eos="<|im_end|>")
    tokenizer.save_pretrained(folder / "tokenizer")
    lines = [json.dumps({"messages": conversation(number)}) for number in range(ROWS)]
    (folder / "chat.jsonl").write_text("\n".join(lines) + "\n")
    model = {**TINY["model"], "tokenizer": str(folder / "tokenizer")}
    data = {"sources": [{"name_or_path": str(folder / "chat.jsonl")}], "eval_fraction": 0.4, "max_length": 512}
    return write_experiment(folder, model=model, data=data, evaluation={"max_rows": None, "max_new_tokens": 4})


def test_the_gold_completion_is_the_last_answer(path: Path) -> None:
    """Prompt and target of the evaluation add up to the row, so a model that writes the target matches exactly."""
    results = run(load_experiment(path))
    made = {name: result.artifact for name, result in results.items()}
    [labels] = [check for check in results["tokenized_dataset"].checks if check.name == "label_mask"]
    assert labels.passed
    assert labels.total == ROWS
    evaluated = load_eval_set(
        RawFolder(made["raw_completions"].path).rows,
        made["fim_prompts"].path,
        made["tokenized_dataset"].path,
        max_rows=None,
    )
    tokenizer = load_tokenizer(made["fim_prompts"].path / "tokenizer")
    held_out = {row["row_id"]: row for row in load_from_disk(str(made["tokenized_dataset"].path / "dataset"))["eval"]}
    stop_ids = Predictor.load(made["trained_checkpoint"].path).stop_ids
    turns = set()
    for row, prompt, target, raw in zip(
        evaluated.rows, evaluated.prompts, evaluated.targets, evaluated.raw, strict=True
    ):
        messages = json.loads(raw.input)
        turns.add(len(messages))
        assert prompt + target == held_out[row.row_id]["input_ids"]
        assert row.completion == messages[-1]["content"]
        assert TextEncoder(tokenizer).decode(target[:-1]) == row.completion
        assert target[-1] in stop_ids
        assert not stop_ids.intersection(target[:-1])
        asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(prompt) == asked + "<think>\n\n</think>\n\n"
        is_trained_inside = any(label != -100 for label in held_out[row.row_id]["labels"][: len(prompt)])
        assert is_trained_inside, "the block of thoughts is, and earlier answers are"
    assert turns == {2, 4}
    predictions = pq.read_table(made["evaluation_report"].path / "predictions.parquet").to_pandas()
    expected = {row.row_id: len(target) for row, target in zip(evaluated.rows, evaluated.targets, strict=True)}
    assert dict(zip(predictions.row_id, predictions.loss_tokens.astype(int), strict=True)) == expected
