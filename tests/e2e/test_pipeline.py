"""The whole pipeline in Dagster, on the tiny experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import dagster as dg
import pytest
import torch
import yaml
from tiny_pipeline import TINY, materialize, outcomes, write_experiment
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.config import load_experiment
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import load_eval_set
from fim_core.inference.prompting import load_prompt_builder
from fim_core.pipeline import STAGES, run
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompt_format.template import template_path
from fim_core.prompts import Prompt
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion
from fim_core.store import Store


def store_of(path: Path) -> Store:
    return Store(load_experiment(path).storage)


def test_every_asset_is_made_once_and_then_reused(reused: dg.ExecuteInProcessResult) -> None:
    assert outcomes(reused) == {stage.asset: "reused" for stage in STAGES}


def test_only_assets_downstream_of_a_change_are_made_again(
    finished: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    shutil.copytree(store_of(finished).root, tmp_path / "store", symlinks=True)
    path = write_experiment(tmp_path, optimizer={"lr": 2e-2})
    result = outcomes(materialize(path, instance))
    assert result == {
        "raw_completions": "reused",
        "fim_prompts": "reused",
        "tokenized_dataset": "reused",
        "trained_checkpoint": "made",
        "evaluation_report": "made",
        "champion_model": "made",
    }


def test_the_command_line_makes_the_same_versions(finished: Path) -> None:
    results = run(load_experiment(finished))
    assert all(result.reused for result in results.values())


def test_the_counts_add_up(finished: Path) -> None:
    store = store_of(finished)
    raw, prompts = store.current("raw_completions").counts, store.current("fim_prompts").counts
    assert prompts["rows_in"] == raw["rows"]
    assert prompts["rows_kept"] + sum(prompts["rejected"].values()) == prompts["rows_in"]
    assert prompts["train"] + prompts["eval"] + prompts["left_out"] == prompts["rows_kept"]


def test_the_checkpoint_loads_and_leads_back_to_the_rows(finished: Path) -> None:
    store = store_of(finished)
    checkpoint = store.current("trained_checkpoint")
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
    assert torch.isfinite(model(torch.tensor([tokenizer.encode("select 1")])).logits).all()
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id[0]) == "<|im_end|>"
    prompts = store.find("fim_prompts", checkpoint.manifest["inputs"]["fim_prompts"])
    assert prompts is not None
    assert store.find("raw_completions", prompts.manifest["inputs"]["raw_completions"]) is not None


def test_a_checkpoint_names_no_path_of_this_machine_and_is_readable_by_others(finished: Path) -> None:
    checkpoint = store_of(finished).current("trained_checkpoint").path.resolve()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    folder = str(finished.parent).encode()
    assert [path.name for path in files if folder in path.read_bytes()] == []
    rights = (checkpoint / "manifest.json").stat().st_mode
    assert [path.name for path in files if path.stat().st_mode != rights] == []


def test_serving_builds_the_prompts_of_training(finished: Path) -> None:
    store = store_of(finished)
    checkpoint, raw = store.current("trained_checkpoint").path, store.current("raw_completions").path
    held_out = load_eval_set(
        raw / "raw_completions.parquet",
        store.current("fim_prompts").path,
        store.current("tokenized_dataset").path,
        max_rows=None,
    )
    builder = load_prompt_builder(checkpoint, AutoTokenizer.from_pretrained(checkpoint))
    states = [parse_input(row.input) for row in held_out.raw]
    assert [builder.encode(state) for state in states if isinstance(state, Completion)] == held_out.prompts
    template = template_path(load_experiment(finished).data.template)
    assert read_recipe(checkpoint).template_text == template.read_text(), "a later version may have another one"


def test_the_report_and_the_summary(finished: Path) -> None:
    report = store_of(finished).current("evaluation_report").path
    figures = json.loads((report / "report.json").read_text())
    assert figures["counts"]["evaluated"] == 6
    assert figures["latency"]["rows"] == 2
    assert "<html" in (report / "report.html").read_text()
    printed = CliRunner().invoke(app, ["summary", str(finished)])
    assert printed.exit_code == 0, printed.output
    for label in ("rows in", "rejected", "packing", "held-out loss", "champion", "latency"):
        assert label in printed.output


def test_a_failed_check_blocks_in_the_same_run_and_later(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    export = tmp_path / "poisoned.csv"
    export.write_text("INPUT,OUTPUT\n" + "not json,x\n" * 20, encoding="utf-8")
    path = write_experiment(
        tmp_path,
        data={**TINY["data"], "sources": [{"name_or_path": str(export)}]},
        checks={"exact_duplicates": {"severity": "error", "max_rows": 0}},
    )
    same_run = materialize(path, instance)
    assert set(outcomes(same_run)) == {"raw_completions"}
    later = materialize(path, instance, ["fim_prompts"])
    assert not later.success
    failure = next(event for event in later.all_events if event.is_step_failure)
    assert "exact_duplicates" in (failure.step_failure_data.user_failure_data.description or "")


def _without(section: str, **content: object) -> dict:
    return {section: {**TINY[section], **content}}


@pytest.mark.parametrize(
    ("export", "changes", "said"),
    [
        (None, {}, "export.csv"),
        ("", {}, "export.csv"),
        ("INPUT,ANSWER\nx,y\n", {}, "OUTPUT"),
        ("INPUT,OUTPUT\nx,y\n", {"epoch": 3}, "did you mean epochs"),
        ("INPUT,OUTPUT\nx,y\n", _without("model", tokenizer="./no/such/tokenizer"), "no/such/tokenizer"),
    ],
    ids=["no file", "empty file", "missing column", "typo", "unknown tokenizer"],
)
def test_a_mistake_is_reported_in_one_sentence_before_any_work(
    tmp_path: Path, export: str | None, changes: dict, said: str
) -> None:
    file = tmp_path / "export.csv"
    if export is not None:
        file.write_text(export, encoding="utf-8")
    path = write_experiment(tmp_path, data={**TINY["data"], "sources": [{"name_or_path": str(file)}]}, **changes)
    with pytest.raises(FimError) as mistake:
        run(load_experiment(path))
    assert said in str(mistake.value)
    assert "Traceback" not in str(mistake.value)
    store = Store(yaml.safe_load(path.read_text())["storage"])
    assert store.versions("fim_prompts") == []


def test_a_custom_template_is_stored_with_the_checkpoint(tmp_path: Path) -> None:
    template = tmp_path / "mine.tmpl"
    text = '{{define "assistant"}}<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>{{end}}'
    template.write_text(text, encoding="utf-8")
    path = write_experiment(tmp_path, data={**TINY["data"], "template": str(template)}, max_steps=1)
    checkpoint = run(load_experiment(path), until="trained_checkpoint")["trained_checkpoint"].artifact.path
    template.unlink()
    prompt = load_prompt_builder(checkpoint, AutoTokenizer.from_pretrained(checkpoint)).build(
        Completion("select ", ";")
    )
    assert isinstance(prompt, Prompt)
    assert prompt.text == "<|fim_prefix|>select <|fim_suffix|>;<|fim_middle|>"
