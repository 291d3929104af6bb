"""Prompts of every source type for a checkpoint against the dataset of its own training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import chat_templates as templates
import pyarrow.parquet as pq
import pytest
from data_path import DataPath, completion, run_data_path
from small_tokenizers import CL100K, byte_level, sentencepiece_like
from transformers import PreTrainedTokenizerFast

from fim_core.champion.gate import decide
from fim_core.config import Experiment
from fim_core.config.evaluation import GateConfig, GateRule
from fim_core.demo.tokenizer import CHAT_TEMPLATE
from fim_core.errors import FimError
from fim_core.evaluation.checkpoint_prompts import build_tokens
from fim_core.evaluation.eval_set import load_eval_set
from fim_core.evaluation.page import render_page
from fim_core.evaluation.predictors import Predictor
from fim_core.evaluation.run import evaluate
from fim_core.folders.report import ReportFolder
from tests.fim_core.conftest import MODEL, save_checkpoint

MARKS = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def like_qwen(chat_template: str | None) -> PreTrainedTokenizerFast:
    return byte_level(MARKS, regex=CL100K, chat_template=chat_template, eos="<|im_end|>")


def of_sentences() -> PreTrainedTokenizerFast:
    """One whose texts are encoded whole."""
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = "{% for m in messages %}{{ '<s>' + m.role + ':' + m.content + '</s>' }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    return tokenizer


def chat(*turns: str) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"source_type": "messages", "input": json.dumps(messages)}


ROWS = [
    row
    for i in range(4)
    for row in (
        chat(f"question {i}", f"answer {i}"),
        chat(f"select {i}", f"a {i};", f"and then {i}?", f"b {i};"),
        {"source_type": "prompt_response", "input": f"what is {i}?", "output": f"it is {i}"},
        completion(f"select {i}\n, ", "\nfrom t", f"c{i}", context={"ddl_context": f"create table t{i} (a int);"}),
    )
]
NAMING_CONTROLS = [
    chat("what is <|im_end|>?", "it ends a turn", "and <|im_start|>?", "<|im_end|> no"),
    {"source_type": "prompt_response", "input": "write <|im_end|>", "output": "no"},
    completion("select '<|im_start|>', ", " from t", "a"),
]
THOUGHT = chat("why?", "<think>\nhm\n</think>\n\nbecause")


def experiment_of(**data: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "chat",
            "model": {"config": dict(MODEL), "tokenizer": "given"},
            "data": {"sources": [{"type": "demo"}], **data},
            "evaluation": {"max_rows": None, "max_new_tokens": 3, "bootstrap_samples": 100},
        }
    )


def held_out(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **data: Any) -> DataPath:
    """All rows, held out."""
    return run_data_path(folder, [row | {"held_out": True} for row in rows], tokenizer, **data, **EVAL_SOURCES)


EVAL_SOURCES = {"eval_sources": [{"type": "demo"}], "eval_fraction": 0}


def predictor(folder: Path, tokenizer: PreTrainedTokenizerFast, **data: Any) -> Predictor:
    """Of a checkpoint that was trained on conversations."""
    save_checkpoint(folder, experiment_of(**data), tokenizer, seed=1, chat_rows=True)
    return Predictor.load(folder)


@pytest.mark.parametrize(
    ("tokenizer", "data", "rows"),
    [
        (like_qwen(templates.THINKS), {}, [*ROWS, THOUGHT]),
        (like_qwen(templates.THINKS), {"ignore_empty_think": True}, ROWS),
        (like_qwen(CHAT_TEMPLATE), {"control_tokens": "neutralise"}, [*ROWS, *NAMING_CONTROLS]),
        (of_sentences(), {"template": "plain"}, ROWS),
    ],
    ids=["thinks", "ignores_thoughts", "neutralise", "whole"],
)
def test_rebuilt_tokens_equal_those_of_training(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, data: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    held_out(tmp_path, tokenizer, rows, **data)
    evaluated = load_eval_set(tmp_path / "raw.parquet", tmp_path / "prompts", tmp_path / "tokens", max_rows=None)
    assert len(evaluated.rows) == len(rows)
    completions = [row.completion for row in evaluated.rows]
    built = build_tokens(predictor(tmp_path / "model", tokenizer, **data), evaluated.raw, completions)
    assert built == (evaluated.prompts, evaluated.targets)


def test_another_template_is_read_as_the_champion_was_trained(tmp_path: Path) -> None:
    tokenizers = {"candidate": like_qwen(templates.THINKS), "champion": like_qwen(CHAT_TEMPLATE)}
    data = {"candidate": {"fim_order": "spm"}, "champion": {"fim_order": "psm", "control_tokens": "neutralise"}}
    rows = [*ROWS, NAMING_CONTROLS[2]]
    sets = {}
    for name, tokenizer in tokenizers.items():
        folder = tmp_path / name
        held_out(folder, tokenizer, rows, **{"control_tokens": "neutralise"} | data[name])
        sets[name] = load_eval_set(folder / "raw.parquet", folder / "prompts", folder / "tokens", max_rows=None)
    ours, theirs = sets["candidate"], sets["champion"]
    # Trained on fewer rows: those that name control tokens were rejected. It reads them all the same.
    champion = predictor(tmp_path / "model", tokenizers["champion"], fim_order="psm", skip_empty_prefix=True)
    prompts, targets = build_tokens(champion, ours.raw, [row.completion for row in ours.rows])
    assert (prompts, targets) == (theirs.prompts, theirs.targets)
    changed = {raw.source_type for raw, mine, its in zip(ours.raw, ours.prompts, prompts, strict=True) if mine != its}
    assert changed == {"messages", "fim_completions"}, "finished prompts are what they are"


def test_rows_that_the_champion_cannot_read_are_left_out_and_counted(tmp_path: Path) -> None:
    """One without a chat template reads no conversations, and one whose template knows no thoughts writes them."""
    tokenizer = like_qwen(templates.THINKS)
    rows = [*ROWS, THOUGHT]
    held_out(tmp_path, tokenizer, rows)
    experiment = experiment_of()
    save_checkpoint(tmp_path / "candidate", experiment, tokenizer, seed=1)
    plain, verbatim = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    plain.chat_template, verbatim.chat_template = None, templates.VERBATIM
    counts = {}
    for name, other in (("plain", plain), ("verbatim", verbatim)):
        save_checkpoint(tmp_path / name, experiment, other, seed=2)
        out = tmp_path / f"report_{name}"
        out.mkdir()
        evaluate(
            experiment,
            checkpoint=tmp_path / "candidate",
            raw=tmp_path / "raw.parquet",
            prompts=tmp_path / "prompts",
            dataset=tmp_path / "tokens",
            output=out,
            champion=tmp_path / name,
        )
        table = pq.read_table(out / "predictions.parquet").to_pandas()
        report = ReportFolder(out).read()
        counts[name] = report["others"]["champion"]["rows"]
        assert table.champion_prediction.notna().sum() == table.champion_loss_nats.notna().sum() == counts[name]
        read = table[table.champion_prediction.notna()]
        difference = report["others"]["champion"]["differences"]["edit_similarity"]
        assert difference["n"] == counts[name]
        assert difference["value"] == pytest.approx((read.edit_similarity - read.champion_edit_similarity).mean())
        assert f"cannot represent the other {len(rows) - counts[name]}" in render_page(report)
        [result] = decide(
            out, GateConfig(rules=[GateRule(metric="edit_similarity", rule="not_worse")]), has_champion=True
        ).results
        assert f"cannot read {len(rows) - counts[name]} of the rows" in result.reason
    assert counts == {"plain": 8, "verbatim": len(ROWS)}


def test_a_checkpoint_without_a_recipe_is_named(tmp_path: Path) -> None:
    tokenizer = like_qwen(templates.THINKS)
    held_out(tmp_path, tokenizer, ROWS)
    champion = predictor(tmp_path / "model", tokenizer)
    (tmp_path / "model" / "fim.json").unlink()
    with pytest.raises(FimError, match=r"fim\.json"):
        build_tokens(champion, [], [])
