"""What the versions of prepared data depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_pipeline import TINY, write_experiment
from transformers import PreTrainedTokenizerFast

from fim_core.config import Experiment, load_experiment
from fim_core.errors import FimError
from fim_core.pipeline import run
from fim_core.pipeline.stages.fim_prompts import fim_prompts
from fim_core.pipeline.stages.raw_completions import raw_completions
from fim_core.prompt_format.recipe import read_recipe
from fim_core.store import Artifact, Store


def outside(folder: Path, **model: Any) -> dict[str, str]:
    """Content hashes of the inputs of prompts that are not artifacts."""
    content = {"model": model, "data": {"sources": [{"type": "demo"}]}}
    return fim_prompts.outside(Experiment.model_validate(content), Store(folder), {})


def test_prompts_depend_on_the_generation_config_with_another_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    for folder in (model, tokenizer):
        folder.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (model / "generation_config.json").write_text('{"eos_token_id": 1}')
    places = {"name_or_path": str(model), "tokenizer": str(tokenizer)}
    before = outside(tmp_path, **places)
    (model / "config.json").write_text("{}")
    assert outside(tmp_path, **places) == before
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert outside(tmp_path, **places) != before
    (tokenizer / "tokenizer.json").write_text("[]")
    assert outside(tmp_path, **places)["tokenizer"] != before["tokenizer"]


def test_prompts_depend_on_what_determines_the_end_token(tmp_path: Path) -> None:
    def options(template: str = "chat", **model: Any) -> dict[str, Any]:
        content = {
            "model": {"config": {"model_type": "qwen3"}, "tokenizer": str(tmp_path), **model},
            "data": {"sources": [{"type": "demo"}], "template": template},
        }
        return fim_prompts.options(Experiment.model_validate(content))

    assert options() == options()
    assert options() != options(template="plain")
    assert options() != options(end_token="<|file_sep|>")
    (tmp_path / "tokenizer.json").write_text("{}")
    config = {"model_type": "qwen3"}
    before = outside(tmp_path, config=config, tokenizer=str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert outside(tmp_path, config=config, tokenizer=str(tmp_path)) != before


def test_prompts_do_not_depend_on_weights_of_another_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    config = {"model_type": "qwen3"}
    assert set(outside(tmp_path, config=config, tokenizer=str(tmp_path))) == {"template", "tokenizer"}
    assert set(outside(tmp_path, name_or_path=str(tmp_path))) == {"template", "tokenizer"}


def test_feedback_is_an_option_of_raw_rows_only_where_it_is_set() -> None:
    def source(**changes: Any) -> dict[str, Any]:
        content = {"model": {"name_or_path": "m"}, "data": {"sources": [{"name_or_path": "x.csv", **changes}]}}
        (options,) = raw_completions.options(Experiment.model_validate(content))["sources"]
        return dict(options)

    assert "feedback" not in source()
    assert source(feedback={"action": "A"}) != source(feedback={"action": "B"})


def test_prompts_without_a_recipe_depend_on_the_form_that_the_experiment_states(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Even if it states the default."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"prompt": f"<|fim_suffix|>{n}<|fim_prefix|>a<|fim_middle|>", "response": "b"} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def prompts(**changes: Any) -> Artifact:
        options = {"sources": [str(tmp_path / "rows.jsonl")], **changes}
        path = write_experiment(
            tmp_path, model={**TINY["model"], "tokenizer": str(tmp_path / "tokenizer")}, data=options
        )
        return run(load_experiment(path), until="fim_prompts")["fim_prompts"].artifact

    assert read_recipe(prompts().path).template is None
    assert read_recipe(prompts(template="chat").path).template == "chat"
    with pytest.raises(FimError, match="in the order spm"):
        prompts(fim_order="psm")


def test_prompts_of_completions_do_not_depend_on_explicit_defaults(tmp_path: Path) -> None:
    def version(**changes: Any) -> str:
        path = write_experiment(tmp_path, data={**TINY["data"], **changes})
        return run(load_experiment(path), until="fim_prompts")["fim_prompts"].artifact.version

    assert version() == version(template="chat", fim_order="psm")
